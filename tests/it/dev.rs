//! `nsqdelayd dev`: a private Redis and nsqd that end with it, and messages that survive it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::child::{Running, command};
use crate::support::wait;

/// A running `dev` and what it has printed about itself.
struct Dev {
    running: Running,
    http: String,
}

impl Dev {
    #[track_caller]
    fn start(dir: &Path) -> Self {
        let mut dev = command(env!("CARGO_BIN_EXE_nsqdelayd").as_ref());
        let address_file = dir.join("addresses.json");
        drop(fs::remove_file(&address_file));
        dev.arg("dev")
            .arg("--data-dir")
            .arg(dir.join("kept"))
            .arg("--address-file")
            .arg(&address_file);
        for flag in [
            "tcp-address",
            "http-address",
            "nsqd-tcp-address",
            "nsqd-http-address",
        ] {
            dev.args([format!("--{flag}"), "127.0.0.1:0".to_owned()]);
        }
        let mut running = Running::start("dev", &mut dev, &dir.join("log"));
        wait::until("dev to be ready", || {
            if let Some(status) = running.exited() {
                panic!("dev ended: {status}\n{}", running.log());
            }
            address_file.exists() && running.log().contains("dev is ready")
        });
        let addresses: Value = serde_json::from_slice(&fs::read(&address_file).unwrap()).unwrap();
        Self {
            http: addresses["http_address"].as_str().unwrap().to_owned(),
            running,
        }
    }

    /// Runs a command that talks to it.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_nsqdelayd"))
            .args(arguments)
            .args(["--http-address", &self.http])
            .output()
            .unwrap()
    }

    /// Publishes and answers the id.
    #[track_caller]
    fn publish(&self, delay: &str, body: &str) -> String {
        let output = self.run(&["publish", "--topic", "orders", "--delay", delay, body]);
        assert!(output.status.success(), "{output:?}");
        let line = String::from_utf8(output.stdout).unwrap();
        line.split(' ').next().unwrap().to_owned()
    }

    /// Runs the `tail` line that it printed until a message has come; answers what tail printed.
    #[track_caller]
    fn tail(&self, dir: &Path) -> String {
        let log = self.running.log();
        let line = log.lines().find(|line| line.contains(" tail ")).unwrap();
        let mut words = line.split_whitespace();
        let mut tail = command(words.next().unwrap().as_ref());
        tail.args(words).args(["--count", "1"]);
        let mut tail = Running::start("tail", &mut tail, &dir.join("tail.log"));
        assert!(tail.wait().success());
        tail.log()
    }
}

/// One line of `/proc/<pid>/status`.
fn status_of(pid: u32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1).map(ToOwned::to_owned)
}

fn children_of(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid| status_of(*pid, "PPid:") == Some(parent.to_string()))
        .collect()
}

/// One that has ended and that nobody has waited for is gone too.
fn is_gone(pid: u32) -> bool {
    status_of(pid, "State:").is_none_or(|state| state == "Z")
}

#[test]
fn the_three_printed_lines_publish_deliver_and_cancel() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path());
    dev.publish("100ms", "hello");
    assert_eq!(dev.tail(dir.path()), "hello\n");
    let id = dev.publish("1h", "never");
    assert!(dev.run(&["get", &id]).status.success());
    let listed = dev.run(&["list", "--topic", "orders"]);
    assert!(String::from_utf8(listed.stdout).unwrap().contains(&id));
    assert!(dev.run(&["cancel", &id]).status.success());
    assert_eq!(dev.run(&["get", &id]).status.code(), Some(1));
    assert!(dev.run(&["stats"]).status.success());
}

#[test]
fn children_end_with_dev_and_messages_stay_also_after_kill_9() {
    let dir = TempDir::new().unwrap();
    let mut dev = Dev::start(dir.path());
    let id = dev.publish("1h", "kept");
    let children = children_of(dev.running.pid());
    assert_eq!(children.len(), 2, "a Redis and an nsqd");
    dev.running.kill9();
    wait::until("the children of a killed dev to end", || {
        children.iter().all(|pid| is_gone(*pid))
    });

    let mut dev = Dev::start(dir.path());
    assert!(dev.run(&["get", &id]).status.success());
    let children = children_of(dev.running.pid());
    assert!(dev.running.sigterm_and_wait().success());
    assert!(children.iter().all(|pid| is_gone(*pid)));
}

#[test]
fn dev_ends_with_an_error_when_a_child_dies() {
    let dir = TempDir::new().unwrap();
    let mut dev = Dev::start(dir.path());
    let children = children_of(dev.running.pid());
    let nsqd = children
        .iter()
        .find(|pid| status_of(**pid, "Name:").as_deref() == Some("nsqd"))
        .unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(*nsqd).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(dev.running.wait().code(), Some(1));
    assert!(
        dev.running.log().contains("nsqd has ended"),
        "{}",
        dev.running.log()
    );
    assert!(children.iter().all(|pid| is_gone(*pid)));
}

#[test]
fn two_devs_do_not_share_a_directory() {
    let dir = TempDir::new().unwrap();
    let _dev = Dev::start(dir.path());
    let second = Command::new(env!("CARGO_BIN_EXE_nsqdelayd"))
        .args(["dev", "--data-dir"])
        .arg(dir.path().join("kept"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(
        said.contains("another `nsqdelayd dev` runs in it"),
        "{said}"
    );
}
