//! A child process that ends when we do, however we do.

use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::cli::Failure;
use crate::cli::dev::program::{self, Program};

/// Redis may have a long file to read.
const START_MAX: Duration = Duration::from_mins(2);
/// One attempt to be answered.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a child may take to end when asked to; then it is killed.
const END_MAX: Duration = Duration::from_secs(10);
/// Lines of a dead child's log that are shown.
const LOG_LINES_SHOWN: usize = 5;

/// A running child.
#[derive(Debug)]
pub(in crate::cli) struct Child {
    name: &'static str,
    log: PathBuf,
    running: tokio::process::Child,
}

impl Child {
    /// Starts `program`. The kernel kills it when the calling *thread* ends, so call this on a thread
    /// that lives as long as the program.
    pub(in crate::cli) fn start(
        program: &Program,
        arguments: &[&OsStr],
        log: &Path,
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::Failed(format!(
                "{} cannot be started: {error}",
                program.path.display()
            ))
        };
        let out = File::create(log).map_err(failed)?;
        let running = tokio::process::Command::new(program::setpriv()?.path)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&program.path)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(failed)?)
            .stderr(out)
            // Ctrl-C in a terminal goes to the whole group; the children must outlive the drain.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            name: program.name,
            log: log.to_owned(),
            running,
        })
    }

    /// Completes when the child has ended by itself, with the reason. Cancel safe.
    pub(in crate::cli) async fn died(&mut self) -> Failure {
        let status = match self.running.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(LOG_LINES_SHOWN).collect();
        let last: Vec<&str> = lines.into_iter().rev().collect();
        Failure::Failed(format!(
            "{} has ended ({status}); the end of {}:\n{}",
            self.name,
            self.log.display(),
            last.join("\n")
        ))
    }

    /// Its process id, while it runs.
    pub(in crate::cli) fn pid(&self) -> Option<u32> {
        self.running.id()
    }

    /// Asks the child to end and waits for it.
    pub(in crate::cli) async fn end(&mut self) {
        let pid = self
            .running
            .id()
            .and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        let ended = asked && timeout(END_MAX, self.running.wait()).await.is_ok();
        if !ended && let Err(error) = self.running.kill().await {
            tracing::warn!(child = self.name, %error, "did not end");
        }
    }
}

/// Completes when `address` answers `question` with something that begins with `answer`.
pub(in crate::cli) async fn answering(
    name: &str,
    address: SocketAddr,
    question: &[u8],
    answer: &[u8],
) -> Result<(), Failure> {
    let asking = async {
        while !matches!(
            timeout(ANSWER_MAX, ask(address, question, answer)).await,
            Ok(Ok(true))
        ) {
            sleep(PAUSE).await;
        }
    };
    timeout(START_MAX, asking).await.map_err(|_elapsed| {
        Failure::Failed(format!(
            "{name} does not answer at {address} after {} s; see its log in the data directory",
            START_MAX.as_secs()
        ))
    })
}

async fn ask(address: SocketAddr, question: &[u8], answer: &[u8]) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(question).await?;
    let mut reply = vec![0; answer.len()];
    stream.read_exact(&mut reply).await?;
    Ok(reply == answer)
}
