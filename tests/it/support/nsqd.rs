//! A real nsqd and nsqlookupd of the test's own.

use std::path::Path;
use std::process::ExitStatus;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::child::{Running, command};
use super::http;
use super::{free_port, tool, wait};

/// How often other ports are tried when somebody else was faster.
const START_ATTEMPTS: usize = 20;

/// An nsqd with its own ports and directory, all kept over a restart.
#[derive(Debug)]
pub(crate) struct Nsqd {
    /// `host:port` of its TCP protocol.
    pub(crate) tcp: String,
    /// `host:port` of its HTTP API.
    pub(crate) http: String,
    server: Server,
}

/// An nsqlookupd.
#[derive(Debug)]
pub(crate) struct Nsqlookupd {
    /// `host:port` to which nsqds register.
    pub(crate) tcp: String,
    /// `host:port` where clients ask.
    pub(crate) http: String,
    server: Server,
}

impl Nsqd {
    /// An nsqd with its defaults.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments, as `"--max-msg-size=1024"`.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        let mut all = vec!["--data-path=.", "--broadcast-address=127.0.0.1"];
        all.extend(args);
        let server = Server::start("nsqd", &all);
        Self {
            tcp: format!("127.0.0.1:{}", server.ports.0),
            http: format!("127.0.0.1:{}", server.ports.1),
            server,
        }
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.server.child.kill9();
    }

    /// Ends it with SIGTERM: it writes what it holds to its directory.
    pub(crate) fn sigterm_and_wait(&mut self) -> ExitStatus {
        self.server.child.sigterm_and_wait()
    }

    /// Starts it again, on the same ports with the same files. Kills it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.server.restart();
    }

    /// Stops its clockwork with SIGSTOP: connections stay, nothing answers.
    pub(crate) fn pause(&self) {
        self.server.child.signal(Signal::STOP);
    }

    /// Lets it go on after [`Self::pause`].
    pub(crate) fn cont(&self) {
        self.server.child.signal(Signal::CONT);
    }

    /// The server.
    pub(crate) fn child(&self) -> &Running {
        &self.server.child
    }

    /// Its `/stats`.
    pub(crate) fn stats(&self) -> Value {
        http::get(&self.http, "/stats?format=json").json()
    }

    /// Messages that it has ever taken for `topic`.
    pub(crate) fn message_count(&self, topic: &str) -> u64 {
        self.topic_number(topic, "message_count")
    }

    /// Messages of `topic` that wait for a channel.
    pub(crate) fn depth(&self, topic: &str) -> u64 {
        self.topic_number(topic, "depth")
    }

    fn topic_number(&self, topic: &str, key: &str) -> u64 {
        let stats = self.stats();
        let topics = stats["topics"].as_array().cloned().unwrap_or_default();
        topics
            .iter()
            .filter(|t| t["topic_name"] == topic)
            .map(|t| t[key].as_u64().unwrap())
            .sum()
    }

    /// Makes a topic, so that it can be looked at before the first message.
    pub(crate) fn create_topic(&self, topic: &str) {
        self.post(&format!("/topic/create?topic={topic}"));
    }

    /// Makes a channel, so that messages go to it from now on.
    pub(crate) fn create_channel(&self, topic: &str, channel: &str) {
        self.create_topic(topic);
        self.post(&format!("/channel/create?topic={topic}&channel={channel}"));
    }

    fn post(&self, path: &str) {
        let answer = http::post(&self.http, path, b"");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
}

impl Nsqlookupd {
    /// An nsqlookupd with its defaults.
    pub(crate) fn start() -> Self {
        let server = Server::start("nsqlookupd", &["--broadcast-address=127.0.0.1"]);
        Self {
            tcp: format!("127.0.0.1:{}", server.ports.0),
            http: format!("127.0.0.1:{}", server.ports.1),
            server,
        }
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.server.child.kill9();
    }

    /// Starts it again on the same ports.
    pub(crate) fn restart(&mut self) {
        self.server.restart();
    }
}

/// What the two have in common: a TCP and an HTTP port, and a log that says when both listen.
#[derive(Debug)]
struct Server {
    name: &'static str,
    args: Vec<String>,
    ports: (u16, u16),
    /// Before the directory, so that its end still finds the log.
    child: Running,
    dir: TempDir,
}

impl Server {
    fn start(name: &'static str, args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        for _ in 0..START_ATTEMPTS {
            let ports = (free_port(), free_port());
            let (child, listening) = Self::spawn(name, dir.path(), &args, ports);
            if listening {
                return Self {
                    name,
                    args,
                    ports,
                    child,
                    dir,
                };
            }
            let log = child.log();
            assert!(log.contains("in use"), "{name} does not start:\n{log}");
        }
        panic!("no free ports for {name}");
    }

    /// Starts it and waits until its log says that it listens; `false`: it has ended.
    fn spawn(name: &str, dir: &Path, args: &[String], ports: (u16, u16)) -> (Running, bool) {
        let log = dir.join("log");
        let logged = std::fs::metadata(&log).map_or(0, |file| file.len());
        let mut program = command(&tool(name));
        program
            .current_dir(dir)
            .arg(format!("--tcp-address=127.0.0.1:{}", ports.0))
            .arg(format!("--http-address=127.0.0.1:{}", ports.1))
            .args(args);
        let mut child = Running::start(name, &mut program, &log);
        let mut listening = false;
        wait::until(&format!("{name} to listen"), || {
            let text = child.log();
            let text = &text[usize::try_from(logged).unwrap()..];
            listening = text.contains("TCP: listening on") && text.contains("HTTP: listening on");
            listening || child.exited().is_some()
        });
        (child, listening)
    }

    fn restart(&mut self) {
        self.child.kill9();
        let what = format!("{} to be back on its ports", self.name);
        wait::until(&what, || {
            let (child, listening) =
                Self::spawn(self.name, self.dir.path(), &self.args, self.ports);
            self.child = child;
            listening
        });
    }
}
