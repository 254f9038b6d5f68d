//! With `passthrough`, what has no delay reaches nsqd without Redis, and outlives nsqd's outages
//! through Redis.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{App, Builder};
use crate::support::child::command;
use crate::support::consumer::Consumer;
use crate::support::http::Http;
use crate::support::ledger::Ledger;
use crate::support::nsqd::Nsqd;
use crate::support::producer::{ERROR, dpub, mdpub, mpub, publish};
use crate::support::redis::Redis;
use crate::support::{is_full_size, sized, tool, wait};

const TOPIC: &str = "orders";
const QUIET: Duration = Duration::from_secs(1);
const PASSED: &str = "messages_passed_through_total";

fn passing(redis: &Redis) -> Builder {
    App::builder()
        .redis(redis)
        .env("NSQDELAYD_PASSTHROUGH", "true")
}

fn stored(app: &App) -> f64 {
    app.metric("records_stored_total", "")
}

/// Compares a metric, which is read as a fraction, with the whole number that it must be.
#[track_caller]
fn expect(metric: f64, number: u32) {
    assert!(
        (metric - f64::from(number)).abs() < 0.5,
        "{metric} instead of {number}"
    );
}

#[test]
fn what_has_no_delay_does_not_touch_redis() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = passing(&redis).nsqd(&nsqd).start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    wait::until("a connection to nsqd", || {
        app.metric("nsqd_connections", "") > 0.0
    });
    let mut producer = app.producer();
    let commands = [
        publish(TOPIC, b"pub"),
        mpub(TOPIC, &[b"mpub 1", b"mpub 2"]),
        dpub(TOPIC, 0, b"dpub 0"),
        mdpub(TOPIC, 0, &[b"mdpub 0"]),
    ];
    for command in &commands {
        producer.send(command).unwrap();
        producer.expect_ok();
    }
    let answer = app.post(&format!("/pub?topic={TOPIC}"), b"/pub");
    assert_eq!((answer.status, answer.text().as_str()), (200, "OK"));
    assert_eq!(answer.header("x-nsqdelayd-id"), None);
    let answer = app.post(&format!("/mpub?topic={TOPIC}"), b"/mpub 1\n/mpub 2\n");
    assert_eq!((answer.status, answer.text().as_str()), (200, "OK"));
    expect(stored(&app), 0);
    expect(app.metric(PASSED, "taken"), 8);
    expect(app.metric("messages_accepted_total", ""), 8);
    consumer.wait_distinct(8);

    // What is to wait, or to be found again, is stored.
    producer.dpub(TOPIC, 10, b"dpub");
    let answer = app.post(&format!("/pub?topic={TOPIC}&defer=10"), b"/pub defer");
    assert!(answer.header("x-nsqdelayd-id").is_some());
    let answer = app.post(&format!("/pub?topic={TOPIC}&id=mine"), b"/pub id");
    assert_eq!(answer.header("x-nsqdelayd-id"), Some("mine"));
    let created = app.post_json("/v1/messages", &json!({"topic": TOPIC, "body": "v1"}));
    assert!(created.json()["id"].is_string(), "{}", created.text());
    consumer.wait_distinct(12);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), 12);
    expect(stored(&app), 4);
}

/// Commands of both kinds, mixed on one connection: each gets its own answer, in order.
#[test]
fn answers_stay_in_order_between_what_passes_and_what_is_stored() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = passing(&redis).nsqd(&nsqd).start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut producer = app.producer();
    let command = |number: usize| {
        let body = number.to_string();
        match number % 3 {
            0 => publish(TOPIC, body.as_bytes()),
            1 => dpub(TOPIC, 20, body.as_bytes()),
            _ => mpub(TOPIC, &[body.as_bytes()]),
        }
    };
    let count = 900;
    let mut commands: Vec<Vec<u8>> = (0..count).map(command).collect();
    // Fatal, and behind all the others: its answer is the last.
    commands.push(publish("bad?topic", b"x"));
    producer.send(&commands.concat()).unwrap();
    for _ in 0..count {
        producer.expect_ok();
    }
    let refused = producer.read().unwrap();
    assert_eq!(refused.kind, ERROR, "{}", refused.text());
    consumer.wait_distinct(count);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), count);
}

#[test]
fn redis_is_needed_only_where_nsqd_is_not() {
    let (mut redis, mut nsqd) = (Redis::start(), Nsqd::start());
    let app = passing(&redis).nsqd(&nsqd).start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    wait::until("a connection to nsqd", || {
        app.metric("nsqd_connections", "") > 0.0
    });
    redis.kill();
    wait::until("/readyz to say 503", || app.get("/readyz").status == 503);
    let answer = app.producer().ask(&publish(TOPIC, b"without redis"));
    assert!(answer.is_ok(), "{}", answer.text());
    consumer.wait_distinct(1);

    nsqd.kill9();
    wait::until("nsqd to be missed", || {
        app.metric("nsqd_connections", "") == 0.0
    });
    let answer = app.producer().ask(&publish(TOPIC, b"without both"));
    assert!(answer.text().starts_with("E_PUB_FAILED"), "{answer:?}");

    redis.restart();
    wait::until("/readyz to say 200", || app.get("/readyz").status == 200);
    let answer = app.producer().ask(&publish(TOPIC, b"without nsqd"));
    assert!(answer.is_ok(), "{}", answer.text());
    nsqd.restart();
    consumer.wait_distinct(2);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.copies_of(b"without nsqd"), 1);
    assert_eq!(consumer.copies_of(b"without both"), 0);
}

/// The way past the store is no way past who may do what.
#[test]
fn nobody_passes_who_may_not_publish() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut tokens = tempfile::NamedTempFile::new().unwrap();
    let table = "[[token]]\nname = \"t\"\nsecret = \"s3cret-s3cret-s3cret\"\nroles = [\"publish\"]\ntopics = [\"orders\"]\n";
    tokens.write_all(table.as_bytes()).unwrap();
    let app = passing(&redis)
        .nsqd(&nsqd)
        .flag("--tokens-file", tokens.path().to_str().unwrap())
        .start();
    wait::until("a connection to nsqd", || {
        app.metric("nsqd_connections", "") > 0.0
    });
    let bearer = [("Authorization", "Bearer s3cret-s3cret-s3cret")];
    let publish = |topic: &str, headers: &[(&str, &str)]| {
        let mut http = Http::connect(&app.http).unwrap();
        let path = format!("/pub?topic={topic}");
        http.request("POST", &path, headers, b"x").unwrap().status
    };
    assert_eq!(publish(TOPIC, &[]), 401);
    assert_eq!(publish("other", &bearer), 403);
    assert_eq!(publish(TOPIC, &bearer), 200);
    let answer = app.producer().ask(&self::publish(TOPIC, b"x"));
    assert!(answer.text().starts_with("E_AUTH_FIRST"), "{answer:?}");
    assert_eq!(nsqd.message_count("other"), 0);
    assert_eq!(nsqd.message_count(TOPIC), 1);
    expect(app.metric(PASSED, ""), 1);
}

/// What nsqd finds too big is not refused to the producer, who may not know nsqd: it becomes a dead
/// letter with nsqd's words.
#[test]
fn what_nsqd_refuses_is_stored_and_becomes_a_dead_letter() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start_with(&["--max-msg-size=100"]));
    let app = passing(&redis).nsqd(&nsqd).start();
    let answer = app.producer().ask(&publish(TOPIC, &[b'x'; 101]));
    assert!(answer.is_ok(), "{}", answer.text());
    wait::until("the dead letter", || {
        let list = app.get("/v1/dead-letters").json();
        let letter = &list["messages"][0]["reason"];
        letter.as_str().is_some_and(|r| r.contains("too big"))
    });
}

/// What go-nsq is to publish: `count` messages at a rate, until all are acknowledged.
#[derive(Debug, Clone, Copy)]
struct GoNsq<'a> {
    doors: &'a [&'a str],
    first: usize,
    count: usize,
    rate: usize,
    delays: [&'a str; 2],
}

impl GoNsq<'_> {
    fn start(&self) -> Child {
        let mut produce = command(&tool("interop"));
        produce.args(["produce", "-topic", TOPIC]);
        for door in self.doors {
            produce.args(["-tcp", door]);
        }
        let [first, count, rate] = [self.first, self.count, self.rate].map(|n| n.to_string());
        produce
            .args(["-first", &first, "-n", &count, "-rate", &rate])
            .args(["-delay-min", self.delays[0], "-delay-max", self.delays[1]])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        produce.spawn().unwrap()
    }
}

/// Its report, when everything is acknowledged.
fn report(producer: Child) -> Value {
    let output = producer.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ledger(count: usize) -> Ledger {
    Ledger {
        acknowledged: (0..count).collect(),
        ..Ledger::default()
    }
}

/// nsqd writes each message to its disk at once, and has no channel before the end, so that what it
/// has acknowledged outlives kill -9: what is lost would be ours.
#[test]
fn every_publish_survives_nsqds_outages_under_load() {
    const ROUNDS: usize = 4;
    let redis = Redis::start();
    let mut nsqd = Nsqd::start_with(&["--mem-queue-size=0", "--sync-every=1"]);
    nsqd.create_topic(TOPIC);
    let app = passing(&redis).nsqd(&nsqd).start();
    let count = sized(1_000, 10_000);
    let accepted = || app.metric("messages_accepted_total", "");
    for round in 0..ROUNDS {
        let first = round * count;
        let load = GoNsq {
            doors: &[&app.tcp],
            first,
            count,
            rate: 1_000,
            delays: ["0s", "0s"],
        };
        let producer = load.start();
        let reached = |quarters: usize| {
            wait::until("acknowledgements", || {
                accepted() >= (first + count * quarters / 4) as f64
            });
        };
        reached(1);
        if round % 2 == 0 {
            nsqd.kill9();
        } else {
            nsqd.sigterm_and_wait();
        }
        // Without nsqd it goes on.
        reached(3);
        nsqd.restart();
        assert_eq!(report(producer)["again"], 0, "the producer saw something");
    }
    let count = count * ROUNDS;
    let (stored, maybe) = (stored(&app), app.metric(PASSED, "maybe"));
    wait::until("all that was stored to be delivered", || {
        app.metric("messages_pending", "") == 0.0
    });
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    consumer.wait_distinct(count);
    consumer.wait_quiet(QUIET);
    let verdict = ledger(count).check(&consumer.deliveries());
    let redelivered = app.metric("messages_redelivered_total", "");
    eprintln!(
        "nsqd killed and restarted under PUB, {stored} stored, {maybe} of them perhaps twice: {verdict}"
    );
    verdict.assert_kept();
    assert!(stored > 0.0 && app.metric(PASSED, "taken") > 0.0);
    assert!(
        verdict.duplicate as f64 <= maybe + redelivered,
        "more duplicates than were counted as possible: {maybe} + {redelivered}"
    );
}

/// An nsqd that says who it is, answers heartbeats' time with heartbeats of its own, reads everything,
/// and never answers a publish.
fn black_hole() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || swallow(stream));
        }
    });
    address
}

fn swallow(mut stream: TcpStream) {
    let mut scrap = vec![0; 64 * 1024];
    // The magic and IDENTIFY come in one write.
    if stream.read(&mut scrap).is_err() || stream.write_all(b"\0\0\0\x06\0\0\0\0OK").is_err() {
        return;
    }
    while stream.read(&mut scrap).is_ok_and(|count| count > 0) {}
}

#[test]
fn an_nsqd_that_reads_and_never_answers_costs_time_and_copies_but_no_message() {
    let (redis, nsqd, hole) = (Redis::start(), Nsqd::start(), black_hole());
    let app = App::builder()
        .redis(&redis)
        .nsqd(&nsqd)
        .flag("--nsqd-tcp-address", &hole)
        .flag("--forward-timeout", "300ms")
        .start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    wait::until("both to be connected", || {
        app.metric("nsqd_connections", &hole) > 0.0
            && app.metric("nsqd_connections", &nsqd.tcp) > 0.0
    });
    let mut producer = app.producer();
    let count = 500;
    for number in 0..count {
        producer.dpub(TOPIC, 50, format!("{number}").as_bytes());
    }
    consumer.wait_distinct(count);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), count, "the other never had them");
    assert!(app.metric("messages_redelivered_total", "") > 0.0);
    assert!(app.metric("messages_forwarded_total", "unknown") > 0.0);
}

/// Two nsqds and two nsqdelayds are restarted one after the other, as an upgrade does it, while go-nsq
/// keeps publishing with delays through both doors.
#[test]
fn proof_rolling_restart() {
    let redis = Redis::start();
    let mut nsqds = [Nsqd::start(), Nsqd::start()];
    let mut apps = [(); 2].map(|()| {
        let app = App::builder().redis(&redis);
        app.nsqd(&nsqds[0]).nsqd(&nsqds[1]).start()
    });
    let consumers = nsqds
        .each_ref()
        .map(|nsqd| Consumer::start(&nsqd.tcp, TOPIC));
    let (count, rate) = (sized(20_000, 150_000), sized(2_500, 5_000));
    let doors = apps.each_ref().map(|app| app.tcp.clone());
    let doors = doors.each_ref().map(String::as_str);
    let load = GoNsq {
        doors: &doors,
        first: 0,
        count,
        rate,
        delays: ["500ms", "2s"],
    };
    let mut producer = load.start();
    let came = || consumers.iter().map(Consumer::count).sum::<usize>();
    let await_share = |tenths: usize| {
        wait::until("the load to go on", || came() >= count * tenths / 10);
    };
    for (tenths, nsqd) in [(1, 0), (2, 1)] {
        await_share(tenths);
        nsqds[nsqd].sigterm_and_wait();
        nsqds[nsqd].restart();
    }
    for (tenths, app) in [(3, 0), (5, 1)] {
        await_share(tenths);
        let status = apps[app].sigterm_and_wait();
        assert!(status.success(), "{status}");
        apps[app].restart();
    }
    // On a machine that is busy with other tests the load may be over sooner.
    let over = producer.try_wait().unwrap().is_some();
    assert!(!over || !is_full_size(), "the restarts came too late");
    let report = report(producer);
    for consumer in &consumers {
        consumer.wait_quiet(QUIET * 3);
    }
    let mut deliveries = consumers[0].deliveries();
    deliveries.extend(consumers[1].deliveries());
    let verdict = ledger(count).check(&deliveries);
    eprintln!(
        "two nsqds and two nsqdelayds restarted one after the other, {count} go-nsq DPUBs in {} s, {} \
         sent again by the producer: {verdict}",
        report["seconds"], report["again"]
    );
    verdict.assert_kept();
}
