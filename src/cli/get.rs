//! `nsqdelayd get`: one message that has not been delivered.

use reqwest::Method;

use crate::cli::Failure;
use crate::cli::output;
use crate::cli::remote::{Remote, Target, field, moment, segment};

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd get order-17
  nsqdelayd get --json 0K3V…        the id that publish printed";

/// Which message to show.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its id.
    id: String,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let path = format!("/v1/messages/{}", segment(&args.id));
    let message = Remote::new(&args.target)?
        .send(Method::GET, &path, &[], None)?
        .success()?;
    if args.target.json {
        return output::line(message);
    }
    output::line(format_args!("id     {}", field(&message, "id")))?;
    output::line(format_args!("topic  {}", field(&message, "topic")))?;
    output::line(format_args!("due    {}", moment(message.get("due_ms"))))?;
    output::line(format_args!("state  {}", field(&message, "state")))?;
    if message
        .get("reason")
        .is_some_and(|reason| !reason.is_null())
    {
        output::line(format_args!("reason {}", field(&message, "reason")))?;
    }
    match message.get("body_base64") {
        Some(body) if !body.is_null() => {
            output::line(format_args!("base64 {}", field(&message, "body_base64")))
        }
        _ => output::line(format_args!("body   {}", field(&message, "body"))),
    }
}
