//! The command line: one file per subcommand. Turns flags into the settings of [`crate::config`] and
//! outcomes into exit codes.

mod bench;
mod cancel;
mod check_config;
mod dev;
mod doctor;
mod get;
mod inbox;
mod list;
mod output;
mod publish;
mod remote;
mod serve;
mod settings;
mod stats;
mod tail;

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::BadConfig;

/// Exit code of a command line or configuration that is wrong, `EX_USAGE` of sysexits.h.
const EXIT_USAGE: u8 = 64;
/// Exit code of everything else that failed.
const EXIT_FAILURE: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  nsqdelayd dev                                        everything on this machine, to try it
  nsqdelayd serve --redis redis://10.0.0.5:6379 --nsqd-tcp-address 10.0.0.7:4150
  nsqdelayd doctor --config /etc/nsqdelayd.toml        is Redis fit, is nsqd there?
  nsqdelayd publish --topic orders --delay 5s 'hello'
  nsqdelayd cancel <id>

`nsqdelayd <command> --help` has examples of each command.";

/// A persistent, cancellable, sharded delay queue for NSQ.
#[derive(Debug, Parser)]
#[command(name = "nsqdelayd", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Takes delayed messages, keeps them in Redis and hands them to nsqd when due.
    #[command(after_help = serve::EXAMPLES)]
    Serve(settings::Settings),
    /// Like serve, with a private Redis and nsqd that it starts and ends.
    #[command(after_help = dev::EXAMPLES)]
    Dev(dev::Args),
    /// Prints the effective settings, or what is wrong with them (exit code 64).
    #[command(after_help = check_config::EXAMPLES)]
    CheckConfig(settings::Settings),
    /// Examines Redis and nsqd, and says what to change. Nothing is written.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Args),
    /// Consumes a topic of JSON messages from nsqd and schedules them, and does nothing else.
    #[command(after_help = inbox::EXAMPLES)]
    Inbox(inbox::Args),
    /// Publishes a message, now or later; prints its id.
    #[command(after_help = publish::EXAMPLES)]
    Publish(publish::Args),
    /// Shows a message that has not been delivered.
    #[command(after_help = get::EXAMPLES)]
    Get(get::Args),
    /// Cancels messages that have not been delivered.
    #[command(after_help = cancel::EXAMPLES)]
    Cancel(cancel::Args),
    /// Lists what is pending, by due time.
    #[command(after_help = list::EXAMPLES)]
    List(list::Args),
    /// Shows what is pending by topic, and who is connected.
    #[command(after_help = stats::EXAMPLES)]
    Stats(stats::Args),
    /// Measures: rates, lateness, processor time and memory, beside nsqd's own DPUB.
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Args),
    /// Consumes a topic from an nsqd and prints each message.
    #[command(after_help = tail::EXAMPLES)]
    Tail(tail::Args),
}

/// Why a command failed, as a sentence for the person that gave it.
#[derive(Debug)]
enum Failure {
    /// The configuration is wrong.
    Config(BadConfig),
    /// The command line is wrong beyond what clap checks.
    Usage(String),
    /// What was asked for did not happen.
    Failed(String),
    /// Standard output is closed: nobody reads on, and that is no failure.
    OutputClosed,
}

impl Failure {
    /// A failure with the sentence of `error`.
    fn because(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<BadConfig> for Failure {
    fn from(bad: BadConfig) -> Self {
        Self::Config(bad)
    }
}

/// Runs the command line and answers with the exit code of the program.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match execute(cli.command) {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Config(bad)) => {
            output::complain(&bad);
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Usage(text)) => {
            output::complain(&text);
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Failed(text)) => {
            output::complain(&text);
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(settings) => serve::run(&settings),
        Command::Dev(args) => dev::run(&args),
        Command::CheckConfig(settings) => check_config::run(&settings),
        Command::Doctor(args) => doctor::run(&args),
        Command::Inbox(args) => inbox::run(&args),
        Command::Publish(args) => publish::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Cancel(args) => cancel::run(&args),
        Command::List(args) => list::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tail(args) => tail::run(&args),
    }
}

/// Help and version are answers, everything else is a wrong command line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) if error.exit_code() == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(EXIT_USAGE),
        Err(_closed) => ExitCode::from(EXIT_FAILURE),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("nsqdelayd "), "{}", command.get_name());
        }
    }
}
