//! `nsqdelayd serve`: the server until a signal.

use std::future::Future;

use tracing::{info, warn};

use crate::app::{App, Signals};
use crate::cli::Failure;
use crate::cli::settings::Settings;
use crate::config::{self, Loaded};
use crate::telemetry;

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd serve                                     Redis and nsqd on this machine
  nsqdelayd serve --config /etc/nsqdelayd.toml
  nsqdelayd serve --redis redis://10.0.0.5:6379 \\
      --nsqd-tcp-address 10.0.0.7:4150 --nsqd-tcp-address 10.0.0.8:4150
  NSQDELAYD_REDIS=redis://10.0.0.5:6379 nsqdelayd serve --tcp-address :4140

SIGTERM and SIGINT drain and stop; a second one stops at once.
Exit codes: 0 stopped in order, 1 failed or stopped before all was done, 64 wrong configuration.";

pub(super) fn run(settings: &Settings) -> Result<(), Failure> {
    let loaded = config::load(&settings.sources())?;
    telemetry::start_log(&loaded.config.log).map_err(Failure::because)?;
    log_settings(&loaded);
    block_on(serve(loaded))
}

/// Says what differs from the defaults, once.
pub(super) fn log_settings(loaded: &Loaded) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        changed = %loaded.changed(),
        "nsqdelayd; check-config prints all settings"
    );
    for variable in &loaded.layers.unknown_variables {
        warn!(%variable, "names no setting and is ignored");
    }
}

/// Runs `future` on a new runtime, on the calling thread.
pub(super) fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::because)?
        .block_on(future)
}

async fn serve(loaded: Loaded) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(Failure::because)?;
    let app = tokio::select! {
        started = App::start(loaded.config) => started.map_err(Failure::because)?,
        // Nothing has been taken yet, so there is nothing to drain.
        signal = signals.next() => return Err(stopped_early(signal)),
    };
    let signal = signals.next().await;
    info!(signal, "asked to stop");
    drain(app, &mut signals).await
}

/// Ends `app` in order; a second signal gives up.
pub(super) async fn drain(app: App, signals: &mut Signals) -> Result<(), Failure> {
    tokio::select! {
        complete = app.drain() => if complete { Ok(()) } else { Err(unfinished()) },
        signal = signals.next() => Err(stopped_early(signal)),
    }
}

pub(super) fn unfinished() -> Failure {
    Failure::Failed(
        "stopped before everything was finished; what is left is delivered by the next owner of its \
         shards; raise drain_timeout to give a stop more time"
            .to_owned(),
    )
}

pub(super) fn stopped_early(signal: &str) -> Failure {
    Failure::Failed(format!("stopped at once by {signal}"))
}
