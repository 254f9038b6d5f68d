//! `nsqdelayd stats`: what is pending by topic, and who is connected.

use reqwest::Method;
use serde_json::Value;

use crate::cli::Failure;
use crate::cli::output;
use crate::cli::remote::{Remote, Target, field};

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd stats
  nsqdelayd stats --json --http-address 10.0.0.5:4141";

/// Where to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let query = [("format", "json".to_owned())];
    let stats = Remote::new(&args.target)?
        .send(Method::GET, "/stats", &query, None)?
        .success()?;
    if args.target.json {
        return output::line(stats);
    }
    let list = |name: &str| {
        stats
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    output::line(format_args!(
        "health {} (as nsqd {})",
        field(&stats, "health"),
        field(&stats, "version")
    ))?;
    let mut pending = 0;
    for topic in list("topics") {
        pending += topic.get("depth").and_then(Value::as_u64).unwrap_or(0);
        output::line(format_args!(
            "{:>12} pending on {}",
            field(topic, "depth"),
            field(topic, "topic_name")
        ))?;
    }
    output::line(format_args!("{pending:>12} pending in all"))?;
    for producer in list("producers") {
        let counts = producer.get("pub_counts").and_then(Value::as_array);
        let counts = counts.into_iter().flatten();
        let counts = counts.filter_map(|topic| topic.get("count")?.as_u64());
        output::line(format_args!(
            "producer {} ({}) sent {}",
            field(producer, "remote_address"),
            field(producer, "user_agent"),
            counts.sum::<u64>(),
        ))?;
    }
    Ok(())
}
