//! The real binary, started as a user starts it.

use std::path::PathBuf;
use std::process::ExitStatus;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::child::{Running, command};
use super::http::{self, Answer};
use super::nsqd::Nsqd;
use super::producer::Producer;
use super::redis::Redis;
use super::{free_port, wait};

/// How often other ports are tried when somebody else was faster.
const START_ATTEMPTS: usize = 20;

/// The flags of an instance that is not started yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Builder {
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    any_port: bool,
}

/// An instance of `nsqdelayd serve`. Its addresses stay the same over a restart.
#[derive(Debug)]
pub(crate) struct App {
    builder: Builder,
    /// `host:port` of the TCP door.
    pub(crate) tcp: String,
    /// `host:port` of the HTTP door.
    pub(crate) http: String,
    /// Before the directory, so that its end still finds the log.
    child: Running,
    dir: TempDir,
}

impl Builder {
    /// Keeps messages there.
    #[must_use]
    pub(crate) fn redis(self, redis: &Redis) -> Self {
        self.flag("--redis", &redis.url())
    }

    /// Delivers there; repeatable.
    #[must_use]
    pub(crate) fn nsqd(self, nsqd: &Nsqd) -> Self {
        self.flag("--nsqd-tcp-address", &nsqd.tcp)
    }

    /// Adds a flag with its value.
    #[must_use]
    pub(crate) fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets the instance choose its ports at the first start, by port 0.
    #[must_use]
    pub(crate) fn any_port(mut self) -> Self {
        self.any_port = true;
        self
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> App {
        let dir = TempDir::new().unwrap();
        for _ in 0..START_ATTEMPTS {
            let port = || if self.any_port { 0 } else { free_port() };
            let addresses = [port(), port()].map(|port| format!("127.0.0.1:{port}"));
            let mut child = self.spawn(&dir, &addresses);
            if let Some([tcp, http]) = ready(&mut child, &dir) {
                return App {
                    builder: self,
                    dir,
                    tcp,
                    http,
                    child,
                };
            }
            let log = child.log();
            assert!(log.contains("in use"), "nsqdelayd does not start:\n{log}");
        }
        panic!("no free ports for nsqdelayd");
    }

    /// Starts it for a case in which it refuses to start; answers its exit status and log.
    #[track_caller]
    pub(crate) fn start_refused(self) -> (ExitStatus, String) {
        let dir = TempDir::new().unwrap();
        let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        let mut child = self.spawn(&dir, &addresses);
        let status = child.wait();
        (status, child.log())
    }

    fn spawn(&self, dir: &TempDir, [tcp, http]: &[String; 2]) -> Running {
        // A file of an earlier start would be taken for this one's.
        drop(std::fs::remove_file(address_file(dir)));
        let mut serve = command(env!("CARGO_BIN_EXE_nsqdelayd").as_ref());
        serve
            .arg("serve")
            .args(["--tcp-address", tcp, "--http-address", http])
            .arg("--address-file")
            .arg(address_file(dir))
            .args(&self.flags)
            .envs(self.environment.iter().map(|(k, v)| (k, v)));
        Running::start("nsqdelayd", &mut serve, &dir.path().join("log"))
    }
}

impl App {
    /// An instance with its defaults.
    #[track_caller]
    pub(crate) fn start(redis: &Redis, nsqd: &Nsqd) -> Self {
        Self::builder().redis(redis).nsqd(nsqd).start()
    }

    /// Flags first.
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.child.kill9();
    }

    /// Asks it to drain and waits for its end.
    #[track_caller]
    pub(crate) fn sigterm_and_wait(&mut self) -> ExitStatus {
        self.child.sigterm_and_wait()
    }

    /// Starts it again on the same addresses. Kills it first if it runs.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.child.kill9();
        let addresses = [self.tcp.clone(), self.http.clone()];
        wait::until("nsqdelayd to be back on its ports", || {
            self.child = self.builder.spawn(&self.dir, &addresses);
            ready(&mut self.child, &self.dir).is_some()
        });
    }

    /// Stops its clockwork with SIGSTOP: connections stay, nothing answers.
    pub(crate) fn pause(&self) {
        self.child.signal(Signal::STOP);
    }

    /// Lets it go on after [`Self::pause`].
    pub(crate) fn cont(&self) {
        self.child.signal(Signal::CONT);
    }

    /// The program.
    pub(crate) fn child(&self) -> &Running {
        &self.child
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.child.log()
    }

    /// `host:port` of the HTTPS door.
    pub(crate) fn https(&self) -> String {
        let text = std::fs::read(address_file(&self.dir)).unwrap();
        let file: Value = serde_json::from_slice(&text).unwrap();
        file["https_address"].as_str().unwrap().to_owned()
    }

    /// The most memory that it has had, in KiB.
    pub(crate) fn memory_peak_kib(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.pid());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse().unwrap()
    }

    /// A V2 connection to its TCP door.
    #[track_caller]
    pub(crate) fn producer(&self) -> Producer {
        Producer::connect(&self.tcp)
    }

    /// GET on its HTTP door.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        http::get(&self.http, path)
    }

    /// POST on its HTTP door.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Answer {
        http::post(&self.http, path, body)
    }

    /// POST of JSON on its HTTP door.
    #[track_caller]
    pub(crate) fn post_json(&self, path: &str, body: &Value) -> Answer {
        http::post_json(&self.http, path, body)
    }

    /// Creates a message of each body with one request, and returns their ids.
    #[track_caller]
    pub(crate) fn create_all(&self, topic: &str, delay_ms: u64, bodies: &[String]) -> Vec<Value> {
        let message = |body| json!({"topic": topic, "body": body, "delay_ms": delay_ms});
        let messages: Vec<_> = bodies.iter().map(message).collect();
        let created = self.post_json("/v1/messages:batch", &json!({"messages": messages}));
        let created = created.json();
        assert_eq!(created["successful"], bodies.len(), "{created}");
        let results = created["results"].as_array().unwrap();
        results.iter().map(|r| r["message"]["id"].clone()).collect()
    }

    /// DELETE on its HTTP door.
    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> Answer {
        http::once(&self.http, "DELETE", path, b"")
    }

    /// The sum of a metric over its labels, of those lines that contain `labels`,
    /// which is written in lower case; 0 if it has none.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get("/metrics").text();
        text.lines()
            .filter(|line| {
                let rest = line
                    .strip_prefix("nsqdelayd_")
                    .and_then(|line| line.strip_prefix(name));
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && line.to_ascii_lowercase().contains(labels)
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

fn address_file(dir: &TempDir) -> PathBuf {
    dir.path().join("addresses.json")
}

/// Waits for the address file; `None`: the program has ended.
fn ready(child: &mut Running, dir: &TempDir) -> Option<[String; 2]> {
    let mut addresses = None;
    let mut ended = false;
    wait::until("nsqdelayd to be ready", || {
        addresses = read_addresses(dir);
        ended = addresses.is_none() && child.exited().is_some();
        addresses.is_some() || ended
    });
    addresses
}

fn read_addresses(dir: &TempDir) -> Option<[String; 2]> {
    // The file may be read while it is written: then it is not JSON yet.
    let text = std::fs::read(address_file(dir)).ok()?;
    let file: Value = serde_json::from_slice(&text).ok()?;
    let address = |key: &str| Some(file.get(key)?.as_str()?.to_owned());
    Some([address("tcp_address")?, address("http_address")?])
}
