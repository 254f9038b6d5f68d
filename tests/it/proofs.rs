//! What is promised in figures. `make test` runs these small, `make prove` at full size.

use std::time::Duration;

use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::load::{Load, at_one_instant};
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::{child, sized, tool, unix_ms, wait};

const TOPIC: &str = "orders";

/// Lateness beside nsqd's own DPUB, with the official Go client for both.
#[test]
fn proof_lateness() {
    let policies = ["everysec", "always"];
    let (nsqd, redises) = (
        Nsqd::start(),
        policies.map(|policy| Redis::start_with(&[("appendfsync", policy)])),
    );
    let apps = redises.each_ref().map(|redis| App::start(redis, &nsqd));
    let count = sized(2_000, 20_000).to_string();
    let mut load = child::command(&tool("interop"));
    // nsqd looks for new channels every 5 s; until then its own deferred messages wait.
    load.args(["load", "-json", "-warm", "6s", "-rate", "1000"])
        .args(["-size", "500", "-n", &count, "-nsqd", &nsqd.tcp])
        // Together they would measure each other's load.
        .arg("-one-by-one");
    for (policy, app) in policies.iter().zip(&apps) {
        load.args(["-target", &format!("{policy}={}", app.tcp)]);
    }
    let output = load
        .args(["-target", &format!("nsqd={}", nsqd.tcp)])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let faults = String::from_utf8_lossy(&output.stderr);
    eprintln!(
        "lateness, {count} messages at 1,000/s, delays 1 to 5 s, by appendfsync of Redis; nsqd's own \
         DPUB last:\n{text}{faults}"
    );
    assert!(output.status.success());
    for (line, policy) in text.lines().zip(policies) {
        let ours: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(ours["name"], policy);
        assert_eq!(ours["acknowledged"].to_string(), count);
        for fault in ["lost", "early", "duplicate", "unexpected"] {
            assert_eq!(ours[fault], 0, "{policy}, {fault}");
        }
    }
}

/// Packs pay: what one message costs Redis, and how many share a pack.
#[test]
fn proof_packs() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let load = Load {
        topic: TOPIC,
        count: sized(20_000, 200_000),
        connections: 8,
        delay_ms: at_one_instant,
        due_ms: unix_ms() + sized(5_000, 30_000) as u64,
    };
    let start = redis.child.cpu_seconds();
    let ledger = load.send(&app.tcp);
    assert_eq!(ledger.acknowledged.len(), load.count);
    let stored = redis.child.cpu_seconds();
    let packs = redis.packs();
    consumer.wait_distinct(load.count);
    let drained = redis.child.cpu_seconds();
    let per_message = |seconds: f64| seconds * 1e6 / load.count as f64;
    eprintln!(
        "packs: {} messages in {packs} packs, {:.1} records a pack; Redis CPU {:.2} us a message in, \
         {:.2} us out",
        load.count,
        load.count as f64 / packs as f64,
        per_message(stored - start),
        per_message(drained - stored),
    );
    ledger.check(&consumer.deliveries()).assert_exact();
}

/// Pending messages cost nothing while none is due.
#[test]
fn proof_idle() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let apps: Vec<_> = (0..3)
        .map(|_| {
            let app = App::builder().redis(&redis).nsqd(&nsqd);
            app.flag("--shards", "64").start()
        })
        .collect();
    let load = Load {
        topic: TOPIC,
        count: sized(5_000, 100_000),
        connections: 4,
        delay_ms: |_, _| 3_600_000,
        due_ms: 0,
    };
    assert_eq!(load.send(&apps[0].tcp).acknowledged.len(), load.count);
    // The first seconds still settle who owns what.
    wait::pause(Duration::from_secs(sized(3, 15) as u64));
    let span = Duration::from_secs(sized(5, 60) as u64);
    let cpu = || {
        apps.iter()
            .map(|app| app.child().cpu_seconds())
            .collect::<Vec<_>>()
    };
    let (commands, redis_cpu, apps_cpu) = (redis.commands(), redis.child.cpu_seconds(), cpu());
    wait::pause(span);
    let percent = |seconds: f64| seconds / span.as_secs_f64() * 100.0;
    let apps_percent: Vec<_> = cpu()
        .iter()
        .zip(&apps_cpu)
        .map(|(after, before)| format!("{:.2} %", percent(after - before)))
        .collect();
    // The look at the counter is itself a few commands, which are left in.
    let rate = (redis.commands() - commands) as f64 / span.as_secs_f64();
    eprintln!(
        "idle, {} pending, 64 shards, 3 instances: {rate:.1} Redis commands/s, CPU of Redis {:.2} %, of \
         the instances {}",
        load.count,
        percent(redis.child.cpu_seconds() - redis_cpu),
        apps_percent.join(", "),
    );
    assert_eq!(nsqd.message_count(TOPIC), 0);
}
