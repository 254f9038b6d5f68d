//! The official clients, of which only the address is changed.

use std::process::{Command, Output};

use crate::support::app::App;
use crate::support::child::command;
use crate::support::consumer::Consumer;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::{checkout, tool};

const TOPIC: &str = "interop";

fn succeeds(client: &mut Command) -> Output {
    let output = client.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let faults = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{faults}");
    output
}

/// What both scripts publish.
fn script_bodies() -> Vec<String> {
    let deferred = (0..10).map(|number| format!("dpub-{number}"));
    let direct = ["pub", "mpub-1", "mpub-2"].map(str::to_owned);
    direct.into_iter().chain(deferred).collect()
}

fn expect_once_each(consumer: &Consumer, bodies: &[String]) {
    consumer.wait_distinct(bodies.len());
    for body in bodies {
        assert_eq!(consumer.copies_of(body.as_bytes()), 1, "{body}");
    }
}

#[test]
fn go_nsq_publishes_in_every_way_and_sees_nsqds_errors() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let output =
        succeeds(command(&tool("interop")).args(["publish", "-tcp", &app.tcp, "-topic", TOPIC]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("2 MiB: E_BAD_MESSAGE"), "{text}");
    let mut bodies: Vec<String> = (0..100).map(|number| format!("async-{number}")).collect();
    bodies.extend(["pub", "mpub-1", "mpub-2", "dpub", "after-refusal"].map(str::to_owned));
    expect_once_each(&consumer, &bodies);
}

#[test]
fn pynsq_publishes_and_defers() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let python = checkout().join(".tools/python/bin/python");
    assert!(python.is_file(), "pynsq is not installed: run `make tools`");
    succeeds(
        command(&python)
            .arg(checkout().join("tests/interop/python/publish.py"))
            .args([&app.tcp, TOPIC, "100"]),
    );
    expect_once_each(&consumer, &script_bodies());
}

#[test]
fn nsqjs_publishes_and_defers() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let modules = checkout().join(".tools/node/node_modules");
    assert!(modules.is_dir(), "nsqjs is not installed: run `make tools`");
    let (host, port) = app.tcp.split_once(':').unwrap();
    succeeds(
        command(&tool("node"))
            .env("NODE_PATH", modules)
            .arg(checkout().join("tests/interop/node/publish.js"))
            .args([host, port, TOPIC, "100"]),
    );
    expect_once_each(&consumer, &script_bodies());
}

/// The demo that users run, against an instance of the test's own.
#[test]
fn the_demo_keeps_its_promises() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    succeeds(command(&tool("interop")).args([
        "demo", "-tcp", &app.tcp, "-http", &app.http, "-nsqd", &nsqd.tcp,
    ]));
}
