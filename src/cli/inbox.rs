//! `nsqdelayd inbox`: consumes a topic of JSON messages from nsqd and schedules them, and does nothing
//! else.

use tracing::info;

use crate::app::{Inbox, Signals};
use crate::cli::Failure;
use crate::cli::serve::{block_on, log_settings, stopped_early, unfinished};
use crate::cli::settings::Settings;
use crate::config::{self, Config};
use crate::telemetry;

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd inbox --topic schedule                            from and to what is on this machine
  nsqdelayd inbox --topic schedule --channel nsqdelayd \\
      --redis redis://10.0.0.5:6379 --nsqd-tcp-address 10.0.0.7:4150
  nsqdelayd inbox --topic schedule --lookupd 10.0.0.9:4161 --config /etc/nsqdelayd.toml

Then a service that can only publish to NSQ schedules a message by publishing JSON to that topic:
  curl -d '{\"topic\": \"orders\", \"body\": \"hello\", \"delay_ms\": 5000}' \\
      'http://10.0.0.7:4151/pub?topic=schedule'

The fields are those of POST /v1/messages. What is not valid goes to the topic schedule.invalid, with the
reason. Some instance of serve delivers what is scheduled; serve --inbox-topic does both.
SIGTERM and SIGINT finish what has been taken and stop. Exit codes as of serve.";

/// What to consume.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The topic; the same as --inbox-topic.
    #[arg(long)]
    topic: Option<String>,
    /// The channel; the same as --inbox-channel.
    #[arg(long)]
    channel: Option<String>,
    /// HTTP address of an nsqlookupd; repeatable; the same as --inbox-lookupd-http-address.
    #[arg(long, value_name = "HOST:PORT")]
    lookupd: Vec<String>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut settings = args.settings.clone();
    for (key, value) in [
        ("inbox_topic", &args.topic),
        ("inbox_channel", &args.channel),
    ] {
        if let Some(value) = value {
            settings.set(key, value.clone());
        }
    }
    if !args.lookupd.is_empty() {
        settings.set("inbox_lookupd_http_address", args.lookupd.join(","));
    }
    let loaded = config::load(&settings.sources())?;
    if loaded.config.inbox.is_none() {
        return Err(Failure::Usage(
            "name the topic to consume with --topic".to_owned(),
        ));
    }
    telemetry::start_log(&loaded.config.log).map_err(Failure::because)?;
    log_settings(&loaded);
    block_on(consume(loaded.config))
}

async fn consume(config: Config) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(Failure::because)?;
    let running = tokio::select! {
        started = Inbox::start(config) => started.map_err(Failure::because)?,
        signal = signals.next() => return Err(stopped_early(signal)),
    };
    let signal = signals.next().await;
    info!(signal, "asked to stop");
    tokio::select! {
        complete = running.drain() => if complete { Ok(()) } else { Err(unfinished()) },
        signal = signals.next() => Err(stopped_early(signal)),
    }
}
