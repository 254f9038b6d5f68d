//! `nsqdelayd check-config`: the effective settings, or what is wrong with them.

use crate::cli::Failure;
use crate::cli::output;
use crate::cli::settings::Settings;
use crate::config;

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd check-config                               the defaults, all of them
  nsqdelayd check-config --config /etc/nsqdelayd.toml  what serve would run with
  NSQDELAYD_SHARDS=8 nsqdelayd check-config --claim-ttl 10s

Passwords are masked. Exit code 0: sound; 64: not, with every fault on a line of its own.";

pub(super) fn run(settings: &Settings) -> Result<(), Failure> {
    let loaded = config::load(&settings.sources())?;
    output::raw(loaded.effective().as_bytes())
}
