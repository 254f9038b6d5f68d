//! `nsqdelayd list`: what is pending, by due time.

use reqwest::Method;
use serde_json::Value;

use crate::cli::Failure;
use crate::cli::output;
use crate::cli::remote::{Remote, Target, field, moment};

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd list
  nsqdelayd list --topic orders --limit 20
  nsqdelayd list --due-from 2030-01-01T00:00:00Z --due-to 2030-01-02T00:00:00Z --json";

/// Most messages asked for at once.
const PAGE_SIZE: usize = 100;

/// What to list.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Due at or after: a moment such as 2030-01-01T00:00:00Z, or Unix milliseconds.
    #[arg(long, value_name = "MOMENT")]
    due_from: Option<String>,
    /// Due before.
    #[arg(long, value_name = "MOMENT")]
    due_to: Option<String>,
    /// Most messages to show.
    #[arg(long, default_value_t = PAGE_SIZE)]
    limit: usize,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let remote = Remote::new(&args.target)?;
    let mut left = args.limit;
    let mut page_token: Option<String> = None;
    while left > 0 {
        let query = query(args, left.min(PAGE_SIZE), page_token.as_deref());
        let page = remote
            .send(Method::GET, "/v1/messages", &query, None)?
            .success()?;
        let messages = page.get("messages").and_then(Value::as_array);
        for message in messages.into_iter().flatten().take(left) {
            show(message, args.target.json)?;
        }
        left = left.saturating_sub(messages.map_or(0, Vec::len));
        // A page may be empty and still have a next one.
        page_token = match page.get("next_page_token").and_then(Value::as_str) {
            Some(token) if !token.is_empty() => Some(token.to_owned()),
            _ => return Ok(()),
        };
    }
    if !args.target.json {
        output::complain(&format!(
            "there may be more than {}; raise --limit or narrow the range",
            args.limit
        ));
    }
    Ok(())
}

fn query(args: &Args, page_size: usize, page_token: Option<&str>) -> Vec<(&'static str, String)> {
    let mut query = vec![("page_size", page_size.to_string())];
    let optional = [
        ("topic", args.topic.as_deref()),
        ("due_from", args.due_from.as_deref()),
        ("due_to", args.due_to.as_deref()),
        ("page_token", page_token),
    ];
    query.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?.to_owned()))),
    );
    query
}

fn show(message: &Value, json: bool) -> Result<(), Failure> {
    if json {
        return output::line(message);
    }
    output::line(format_args!(
        "{}  {}  {:<9}  {}",
        moment(message.get("due_ms")),
        field(message, "id"),
        field(message, "state"),
        field(message, "topic"),
    ))
}
