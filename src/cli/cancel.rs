//! `nsqdelayd cancel`: messages that shall not be delivered.

use reqwest::{Method, StatusCode};

use crate::cli::Failure;
use crate::cli::output;
use crate::cli::remote::{Remote, Target, segment};

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd cancel order-17
  nsqdelayd cancel order-17 order-18 order-19

Exit code 0: every one is cancelled; 1: at least one is not, because it is in flight or gone.";

/// What to cancel.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The ids.
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let remote = Remote::new(&args.target)?;
    let mut failed = 0_usize;
    for id in &args.ids {
        let path = format!("/v1/messages/{}", segment(id));
        let answer = remote.send(Method::DELETE, &path, &[], None)?;
        let cancelled = answer.status.is_success();
        failed += usize::from(!cancelled);
        if args.target.json {
            output::line(&answer.body)?;
        } else if cancelled {
            output::line(format_args!("{id} cancelled"))?;
        } else if matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::CONFLICT) {
            output::line(format_args!("{id} not cancelled: {}", answer.problem()))?;
        } else {
            return Err(Failure::Failed(answer.problem()));
        }
    }
    match failed {
        0 => Ok(()),
        some => Err(Failure::Failed(format!(
            "{some} of {} not cancelled",
            args.ids.len()
        ))),
    }
}
