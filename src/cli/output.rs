//! Standard output and standard error, written in this one place, where a closed pipe is no panic.

use std::fmt::Display;
use std::io::{self, Write as _};

use crate::cli::Failure;

/// Writes one line to standard output.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Writes a text, or any bytes, as they are.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Writes why the program ends, to standard error.
pub(super) fn complain(text: &impl Display) {
    let mut error = io::stderr().lock();
    #[expect(
        clippy::let_underscore_must_use,
        reason = "there is nowhere left to say that standard error is closed"
    )]
    let _ = writeln!(error, "nsqdelayd: {text}");
}

/// Writes how far something has come, to standard error.
pub(super) fn note(text: impl Display) {
    let mut error = io::stderr().lock();
    #[expect(
        clippy::let_underscore_must_use,
        reason = "progress that nobody reads is not missed"
    )]
    let _ = writeln!(error, "{text}");
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Failed(format!("cannot write to standard output: {error}")),
    })
}
