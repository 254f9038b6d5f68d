//! The official and the common clients, of which only the address is changed. What they ask for beside
//! the plain protocol, nsqd is asked for by the same code.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use crate::support::app::App;
use crate::support::certificates::Certificates;
use crate::support::child::command;
use crate::support::consumer::Consumer;
use crate::support::nsqd::Nsqd;
use crate::support::producer::Producer;
use crate::support::redis::Redis;
use crate::support::{checkout, tool, wait};

const TOPIC: &str = "interop";
const SECRET: &str = "interop-0123456789";

fn succeeds(client: &mut Command) -> Output {
    let output = client.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let faults = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{client:?}: {text}{faults}");
    output
}

/// What the scripts publish.
fn script_bodies() -> Vec<String> {
    let deferred = (0..10).map(|number| format!("dpub-{number}"));
    let direct = ["pub", "mpub-1", "mpub-2"].map(str::to_owned);
    direct.into_iter().chain(deferred).collect()
}

/// What go-nsq publishes.
fn go_bodies() -> Vec<String> {
    let mut bodies: Vec<String> = (0..100).map(|number| format!("async-{number}")).collect();
    bodies.extend(["pub", "mpub-1", "mpub-2", "dpub", "after-refusal"].map(str::to_owned));
    bodies
}

fn expect_once_each(consumer: &Consumer, bodies: &[String]) {
    consumer.wait_distinct(bodies.len());
    for body in bodies {
        assert_eq!(consumer.copies_of(body.as_bytes()), 1, "{body}");
    }
}

fn go(address: &str, topic: &str, words: &[&str]) -> Output {
    let mut client = command(&tool("interop"));
    succeeds(
        client
            .args(["publish", "-tcp", address, "-topic", topic])
            .args(words),
    )
}

fn python(script: &str, address: &str, topic: &str, words: &[&str]) -> Output {
    let python = checkout().join(".tools/python/bin/python");
    assert!(python.is_file(), "pynsq is not installed: run `make tools`");
    let script = checkout().join("tests/interop/python").join(script);
    let mut client = command(&python);
    succeeds(client.arg(script).args([address, topic, "100"]).args(words))
}

fn node(address: &str, topic: &str, words: &[&str]) -> Output {
    let modules = checkout().join(".tools/node/node_modules");
    assert!(modules.is_dir(), "nsqjs is not installed: run `make tools`");
    let (host, port) = address.split_once(':').unwrap();
    let mut client = command(&tool("node"));
    let script = checkout().join("tests/interop/node/publish.js");
    client.env("NODE_PATH", modules).arg(script);
    succeeds(client.args([host, port, topic, "100"]).args(words))
}

/// Publishes to an nsqd and, with the same code, to an instance, and expects the same of both.
fn at_both(bodies: &[String], publish: impl Fn(&str, &str)) {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    for (address, topic) in [(&nsqd.tcp, "at_nsqd"), (&app.tcp, TOPIC)] {
        let consumer = Consumer::start(&nsqd.tcp, topic);
        publish(address, topic);
        expect_once_each(&consumer, bodies);
    }
}

#[test]
fn go_nsq_publishes_in_every_way_and_sees_nsqds_errors() {
    at_both(&go_bodies(), |address, topic| {
        // An nsqd's answer to what is too long may be lost; ours may not.
        let attempts = if topic == TOPIC { "1" } else { "50" };
        let output = go(address, topic, &["-attempts", attempts]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("2 MiB: E_BAD_MESSAGE"), "{text}");
    });
}

#[test]
fn pynsq_publishes_and_defers() {
    at_both(&script_bodies(), |address, topic| {
        python("publish.py", address, topic, &[]);
    });
}

#[test]
fn nsqjs_publishes_and_defers() {
    at_both(&script_bodies(), |address, topic| {
        node(address, topic, &[]);
    });
}

#[test]
fn gnsq_publishes_and_defers() {
    at_both(&script_bodies(), |address, topic| {
        python("gnsq_publish.py", address, topic, &[]);
    });
}

/// An instance and an nsqd to compare it with, both in TLS; the first with a token too.
struct Secured {
    app: App,
    /// Where the instance delivers.
    nsqd: Nsqd,
    /// With the same flags as the instance.
    other: Nsqd,
    certificates: Certificates,
    _redis: Redis,
    _tokens: tempfile::TempDir,
}

impl Secured {
    fn start(required: &str) -> Self {
        let certificates = Certificates::make();
        let dir = tempfile::tempdir().unwrap();
        let tokens = dir.path().join("tokens.toml");
        let token = format!(
            "[[token]]\nname = \"interop\"\nsecret = \"{SECRET}\"\nroles = [\"admin\"]\n\
             topics = [\"*\"]\n"
        );
        std::fs::write(&tokens, token).unwrap();
        let (redis, nsqd) = (Redis::start(), Nsqd::start());
        let mut builder = App::builder().redis(&redis).nsqd(&nsqd);
        let flags = certificates.flags();
        for flag in &flags {
            let (name, value) = flag.split_once('=').unwrap();
            builder = builder.flag(name, value);
        }
        let app = builder
            .flag("--tls-required", required)
            .flag("--tokens-file", tokens.to_str().unwrap())
            .start();
        let mut words: Vec<&str> = flags.iter().map(String::as_str).collect();
        let required = format!("--tls-required={required}");
        words.push(&required);
        Self {
            app,
            nsqd,
            other: Nsqd::start_with(&words),
            certificates,
            _redis: redis,
            _tokens: dir,
        }
    }
}

#[test]
fn go_nsq_upgrades_and_authenticates() {
    let secured = Secured::start("tcp-https");
    let ca = secured.certificates.ca();
    let tls = ["-tls-ca", ca.to_str().unwrap()];
    for (topic, more) in [
        ("plain", None),
        ("snappy", Some("-snappy")),
        ("deflate", Some("-deflate")),
    ] {
        let consumer = Consumer::start(&secured.nsqd.tcp, topic);
        let words: Vec<&str> = tls.into_iter().chain(more).collect();
        // nsqd may reset after a refusal, which then may never be seen.
        let without = [words.as_slice(), &["-refusals=false"]].concat();
        go(&secured.other.tcp, topic, &without);
        go(
            &secured.app.tcp,
            topic,
            &[words.as_slice(), &["-auth", SECRET]].concat(),
        );
        expect_once_each(&consumer, &go_bodies());
    }
    let refused = command(&tool("interop"))
        .args([
            "publish",
            "-tcp",
            &secured.app.tcp,
            "-auth",
            "unknown-0123456789",
        ])
        .args(tls)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("E_AUTH_FAILED"),
        "{text}"
    );
}

/// Not its snappy over TLS, which fails against nsqd too. Nor is nsqd asked here what is compressed: it writes
/// a chunk's head and body apart, and pynsq gives its connection up when it reads the one without the other.
#[test]
fn pynsq_upgrades_and_authenticates() {
    let secured = Secured::start("false");
    let tls = format!("tls={}", secured.certificates.ca().display());
    let auth = format!("auth={SECRET}");
    python("publish.py", &secured.other.tcp, "tls", &[&tls]);
    for (topic, word) in [
        ("tls", tls.as_str()),
        ("snappy", "snappy"),
        ("deflate", "deflate"),
    ] {
        let consumer = Consumer::start(&secured.nsqd.tcp, topic);
        python("publish.py", &secured.app.tcp, topic, &[word, &auth]);
        expect_once_each(&consumer, &script_bodies());
    }
}

/// Its snappy is an optional part that has to be compiled, which is not installed.
#[test]
fn nsqjs_upgrades_and_authenticates() {
    let secured = Secured::start("tcp-https");
    let auth = format!("auth={SECRET}");
    for (topic, more) in [("plain", None), ("deflate", Some("deflate"))] {
        let consumer = Consumer::start(&secured.nsqd.tcp, topic);
        let mut words: Vec<&str> = ["tls"].into_iter().chain(more).collect();
        node(&secured.other.tcp, topic, &words);
        words.push(&auth);
        node(&secured.app.tcp, topic, &words);
        expect_once_each(&consumer, &script_bodies());
    }
}

#[test]
fn a_go_nsq_producer_lives_through_a_restart() {
    const MESSAGES: usize = 400;
    const RESTART_AT: usize = 100;
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut producer = command(&tool("interop"))
        .args(["steady", "-tcp", &app.tcp, "-topic", TOPIC])
        .args(["-count", &MESSAGES.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(producer.stdout.take().unwrap()).lines();
    let at = RESTART_AT.to_string();
    lines
        .by_ref()
        .find(|line| *line.as_ref().unwrap() == at)
        .unwrap()
        .unwrap();
    assert!(app.sigterm_and_wait().success());
    app.restart();
    let last = lines.last().unwrap().unwrap();
    assert!(last.starts_with("ok, "), "{last}");
    assert!(producer.wait().unwrap().success());
    consumer.wait_distinct(MESSAGES);
    for number in 0..MESSAGES {
        let body = format!("steady-{number}");
        assert!(consumer.copies_of(body.as_bytes()) >= 1, "{body}");
    }
}

#[test]
fn a_thousand_connections_publish_and_stay() {
    const CONNECTIONS: usize = 1000;
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut producers: Vec<Producer> = (0..CONNECTIONS).map(|_| app.producer()).collect();
    for round in 0..2 {
        for (number, producer) in producers.iter_mut().enumerate() {
            producer.dpub(TOPIC, 50, format!("{round}-{number}").as_bytes());
        }
    }
    assert!((app.metric("connections", "tcp") - CONNECTIONS as f64).abs() < 0.5);
    consumer.wait_distinct(2 * CONNECTIONS);
    assert_eq!(consumer.count(), 2 * CONNECTIONS);
}

/// Word for word, but for the address.
#[test]
fn the_curl_examples_of_the_documentation_work() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let document = std::fs::read_to_string(checkout().join("docs/nsq.md")).unwrap();
    let example = document.split("### curl\n\n```sh\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let example = example
        .replace("127.0.0.1:4141", &app.http)
        .replace("curl ", "curl -s ");
    let output = succeeds(command("bash".as_ref()).args(["-ec", &example]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("OKOKOKOK{"), "{text}");
    assert!(text.contains(r#""result":"cancelled""#), "{text}");
    wait::until("what was due at once", || nsqd.message_count("orders") == 1);
    assert_eq!(app.get("/v1/stats").json()["pending"], 3);
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
