//! Where the programs are that `dev` starts, and how to get those that are missing.

use std::path::{Path, PathBuf};

use crate::cli::Failure;

/// A program that was found.
#[derive(Debug)]
pub(in crate::cli) struct Program {
    /// For sentences.
    pub(in crate::cli) name: &'static str,
    /// Where it is.
    pub(in crate::cli) path: PathBuf,
}

/// Redis, or Valkey in its place.
pub(in crate::cli) fn redis() -> Result<Program, Failure> {
    find("redis-server", &[])
        .or_else(|| find("valkey-server", &[]))
        .ok_or_else(|| missing("redis-server", "apt-get install redis-server"))
}

/// nsqd: what the checkout has built, then one beside this program, then the system's.
pub(in crate::cli) fn nsqd() -> Result<Program, Failure> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    let first: Vec<PathBuf> = [Some(PathBuf::from(".tools/bin")), beside]
        .into_iter()
        .flatten()
        .collect();
    find("nsqd", &first).ok_or_else(|| {
        missing(
            "nsqd",
            "make run (it builds one), or put one into .tools/bin or PATH",
        )
    })
}

/// Lets a program end when its parent does.
pub(in crate::cli) fn setpriv() -> Result<Program, Failure> {
    find("setpriv", &[]).ok_or_else(|| missing("setpriv", "apt-get install util-linux"))
}

fn missing(name: &str, install: &str) -> Failure {
    Failure::Failed(format!(
        "{name} is not installed; install it with: {install}"
    ))
}

/// Looks in `first`, then in PATH.
fn find(name: &'static str, first: &[PathBuf]) -> Option<Program> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    first
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
        // Not canonical: redis-server may be a link, and looks at the name that it is called by.
        .and_then(|path| std::path::absolute(path).ok())
        .map(|path| Program { name, path })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    const ANYBODY_EXECUTES: u32 = 0o111;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & ANYBODY_EXECUTES != 0)
}
