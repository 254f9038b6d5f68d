//! `nsqdelayd publish`: one message, now or later.

use std::io::Read as _;
use std::time::Duration;

use reqwest::Method;

use crate::cli::Failure;
use crate::cli::output;
use crate::cli::remote::{Remote, Target, field, moment};
use crate::config::units;

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd publish --topic orders --delay 5s 'hello'
  nsqdelayd publish --topic orders --at 2030-01-01T00:00:00Z < invoice.json
  nsqdelayd publish --topic orders --delay 1h --id order-17 'pay up'   an id of your own";

/// What to publish.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Topic to publish to, 1 to 64 of [.a-zA-Z0-9_-].
    #[arg(long)]
    topic: String,
    /// How long to wait: 250ms, 5s, 1h, or a whole number of ms. Default: now.
    #[arg(long, value_parser = delay, conflicts_with = "at")]
    delay: Option<Duration>,
    /// When to deliver: a moment such as 2030-01-01T00:00:00Z, or Unix milliseconds.
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// An id of your own; publishing the same again is then recognised.
    #[arg(long)]
    id: Option<String>,
    /// The body; from standard input if not given.
    body: Option<String>,
    #[command(flatten)]
    target: Target,
}

fn delay(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "write 250ms, 5s, 1h or a whole number of ms".to_owned())
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let body = match &args.body {
        Some(text) => text.clone().into_bytes(),
        None => standard_input()?,
    };
    let answer = Remote::new(&args.target)?
        .send(Method::POST, "/v1/messages", &query(args), Some(body))?
        .success()?;
    if args.target.json {
        return output::line(answer);
    }
    output::line(format_args!(
        "{} due {} on {}",
        field(&answer, "id"),
        moment(answer.get("due_ms")),
        args.topic
    ))
}

/// Everything but the body, which goes as it is: no encoding can change or lengthen it.
fn query(args: &Args) -> Vec<(&'static str, String)> {
    let optional = [
        (
            "delay_ms",
            args.delay.map(|delay| delay.as_millis().to_string()),
        ),
        ("deliver_at", args.at.clone()),
        ("id", args.id.clone()),
    ];
    let mut query = vec![("topic", args.topic.clone())];
    query.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    query
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut body)
        .map_err(|error| Failure::Failed(format!("cannot read standard input: {error}")))?;
    if body.is_empty() {
        return Err(Failure::Usage(
            "the body is empty: give it as the last argument or on standard input".to_owned(),
        ));
    }
    Ok(body)
}
