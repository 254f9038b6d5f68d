//! `nsqdelayd publish`: one message, now or later.

use std::io::Read as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Map, Value};

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

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let body = match &args.body {
        Some(text) => text.clone().into_bytes(),
        None => standard_input()?,
    };
    let answer = Remote::new(&args.target)?
        .send(
            Method::POST,
            "/v1/messages",
            &[],
            Some(&request(&args, &body)),
        )?
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

fn request(args: &Args, body: &[u8]) -> Value {
    let mut request = Map::new();
    let mut put = |name: &str, value: Value| drop(request.insert(name.to_owned(), value));
    put("topic", args.topic.clone().into());
    match str::from_utf8(body) {
        Ok(text) => put("body", text.into()),
        Err(_not_text) => put("body_base64", STANDARD.encode(body).into()),
    }
    if let Some(delay) = args.delay {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        put("delay_ms", ms.into());
    }
    if let Some(at) = &args.at {
        put(
            "deliver_at",
            at.parse::<u64>()
                .map_or_else(|_| at.clone().into(), Value::from),
        );
    }
    if let Some(id) = &args.id {
        put("id", id.clone().into());
    }
    Value::Object(request)
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
