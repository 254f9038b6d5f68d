//! `nsqdelayd doctor` at real servers: what it finds, what it measures, and that it leaves nothing.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::app::App;
use crate::support::free_port;
use crate::support::http;
use crate::support::nsqd::{Nsqd, Nsqlookupd};
use crate::support::redis::Redis;
use crate::support::wait;

fn doctor(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nsqdelayd"))
        .arg("doctor")
        .args(arguments)
        .output()
        .unwrap()
}

/// The findings of an examination, by subject's first word and check.
#[derive(Debug)]
struct Findings(Vec<Value>);

impl Findings {
    /// Examines, and checks that the exit code says whether there are errors.
    #[track_caller]
    fn of(arguments: &[&str]) -> Self {
        let output = doctor(&[arguments, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        });
        let errors = report["errors"].as_u64().unwrap();
        assert_eq!(
            output.status.code(),
            Some(i32::from(errors > 0)),
            "{report:#}"
        );
        Self(report["findings"].as_array().unwrap().clone())
    }

    #[track_caller]
    fn get(&self, about: &str, check: &str) -> &Value {
        let found = self.0.iter().find(|finding| {
            finding["subject"].as_str().unwrap().starts_with(about) && finding["check"] == check
        });
        found.unwrap_or_else(|| panic!("no {about} {check} in {:#?}", self.0))
    }

    #[track_caller]
    fn check(&self, about: &str, check: &str, level: &str, remedy: &str) {
        let finding = self.get(about, check);
        assert_eq!(finding["level"], level, "{finding:#}");
        let found = finding["remedy"].as_str().unwrap_or_default();
        assert!(found.contains(remedy), "{finding:#}");
    }

    /// A number that is a count.
    #[track_caller]
    fn count(&self, check: &str, name: &str) -> u64 {
        let number = self.number(check, name).to_string();
        number.parse().unwrap()
    }

    #[track_caller]
    fn number(&self, check: &str, name: &str) -> f64 {
        let finding = self.get("dpub", check);
        let number = finding["numbers"][name].as_f64();
        number.unwrap_or_else(|| panic!("no {name} in {finding:#}"))
    }
}

#[test]
fn it_finds_no_fault_with_what_we_recommend_and_writes_nothing() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let findings = Findings::of(&[
        "--redis",
        &redis.url(),
        "--nsqd-tcp-address",
        &nsqd.tcp,
        "--nsqd-http-address",
        &nsqd.http,
    ]);
    for finding in &findings.0 {
        let fine = finding["level"] == "ok" || finding["level"] == "remark";
        assert!(fine, "{finding:#}");
    }
    findings.check("redis", "appendfsync", "ok", "");
    findings.check("redis", "clock", "ok", "");
    findings.check("nsqd", "version", "ok", "");
    findings.check("nsqd", "health", "ok", "");
    let size = findings.get("nsqd", "max_msg_size");
    assert_eq!(size["numbers"]["nsqd_bytes"], 1 << 20);
    let size = findings.get("nsqd", "mpub_bytes_max");
    assert_eq!(size["numbers"]["nsqd_bytes"], 5 << 20);
    let delay = findings.get("nsqd", "dpub_delay");
    assert_eq!(delay["numbers"]["nsqd_delay_ms_max"], 3_600_000);
    findings.check("nsqd", "mem_queue_size", "remark", "--mem-queue-size=0");
    assert_eq!(nsqd.stats()["topics"].as_array().unwrap().len(), 0);
    let keys: u64 = redis::cmd("DBSIZE").query(&mut redis.connection()).unwrap();
    assert_eq!(keys, 0);
}

#[test]
fn it_says_what_is_wrong_with_a_redis_and_what_to_change() {
    let nsqd = Nsqd::start();
    let redis = Redis::start_with(&[
        ("maxmemory-policy", "allkeys-lru"),
        ("appendonly", "no"),
        ("maxmemory", "1gb"),
    ]);
    let arguments = ["--redis", &redis.url(), "--nsqd-tcp-address", &nsqd.tcp];
    let findings = Findings::of(&arguments);
    findings.check(
        "redis",
        "maxmemory_policy",
        "error",
        "CONFIG SET maxmemory-policy noeviction",
    );
    findings.check(
        "redis",
        "persistence",
        "warning",
        "CONFIG SET appendonly yes",
    );
    findings.check("redis", "memory", "ok", "");
    let required = [&arguments[..], &["--require-persistence"]].concat();
    Findings::of(&required).check("redis", "persistence", "error", "appendonly yes");
    // The same for people; and serve refuses in the same words.
    let output = doctor(&arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("ERROR    maxmemory-policy is `allkeys-lru`\n"),
        "{text}"
    );
    assert!(text.contains("-> set it to `noeviction`"), "{text}");
    let builder = App::builder().redis(&redis).nsqd(&nsqd);
    let (_, log) = builder.start_refused();
    assert!(
        log.contains("redis: maxmemory-policy is `allkeys-lru`"),
        "{log}"
    );
}

#[test]
fn it_says_what_is_not_there() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let redis = Redis::start_with(&[("appendfsync", "everysec")]);
    let findings = Findings::of(&["--redis", &redis.url(), "--nsqd-tcp-address", &nobody]);
    findings.check("redis", "appendfsync", "remark", "always");
    findings.check("nsqd", "reachable", "error", "start it");
    let nsqd = Nsqd::start_with(&["--max-msg-size=1000", "--max-body-size=2000"]);
    let url = format!("redis://u:secret@{nobody}");
    let findings = Findings::of(&["--redis", &url, "--nsqd-tcp-address", &nsqd.tcp]);
    let redis = findings.get("redis", "reachable");
    assert_eq!(redis["level"], "error");
    assert!(!redis.to_string().contains("secret"), "{redis:#}");
    findings.check("nsqd", "max_msg_size", "warning", "--max-msg-size=1048576");
    findings.check("nsqd", "mpub_bytes_max", "warning", "mpub_bytes_max = 2000");
    let http = &nsqd.http;
    let findings = Findings::of(&["--redis", &url, "--nsqd-tcp-address", http]);
    findings.check("nsqd", "reachable", "error", "TCP address");
}

#[test]
fn it_looks_at_the_nsqds_that_an_nsqlookupd_names() {
    let (redis, lookupd) = (Redis::start(), Nsqlookupd::start());
    let arguments = [
        "--redis",
        &redis.url(),
        "--nsqd-tcp-address",
        "",
        "--lookupd-http-address",
        &lookupd.http,
    ];
    let remedy = "--lookupd-tcp-address";
    Findings::of(&arguments).check("nsqlookupd", "nodes", "warning", remedy);
    let flag = format!("--lookupd-tcp-address={}", lookupd.tcp);
    let nsqd = Nsqd::start_with(&[&flag]);
    wait::until("nsqd to be registered", || {
        let nodes = http::get(&lookupd.http, "/nodes").json();
        !nodes["producers"].as_array().unwrap().is_empty()
    });
    let findings = Findings::of(&arguments);
    findings.check("nsqlookupd", "nodes", "ok", "");
    findings.check(&format!("nsqd {}", nsqd.tcp), "version", "ok", "");
}

#[test]
fn it_knows_an_nsqdelayd_that_was_named_as_nsqd() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let findings = Findings::of(&["--redis", &redis.url(), "--nsqd-tcp-address", &app.tcp]);
    findings.check("nsqd", "identity", "error", "to an nsqd");
    // The namespace is known as well.
    findings.check("redis", "namespace", "ok", "");
    let other = ["--redis", &redis.url(), "--shards", "3"];
    Findings::of(&other).check("redis", "namespace", "remark", "shards = 64");
}

#[test]
fn of_a_stock_nsqd_it_reports_how_many_delayed_messages_came_early() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let findings = Findings::of(&[
        "--redis",
        &redis.url(),
        "--dpub",
        "--nsqd-tcp-address",
        &nsqd.tcp,
        "--nsqd-http-address",
        &nsqd.http,
    ]);
    // Of 11,000 messages 10,000 fit into nsqd's memory queue.
    findings.check("dpub", "early", "error", "nsqdelayd");
    assert_eq!(findings.count("early", "messages"), 11_000);
    assert_eq!(findings.count("early", "early"), 1_000);
    assert_eq!(findings.count("early", "lost"), 0);
    let (least, most) = (
        findings.number("early", "early_min_ms"),
        findings.number("early", "early_max_ms"),
    );
    assert!(0.0 < least && least <= most && most < 10_000.0);
    let words = findings.get("dpub", "early")["what"].as_str().unwrap();
    assert!(words.contains("1000 came early"), "{words}");
    assert_eq!(findings.count("no_channel", "messages"), 10_000);
    // One at a time, with a consumer, it is only late.
    assert_eq!(findings.count("lateness", "messages"), 500);
    assert_eq!(findings.count("lateness", "early"), 0);
    assert_eq!(findings.count("lateness", "lost"), 0);
    assert!(findings.number("lateness", "late_p50_ms") > 0.0);
    assert_eq!(findings.count("longest_delay", "delay_ms_max"), 3_600_000);
    findings.check("dpub", "overflow", "warning", "");
    findings.check("dpub", "restart", "remark", "");
    findings.check("dpub", "cancel", "remark", "");
    wait::until("the doctor's topics to be gone", || {
        nsqd.stats()["topics"].as_array().unwrap().is_empty()
    });
}

#[test]
fn without_nsqds_http_address_the_early_ones_are_counted_too() {
    let redis = Redis::start();
    // Not on the port after the TCP port, where it would be found.
    let nsqd = Nsqd::start_with(&["--mem-queue-size=100", "--http-address=127.0.0.1:0"]);
    let findings = Findings::of(&[
        "--redis",
        &redis.url(),
        "--dpub",
        "--dpub-messages",
        "300",
        "--nsqd-tcp-address",
        &nsqd.tcp,
    ]);
    assert_eq!(findings.count("early", "early"), 200);
    let remedy = "/topic/delete?topic=nsqdelayd_doctor_";
    findings.check("dpub", "clean_up", "remark", remedy);
    let log = nsqd.child().log();
    let (_, address) = log.split_once("HTTP: listening on ").unwrap();
    let address = address.lines().next().unwrap();
    let stats = http::get(address, "/stats?format=json").json();
    let topics = stats["topics"].as_array().unwrap();
    assert_eq!(topics.len(), 1, "{stats:#}");
    let depths = [&topics[0]["depth"], &topics[0]["channels"][0]["depth"]];
    assert!(depths.iter().all(|depth| **depth == 0), "{stats:#}");
}
