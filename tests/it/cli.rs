//! The command line as a user sees it: help, exit codes, sentences.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::free_port;

fn nsqdelayd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsqdelayd"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    nsqdelayd(arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A command that must fail with this exit code and say `part`.
#[track_caller]
fn check_fails(arguments: &[&str], code: i32, part: &str) {
    let output = run(arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {}",
        err(&output)
    );
    assert!(
        err(&output).contains(part),
        "{arguments:?}: {}",
        err(&output)
    );
}

#[test]
fn help_has_examples_and_exits_with_0() {
    for command in [
        "serve",
        "dev",
        "check-config",
        "doctor",
        "inbox",
        "publish",
        "get",
        "cancel",
        "list",
        "stats",
        "tail",
        "bench",
    ] {
        let output = run(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(
            out(&output).contains("Examples:\n  nsqdelayd"),
            "{}",
            out(&output)
        );
    }
    assert!(out(&run(&["--version"])).starts_with("nsqdelayd "));
}

#[test]
fn serve_help_has_every_setting_with_default_and_variable() {
    let help = out(&run(&["serve", "--help"]));
    // Lines may be broken anywhere between words.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let default = include_str!("../../config/default.toml");
    let keys = default.lines().filter_map(|line| line.split_once(" = "));
    for (key, _) in keys.filter(|(key, _)| !key.starts_with('#')) {
        let flag = format!("--{}", key.replace('_', "-"));
        let variable = format!("[env: NSQDELAYD_{}]", key.to_uppercase());
        assert!(help.contains(&flag), "{flag}");
        assert!(help.contains(&variable), "{variable}");
    }
}

#[test]
fn check_config_prints_what_it_can_read_back() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("n.toml");
    let printed = run(&[
        "check-config",
        "--shards",
        "8",
        "--redis",
        "redis://u:hunter2@h:1",
    ]);
    assert_eq!(printed.status.code(), Some(0));
    assert!(!out(&printed).contains("hunter2"));
    fs::write(&file, out(&printed)).unwrap();
    let again = run(&["check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(0), "{}", err(&again));
    assert!(out(&again).contains("shards = 8 # from "));
}

#[test]
fn flags_win_over_variables() {
    let output = nsqdelayd(&["check-config", "--shards", "9"])
        .env("NSQDELAYD_SHARDS", "10")
        .env("NSQDELAYD_POLLERS", "3")
        .output()
        .unwrap();
    assert!(out(&output).contains("shards = 9 # from --shards"));
    assert!(out(&output).contains("pollers = 3 # from NSQDELAYD_POLLERS"));
}

#[test]
fn a_wrong_configuration_exits_with_64_and_names_key_and_remedy() {
    check_fails(
        &["check-config", "--shards", "0"],
        64,
        "shards = \"0\" (from --shards)",
    );
    check_fails(
        &["serve", "--claim-ttl", "1s"],
        64,
        "raise claim_ttl or lower forward_timeout",
    );
    check_fails(
        &["serve", "--config", "/nonexistent.toml"],
        64,
        "cannot be read",
    );
    check_fails(&["serve", "--no-such-flag"], 64, "--no-such-flag");
    check_fails(&["dev", "--redis", "redis://h:1"], 64, "--redis-port");
    check_fails(&["inbox"], 64, "--topic");
    check_fails(
        &["serve", "--inbox-topic", &"x".repeat(57)],
        64,
        ".invalid can be appended",
    );
    check_fails(&["doctor", "--dpub"], 64, "--nsqd-tcp-address");
    check_fails(
        &["publish", "--topic", "t", "--delay", "soon", "x"],
        64,
        "250ms",
    );
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("n.toml");
    fs::write(&file, "tcp_adress = \"127.0.0.1:1\"\n").unwrap();
    check_fails(
        &["check-config", "--config", file.to_str().unwrap()],
        64,
        "did you mean tcp_address?",
    );
}

#[test]
fn an_address_in_use_is_named_with_its_key() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = [
        "serve",
        "--tcp-address",
        &address,
        "--http-address",
        "127.0.0.1:0",
    ];
    check_fails(&arguments, 1, "tcp_address: cannot listen on");
}

#[test]
fn commands_say_when_no_server_answers() {
    let address = format!("127.0.0.1:{}", free_port());
    for command in [
        vec!["publish", "--topic", "t", "x"],
        vec!["get", "x"],
        vec!["cancel", "x"],
        vec!["list"],
        vec!["stats"],
    ] {
        let mut arguments = command;
        arguments.extend(["--http-address", &address]);
        check_fails(&arguments, 1, "no nsqdelayd answers at");
    }
    let arguments = ["tail", "--topic", "t", "--nsqd-tcp-address", &address];
    check_fails(&arguments, 1, "no nsqd answers at");
}
