//! What is there when all is quiet: asked at the doors, and counted in Redis beside them.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SHARDS};
use crate::event::{self, Asked, Event, Number, Op, Outcome};
use crate::producers::{Field, TOPICS, draft};
use crate::recorder::Recorder;
use crate::support::http::Http;
use crate::support::wait;

/// Messages of a probe for each shard: with ids, which spread over all of them.
const PROBES_EACH: u64 = 6;
const PROBE_DELAY_MS: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(100);

/// Publishes to every shard. A shard without an owner would keep its share.
pub(crate) fn probe(field: &Field) {
    let first = field
        .numbers
        .fetch_add(SHARDS * PROBES_EACH, Ordering::SeqCst);
    let ids: Vec<Number> = (first..first + SHARDS * PROBES_EACH)
        .map(|n| 2 * n)
        .collect();
    let messages = ids
        .iter()
        .map(|id| draft(*id, TOPICS[0], PROBE_DELAY_MS, true));
    let body = json!({"messages": messages.collect::<Vec<Value>>()});
    let t_start = field.recorder.now();
    // Everything is whole: it must be taken at once, but for an instance that has just been started.
    let mut left = PATIENCE;
    let answer = loop {
        let answer = Http::connect(&field.doors[0].1)
            .and_then(|mut http| http.json("POST", "/v1/messages:batch", &body));
        let done = answer.as_ref().is_ok_and(|a| a.json()["failed"] == 0);
        if done || left.is_zero() {
            break answer;
        }
        wait::pause(PAUSE);
        left = left.saturating_sub(PAUSE);
    };
    let all = answer.as_ref().is_ok_and(|a| a.json()["failed"] == 0);
    let words = if all {
        String::new()
    } else {
        format!("{answer:?}")
    };
    field.recorder.add(&Event::Op(Op {
        asked: Asked::Publish,
        ids,
        topic: TOPICS[0].to_owned(),
        delay_ms: PROBE_DELAY_MS,
        t_start,
        t_end: field.recorder.now(),
        outcome: if all { Outcome::Ok } else { Outcome::Odd },
        door: "json",
        instance: 0,
        connection: usize::MAX,
        words,
    }));
}

/// Writes down what is dead; says how many. Every other one is given back if `requeue` says so: nothing
/// refuses it now.
pub(crate) fn dead_letters(cluster: &Cluster, recorder: &Recorder, requeue: bool) -> usize {
    // An instance that was just started is asked again soon.
    let Ok(mut http) = Http::connect(&cluster.instances[0].http) else {
        return 0;
    };
    let dead = list(&mut http, "/v1/dead-letters");
    for message in &dead {
        let Some(id) = number_of(&mut http, message) else {
            let words = format!("dead, and nobody published it: {message}");
            recorder.add(&Event::Wrong { words });
            continue;
        };
        recorder.add(&Event::IsDead { id });
        if requeue && id / 2 % 2 == 0 {
            let path = format!(
                "/v1/dead-letters/{}/requeue",
                message["id"].as_str().unwrap()
            );
            let answer = http.request("POST", &path, &[], b"");
            if answer.is_ok_and(|answer| answer.status == 200) {
                recorder.add(&Event::Requeued { id });
            }
        }
    }
    dead.len()
}

/// Reads everything back into the record.
pub(crate) fn everything(cluster: &Cluster, recorder: &Recorder, dir: &Path) {
    let mut http = Http::connect(&cluster.instances[0].http).unwrap();
    let wrong = |words: String| recorder.add(&Event::Wrong { words });
    // What was just delivered is settled with the next turn; what instances that were killed had cancelled is counted off
    // after the next sweep.
    let mut left = PATIENCE;
    let (stats, pending) = loop {
        let stats = ask(&mut http, "/v1/stats");
        let pending = list(&mut http, "/v1/messages");
        let now_ms = stats["now_ms"].as_u64().unwrap_or(0);
        let settled = pending.iter().all(|m| m["due_ms"].as_u64() > Some(now_ms));
        if (settled && stats["pending"] == pending.len()) || left.is_zero() {
            break (stats, pending);
        }
        wait::pause(PAUSE);
        left = left.saturating_sub(PAUSE);
    };
    let now_ms = stats["now_ms"].as_u64().unwrap_or(0);
    for message in &pending {
        match number_of(&mut http, message) {
            Some(id) => recorder.add(&Event::IsPending { id }),
            None => wrong(format!("pending, and nobody published it: {message}")),
        }
        if message["due_ms"].as_u64() < Some(now_ms) || message["state"] != "scheduled" {
            wrong(format!("still here when all is quiet: {message}"));
        }
    }
    let dead = dead_letters(cluster, recorder, false);
    let counted = |key: &str| stats[key].as_u64().unwrap_or(u64::MAX);
    if counted("pending") != pending.len() as u64 {
        wrong(format!(
            "{} are listed as pending, the count says {}",
            pending.len(),
            stats["pending"]
        ));
    }
    if counted("dead_letters") != dead as u64 {
        wrong(format!(
            "{dead} are listed as dead, the count says {}",
            stats["dead_letters"]
        ));
    }
    for words in in_redis(cluster, pending.len()) {
        wrong(words);
    }
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("instance-") {
            let log = std::fs::read(&path).unwrap();
            for line in String::from_utf8_lossy(&log)
                .lines()
                .filter(|l| l.contains("panicked at"))
            {
                wrong(format!("{name}: {line}"));
            }
        }
    }
}

/// What Redis itself holds agrees with what was listed.
fn in_redis(cluster: &Cluster, pending: usize) -> Vec<String> {
    let mut connection = cluster.redis.connect().unwrap();
    let keys = |connection: &mut redis::Connection, pattern: &str| -> Vec<String> {
        redis::cmd("KEYS").arg(pattern).query(connection).unwrap()
    };
    let mut wrong = Vec::new();
    let mut counted = 0;
    for key in keys(&mut connection, "*:pending") {
        let values: Vec<i64> = redis::cmd("HVALS")
            .arg(&key)
            .query(&mut connection)
            .unwrap();
        counted += values.iter().sum::<i64>();
    }
    if usize::try_from(counted) != Ok(pending) {
        wrong.push(format!(
            "{pending} are listed as pending, Redis counts {counted}"
        ));
    }
    let mut packs = 0;
    for key in keys(&mut connection, "*:due") {
        let size: usize = redis::cmd("ZCARD")
            .arg(&key)
            .query(&mut connection)
            .unwrap();
        packs += size;
    }
    if pending > 0 && packs == 0 {
        wrong.push(format!(
            "{pending} are listed as pending, and Redis holds no pack"
        ));
    }
    wrong
}

fn ask(http: &mut Http, path: &str) -> Value {
    http.request("GET", path, &[], b"").unwrap().json()
}

/// All pages.
fn list(http: &mut Http, path: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut page = ask(http, &format!("{path}?page_size=1000"));
    loop {
        all.extend(page["messages"].as_array().cloned().unwrap_or_default());
        let Some(token) = page["next_page_token"].as_str() else {
            return all;
        };
        page = ask(http, &format!("{path}?page_size=1000&page_token={token}"));
    }
}

/// Who a listed message is: by our id, else by its body.
fn number_of(http: &mut Http, message: &Value) -> Option<Number> {
    let id = message["id"].as_str()?;
    if let Some(number) = id.strip_prefix("chaos-") {
        return number.parse().ok();
    }
    let whole = ask(http, &format!("/v1/messages/{id}"));
    let (number, intact) = identify_listed(&whole)?;
    intact.then_some(number)
}

/// Whose body a message has that a door shows, and whether it is whole.
pub(crate) fn identify_listed(whole: &Value) -> Option<(Number, bool)> {
    let text = whole["body"].as_str().map(|text| text.as_bytes().to_vec());
    let bytes = text.or_else(|| STANDARD.decode(whole["body_base64"].as_str()?).ok())?;
    event::identify(&bytes)
}
