//! `nsqdelayd doctor`: examines Redis and nsqd, and says what to change.

use serde_json::json;
use tokio::signal::ctrl_c;

use crate::cli::Failure;
use crate::cli::output;
use crate::cli::serve::block_on;
use crate::cli::settings::Settings;
use crate::config::{self, Config};
use crate::doctor::{self, MESSAGES_MAX, Plan, Report};
use crate::finding::{Finding, Level};

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd doctor                                   Redis and nsqd on this machine
  nsqdelayd doctor --config /etc/nsqdelayd.toml      those that serve would use
  nsqdelayd doctor --redis redis://10.0.0.5:6379 --nsqd-tcp-address 10.0.0.7:4150
  nsqdelayd doctor --json | jq '.findings[] | select(.level != \"ok\")'
  nsqdelayd doctor --dpub --nsqd-tcp-address 10.0.0.7:4150 --nsqd-http-address 10.0.0.7:4151

Without --nsqd-http-address, nsqd's HTTP API is looked for at the port after its TCP port.
Without --dpub nothing is written anywhere. --dpub publishes messages to topics of its own on the nsqd
that is named (what exactly, it says first), consumes them, and deletes the topics. It measures how
late nsqd's own DPUB is, how much of it comes early, and what its limits are; about 25 s.
Exit codes: 0 no error found, 1 an error found, 64 wrong configuration.";

/// What to examine.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Prints the findings as JSON.
    #[arg(long)]
    json: bool,
    /// Tests whether the own DPUB of the nsqd that --nsqd-tcp-address names can be trusted. Publishes
    /// to it.
    #[arg(long)]
    dpub: bool,
    /// Messages of the test for early delivery. Default: 1,000 more than nsqd's --mem-queue-size.
    #[arg(long, value_name = "N", requires = "dpub")]
    dpub_messages: Option<usize>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.dpub && args.settings.given("nsqd_tcp_address").is_none() {
        return Err(Failure::Usage(
            "--dpub publishes: name the nsqd to test with --nsqd-tcp-address".to_owned(),
        ));
    }
    if args.dpub_messages.is_some_and(|n| n > MESSAGES_MAX) {
        return Err(Failure::Usage(format!(
            "--dpub-messages: at most {MESSAGES_MAX}"
        )));
    }
    let loaded = config::load(&args.settings.sources())?;
    block_on(examine(args, loaded.config))
}

async fn examine(args: &Args, config: Config) -> Result<(), Failure> {
    let mut report = doctor::examine(&config).await;
    if !args.json {
        show(&report, 0)?;
    }
    if args.dpub {
        for (address, http) in config.forward.nsqds() {
            let shown = report.findings.len();
            // One that cannot be reached has its finding already.
            if let Ok(plan) = Plan::make(address, http, args.dpub_messages, &config).await {
                test_dpub(&plan, &mut report).await?;
            }
            if !args.json {
                show(&report, shown)?;
            }
        }
    }
    conclude(args, &report)
}

/// Says what it will do, and does it; an interrupt ends it in order.
async fn test_dpub(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    for sentence in plan.sentences() {
        output::complain(&sentence);
    }
    tokio::select! {
        () = doctor::test_dpub(plan, report) => Ok(()),
        _ = ctrl_c() => {
            let left = plan.clean_up().await.unwrap_or_default();
            Err(Failure::Failed(format!("interrupted. {left}")))
        }
    }
}

fn conclude(args: &Args, report: &Report) -> Result<(), Failure> {
    let [errors, warnings] = [Level::Error, Level::Warning].map(|level| report.count(level));
    if args.json {
        output::line(json!({
            "errors": errors,
            "warnings": warnings,
            "findings": report.findings,
        }))?;
    }
    match errors {
        0 if args.json => Ok(()),
        0 => output::line(format_args!("errors: 0, warnings: {warnings}")),
        _ => Err(Failure::Failed(format!(
            "errors: {errors}, warnings: {warnings}"
        ))),
    }
}

/// Prints the findings from number `from` on, under their subjects.
fn show(report: &Report, from: usize) -> Result<(), Failure> {
    let mut subject = "";
    for sighting in report.findings.iter().skip(from) {
        if sighting.subject != subject {
            subject = &sighting.subject;
            output::line(subject)?;
        }
        show_one(&sighting.finding)?;
    }
    Ok(())
}

fn show_one(finding: &Finding) -> Result<(), Failure> {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Remark => "remark",
        Level::Warning => "WARNING",
        Level::Error => "ERROR",
    };
    output::line(format_args!("  {level:<8} {}", finding.what))?;
    if !finding.why.is_empty() {
        output::line(format_args!("           {}", finding.why))?;
    }
    if !finding.remedy.is_empty() {
        output::line(format_args!("           -> {}", finding.remedy))?;
    }
    Ok(())
}
