//! One program that a test runs: its pid, its log, its end. Knows nothing of what it runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{find_tool, wait};

/// How much of a log is shown when its test fails, in bytes from the end.
const LOG_SHOWN_BYTES: usize = 16 * 1024;

/// A running (or ended) program.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

/// A command that dies with the calling thread, also when that is killed.
pub(crate) fn command(program: &Path) -> Command {
    let Some(setpriv) = find_tool("setpriv") else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

impl Running {
    /// Starts `command` with both outputs appended to the file `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    /// The program's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it; one that has ended does not mind.
    pub(crate) fn signal(&self, signal: Signal) {
        #[expect(clippy::let_underscore_must_use, reason = "it may have ended")]
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Kills it with SIGKILL and waits for its end.
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Asks it to end with SIGTERM and waits for that.
    #[track_caller]
    pub(crate) fn sigterm_and_wait(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let what = format!("the end of {}", self.name);
        wait::until(&what, || {
            status = self.exited();
            status.is_some()
        });
        status.unwrap()
    }

    /// Its exit status, if it has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until SIGSTOP has reached every thread: the signal returns before.
    pub(crate) fn wait_stopped(&self) {
        let threads = format!("/proc/{}/task", self.pid());
        wait::until("every thread to be stopped", || {
            fs::read_dir(&threads).unwrap().all(|thread| {
                let stat = fs::read_to_string(thread.unwrap().path().join("stat"));
                stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().starts_with(" T"))
            })
        });
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Seconds on a CPU so far, all threads that live. The kernel counts nanoseconds in schedstat,
    /// where `stat` knows only ticks of 10 ms.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let nanos = threads
            .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("schedstat")).ok())
            .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
            .sum();
        Duration::from_nanos(nanos).as_secs_f64()
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory that it has ever had, in bytes.
    pub(crate) fn resident_peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        kilobytes.unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            // The log may be gone; a panic here would hide the test's own.
            let log = fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let start = log.floor_char_boundary(log.len().saturating_sub(LOG_SHOWN_BYTES));
            eprintln!("--- log of {} ---\n{}---", self.name, &log[start..]);
        }
    }
}
