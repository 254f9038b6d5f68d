//! `nsqdelayd bench`: each benchmark, small, on servers of its own; what it says of the promises.

use std::process::Output;

use serde_json::Value;

use crate::support::app::App;
use crate::support::child::command;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;

fn bench(arguments: &[&str]) -> Output {
    let mut bench = command(env!("CARGO_BIN_EXE_nsqdelayd").as_ref());
    let (case, rest) = arguments.split_first().unwrap();
    bench.args(["bench", case, "--json"]).args(rest);
    bench.output().unwrap()
}

/// Runs one; nothing may be lost, early or doubled, and everything must have come.
#[track_caller]
fn rows(output: &Output, count: u64) -> Vec<Value> {
    let faults = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{faults}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap().clone();
    for row in &rows {
        let verdict = &row["verdict"];
        assert_eq!(verdict["acknowledged"], count, "{row}");
        for fault in ["lost", "early", "duplicate", "resurrected", "unexpected"] {
            assert_eq!(verdict[fault], 0, "{fault}: {row}");
        }
    }
    rows
}

#[test]
fn bench_ingest_reads_everything_back_and_has_nsqd_beside_it() {
    let output = bench(&["ingest", "--count", "2000", "--delay", "4s"]);
    let rows = rows(&output, 2000);
    assert_eq!(rows[0]["target"], "nsqdelayd");
    assert_eq!(rows[1]["target"], "nsqd");
    for row in &rows {
        assert_eq!(row["verdict"]["received"], 2000);
        let servers = row["spans"][0]["cpu_us"].as_object().unwrap();
        let names: Vec<_> = servers.keys().collect();
        assert_eq!(names, ["generator", "nsqd", "nsqdelayd", "redis"]);
    }
}

#[test]
fn bench_goes_through_every_door() {
    for door in ["mdpub", "mpub", "batch"] {
        let count = ["--count", "1010", "--lead", "4s", "--without-nsqd"];
        let output = bench(&[&["burst", "--door", door], count.as_slice()].concat());
        let rows = rows(&output, 1010);
        assert_eq!(rows[0]["verdict"]["received"], 1010, "{door}");
    }
}

#[test]
fn bench_lateness_is_open_loop_at_its_rate() {
    let output = bench(&[
        "lateness",
        "--count",
        "500",
        "--rate",
        "500",
        "--without-nsqd",
        "--delay-max",
        "2s",
        "--",
        "--shards",
        "4",
    ]);
    let rows = rows(&output, 500);
    assert!(rows[0]["lateness_ms"]["p50"].as_f64().unwrap() > 0.0);
    assert!(rows[0]["answered_ms"]["p50"].as_f64().unwrap() > 0.0);
}

#[test]
fn bench_steady_goes_on_across_a_rewrite() {
    let load = ["--rate", "1000", "--duration", "2s", "--delay", "1s"];
    let more = ["--aof-rewrites", "2", "--without-nsqd"];
    let pending = ["--pending", "500", "--delay-max", "2s"];
    let output = bench(&[&["steady"], &load[..], &more, &pending].concat());
    let rows = rows(&output, 2000);
    assert_eq!(rows[0]["verdict"]["received"], 2000);
    let records = rows[0]["figures"]["records a pack"].as_f64().unwrap();
    assert!((1.0..=26.0).contains(&records), "{records}");
}

#[test]
fn bench_cancel_counts_what_does_not_come() {
    for ids in [[].as_slice(), &["--client-ids", "--door", "dpub"]] {
        let load = ["cancel", "--count", "1000", "--lead", "5s"];
        let rows = rows(&bench(&[&load, ids].concat()), 1000);
        assert_eq!(rows[0]["verdict"]["cancelled"], 900);
        assert_eq!(rows[0]["verdict"]["received"], 100);
    }
}

#[test]
fn bench_idle_runs_against_servers_that_it_is_told_of() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let output = bench(&[
        "idle",
        "--count",
        "1000",
        "--span",
        "1s",
        "--tcp-address",
        &app.tcp,
        "--http-address",
        &app.http,
        "--nsqd-tcp-address",
        &nsqd.tcp,
        "--pid",
        &format!("nsqdelayd={}", app.child().pid()),
    ]);
    let rows = rows(&output, 1000);
    let idle = &rows[0]["spans"][1];
    assert_eq!(idle["what"], "idle");
    assert!(idle["cpu_percent"]["nsqdelayd"].is_number());
}

#[test]
fn bench_says_that_nobody_answers() {
    let nobody = "127.0.0.1:1";
    let mut bench = command(env!("CARGO_BIN_EXE_nsqdelayd").as_ref());
    bench.args(["bench", "ingest", "--tcp-address", nobody]);
    bench.args(["--http-address", nobody, "--nsqd-tcp-address", nobody]);
    let output = bench.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("127.0.0.1:1"), "{text}");
}
