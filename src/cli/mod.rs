//! The command line: one file per subcommand.

use std::process::ExitCode;

/// Runs the command line and answers with the process's exit code.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
