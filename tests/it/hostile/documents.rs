//! What a hostile client says in JSON to `/v1`, in front of a real Redis.

use std::time::Duration;

use super::{AT_REST, MAX_BODY_SIZE, MIB, Siege};
use crate::support::consumer::Consumer;
use crate::support::http::{Answer, Http};
use crate::support::wait;

/// Longer than anything that was not to come would need.
pub(super) const QUIET: Duration = Duration::from_millis(500);

pub(super) fn send(siege: &Siege, method: &str, path: &str, body: &[u8]) -> Answer {
    let kind = [("Content-Type", "application/json")];
    let mut http = Http::connect(&siege.app.http).unwrap();
    http.request(method, path, &kind, body).unwrap()
}

/// A refusal's status, code and place.
fn refusal(answer: &Answer) -> (u16, String, String) {
    let problem = answer.json();
    let place = problem["field"].as_str().or(problem["param"].as_str());
    let code = problem["code"].as_str().unwrap_or_default().to_owned();
    (answer.status, code, place.unwrap_or_default().to_owned())
}

#[track_caller]
pub(super) fn refused(siege: &Siege, name: &str, answer: &Answer, want: (u16, &str, &str)) {
    let want = (want.0, want.1.to_owned(), want.2.to_owned());
    assert_eq!(refusal(answer), want, "{name}");
    siege.others_are_served(name);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn hostile_documents_get_their_problem_and_disturb_nobody() {
    let siege = Siege::begin();
    let with = |rest: &str| format!(r#"{{"topic":"t","body":"x",{rest}}}"#);
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(100_000), close.repeat(100_000));
        format!(r#"{{"topic":"t","body":{open}1{close}}}"#)
    };
    let big_id = |len: usize| with(&format!(r#""id":"{}""#, "x".repeat(len)));
    for (name, body, want) in [
        (
            "topic twice",
            with(r#""topic":"t""#),
            (400, "duplicate_field", "topic"),
        ),
        (
            "body twice",
            with(r#""body":"x""#),
            (400, "duplicate_field", "body"),
        ),
        (
            "the same key, escaped",
            with(r#""t\u006fpic":"u""#),
            (400, "duplicate_field", "topic"),
        ),
        (
            "1e400",
            with(r#""delay_ms":1e400"#),
            (400, "invalid_number", ""),
        ),
        (
            "-1e400",
            with(r#""delay_ms":-1e400"#),
            (400, "invalid_number", ""),
        ),
        ("NaN", with(r#""delay_ms":NaN"#), (400, "invalid_json", "")),
        (
            "Infinity",
            with(r#""delay_ms":Infinity"#),
            (400, "invalid_json", ""),
        ),
        (
            "-0",
            with(r#""delay_ms":-0"#),
            (400, "invalid_delay", "delay_ms"),
        ),
        (
            "-0.0",
            with(r#""delay_ms":-0.0"#),
            (400, "invalid_delay", "delay_ms"),
        ),
        (
            "2^53 + 1",
            with(r#""delay_ms":9007199254740993"#),
            (400, "delay_out_of_range", "delay_ms"),
        ),
        (
            "2^63",
            with(r#""delay_ms":9223372036854775808"#),
            (400, "delay_out_of_range", "delay_ms"),
        ),
        (
            "2^64 + 5",
            with(r#""delay_ms":18446744073709551621"#),
            (400, "invalid_delay", "delay_ms"),
        ),
        (
            "one over",
            with(r#""delay_ms":315360000001"#),
            (400, "delay_out_of_range", "delay_ms"),
        ),
        (
            "a long duration",
            with(r#""delay":"87600h1ms""#),
            (400, "delay_out_of_range", "delay"),
        ),
        (
            "a duration of many digits",
            with(&format!(r#""delay":"{}h""#, "9".repeat(100_000))),
            (400, "delay_out_of_range", "delay"),
        ),
        (
            "a negative duration",
            with(r#""delay":"-1ns""#),
            (400, "invalid_delay", "delay"),
        ),
        (
            "a time before the epoch",
            with(r#""deliver_at":-1"#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "2^64 - 1 as a time",
            with(r#""deliver_at":18446744073709551615"#),
            (400, "delay_out_of_range", "deliver_at"),
        ),
        (
            "in the year 10^9",
            with(r#""deliver_at":31556889864403199000"#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "in the year 10^9, as text",
            with(r#""deliver_at":"1000000000-01-01T00:00:00Z""#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "in the year 9999",
            with(r#""deliver_at":"9999-12-31T23:59:59Z""#),
            (400, "delay_out_of_range", "deliver_at"),
        ),
        (
            "a leap second",
            with(r#""deliver_at":"2016-12-31T23:59:60Z""#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "a leap second, elsewhere",
            with(r#""deliver_at":"2017-01-01T05:44:60+05:45""#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "an offset of a day",
            with(r#""deliver_at":"2017-01-01T00:00:00+24:00""#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "an offset without a colon",
            with(r#""deliver_at":"2017-01-01T00:00:00+0545""#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "a time without an offset",
            with(r#""deliver_at":"2017-01-01T00:00:00""#),
            (400, "invalid_time", "deliver_at"),
        ),
        (
            "half a surrogate in the body",
            r#"{"topic":"t","body":"\ud800"}"#.to_owned(),
            (400, "invalid_json", ""),
        ),
        (
            "the other half in the topic",
            r#"{"topic":"\udc00","body":"x"}"#.to_owned(),
            (400, "invalid_json", ""),
        ),
        (
            "half a surrogate in a key",
            with(r#""\ud800":1"#),
            (400, "invalid_json", ""),
        ),
        (
            "a NUL in the topic",
            r#"{"topic":"t\u0000","body":"x"}"#.to_owned(),
            (400, "invalid_topic", "topic"),
        ),
        (
            "a NUL in the id",
            with(r#""id":"a\u0000""#),
            (400, "invalid_id", "id"),
        ),
        (
            "a NUL in a key",
            with(r#""id\u0000":"a""#),
            (400, "unknown_field", "id\\0"),
        ),
        (
            "a raw NUL",
            with("\"id\":\"a\0\""),
            (400, "invalid_json", ""),
        ),
        (
            "an id of 10 MB",
            big_id(10_000_000),
            (413, "body_too_big", ""),
        ),
        (
            "an id of 5 MB",
            big_id(5_000_000),
            (400, "invalid_id", "id"),
        ),
        (
            "an id with braces",
            with(r#""id":"{nsqdelayd}:secret""#),
            (400, "invalid_id", "id"),
        ),
        (
            "an id that ends a hash tag",
            with(r#""id":"a}:due""#),
            (400, "invalid_id", "id"),
        ),
        (
            "an id with a newline",
            with(r#""id":"a\nDEL x""#),
            (400, "invalid_id", "id"),
        ),
        (
            "an id with a CR",
            with(r#""id":"a\r\n*1""#),
            (400, "invalid_id", "id"),
        ),
        (
            "an id that looks minted",
            with(&format!(r#""id":"{}""#, "0".repeat(40))),
            (400, "invalid_id", "id"),
        ),
        (
            "base64 with a newline",
            r#"{"topic":"t","body_base64":"aGk=\n"}"#.to_owned(),
            (400, "invalid_base64", "body_base64"),
        ),
        (
            "base64 with a space",
            r#"{"topic":"t","body_base64":"aG k="}"#.to_owned(),
            (400, "invalid_base64", "body_base64"),
        ),
        (
            "base64 for URLs",
            r#"{"topic":"t","body_base64":"-_8="}"#.to_owned(),
            (400, "invalid_base64", "body_base64"),
        ),
        (
            "base64 with loose bits",
            r#"{"topic":"t","body_base64":"aGl="}"#.to_owned(),
            (400, "invalid_base64", "body_base64"),
        ),
        ("100,000 arrays", deep("[", "]"), (400, "json_too_deep", "")),
        (
            "100,000 objects",
            deep(r#"{"a":"#, "}"),
            (400, "json_too_deep", ""),
        ),
        (
            "a million values",
            with(&format!(r#""x":[{}0]"#, "0,".repeat(1_000_000))),
            (400, "json_too_large", ""),
        ),
        (
            "a million keys",
            format!("{{{}\"topic\":\"t\"}}", r#""":0,"#.repeat(900_000)),
            (400, "json_too_large", ""),
        ),
        (
            "a byte order mark",
            "\u{feff}{}".to_owned(),
            (400, "invalid_json", ""),
        ),
    ] {
        let answer = send(&siege, "POST", "/v1/messages", body.as_bytes());
        refused(&siege, name, &answer, want);
    }
    let answer = send(
        &siege,
        "POST",
        "/v1/messages",
        b"{\"topic\":\"t\",\"body\":\"\xff\"}",
    );
    refused(
        &siege,
        "a string that is not UTF-8",
        &answer,
        (400, "invalid_json", ""),
    );
    siege.memory_was_under(AT_REST + 96 * MIB);
}

#[test]
fn odd_documents_that_are_sound_are_taken_as_they_are() {
    let siege = Siege::begin();
    let consumer = Consumer::start(&siege.nsqd.tcp, "odd");
    for (body, bytes) in [
        (r#"{"topic":"odd","body":"nul\u0000"}"#, &b"nul\0"[..]),
        (r#"{"topic":"odd","body":"\ud83d\ude00"}"#, "😀".as_bytes()),
        (r#"{"topic":"odd","body_base64":"/+8"}"#, &[0xff, 0xef]),
        (r#"{"topic":"odd","body":"past","deliver_at":0}"#, b"past"),
        (
            r#"{"topic":"odd","body":"1969","deliver_at":"1969-12-31T23:59:59Z"}"#,
            b"1969",
        ),
        (
            r#"{"topic":"odd","body":"year 0","deliver_at":"0000-01-01T00:00:00-23:59"}"#,
            b"year 0",
        ),
        (
            r#"{"topic":"odd","body":"odd offset","deliver_at":"2017-01-01T05:45:59.999999999+05:45"}"#,
            b"odd offset",
        ),
        (
            r#"{"topic":"odd","body":"unknown offset","deliver_at":"2017-01-01T00:00:00-00:00"}"#,
            b"unknown offset",
        ),
        (r#"{"topic":"odd","body":"colons","id":"a:b:{}"}"#, b""),
        (r#"{"topic":"odd","body":"colons","id":"a:b:"}"#, b"colons"),
        (r#"{"topic":"odd","body":"0s","delay":"-0"}"#, b"0s"),
    ] {
        let answer = send(&siege, "POST", "/v1/messages", body.as_bytes());
        let want = if bytes.is_empty() { 400 } else { 201 };
        assert_eq!(answer.status, want, "{body}: {}", answer.text());
        if !bytes.is_empty() {
            wait::until(body, || consumer.copies_of(bytes) == 1);
        }
        siege.others_are_served(body);
    }
    consumer.wait_quiet(QUIET);
    assert!(consumer.copies().values().all(|copies| *copies == 1));
    every_key_is_ours(&siege);
    siege.memory_was_under(AT_REST);
}

/// No id and no topic can name a key.
fn every_key_is_ours(siege: &Siege) {
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query(&mut siege.redis.connection())
        .unwrap();
    for key in &keys {
        assert!(key.starts_with("{nsqdelayd"), "{key}");
        assert_eq!(key.matches('}').count(), 1, "{key}");
    }
}

/// Many large documents at once: parsed one value at a time, they hold little more than they are.
#[test]
fn large_documents_at_once_hold_a_bounded_memory() {
    const CLIENTS: usize = 30;
    let siege = Siege::begin();
    let escapes = r"\u0041".repeat((MAX_BODY_SIZE - 100) / 6);
    let documents = [
        format!(r#"{{"topic":"t","body":"{escapes}"}}"#),
        format!(r#"{{"messages":[{}0]}}"#, "{},".repeat(1_700_000)),
        format!(r#"{{"{}":1}}"#, "x".repeat(MAX_BODY_SIZE - 100)),
    ];
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (siege, document) = (&siege, &documents[number % documents.len()]);
            scope.spawn(move || {
                let answer = send(siege, "POST", "/v1/messages", document.as_bytes());
                let (_, code, _) = refusal(&answer);
                let want = ["json_too_large", "unknown_field", "overloaded"];
                let taken = answer.status == 201;
                assert!(taken || want.contains(&&*code), "{}", answer.text());
            });
        }
    });
    siege.others_are_served("large documents");
    // Each is held once as it came, with room to grow, and once as it was read.
    siege.memory_was_under(AT_REST + (CLIENTS * 3 * MAX_BODY_SIZE) as u64);
}
