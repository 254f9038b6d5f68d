//! What a hostile client says over HTTP: framing that two parties could read in two ways, heads and
//! bodies that are huge, slow or never end.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use super::{AT_REST, MIB, Siege};
use crate::support::http::Http;
use crate::support::wait;

/// Follows a request whose end is in doubt. It must never be answered.
const SMUGGLED: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
const PUB: &str = "POST /pub?topic=t HTTP/1.1\r\nHost: x\r\n";
const V1: &str = "POST /v1/messages?topic=t HTTP/1.1\r\nHost: x\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Sends bytes on a connection of their own, and gives the status and body of each answer until the
/// server closes.
pub(super) fn answers(siege: &Siege, bytes: impl AsRef<[u8]>) -> Vec<(u16, String)> {
    let mut http = Http::connect(&siege.app.http).unwrap();
    // The server may close before all is sent: what it answered counts.
    drop(http.send_raw(bytes.as_ref()));
    http.half_close();
    let mut answers = Vec::new();
    while let Ok(answer) = http.read_answer() {
        answers.push((answer.status, code(&answer.text())));
    }
    answers
}

/// Of a problem its code, of all else the whole.
fn code(body: &str) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let code = problem.and_then(|problem| Some(problem.get("code")?.as_str()?.to_owned()));
    code.unwrap_or_else(|| body.to_owned())
}

pub(super) fn one(status: u16, body: &str) -> Vec<(u16, String)> {
    vec![(status, body.to_owned())]
}

#[test]
fn bodies_whose_end_is_in_doubt_are_the_last_of_their_connection() {
    let siege = Siege::begin();
    let bad_chunks = [
        "zz\r\nhi\r\n0\r\n\r\n",
        "-2\r\nhi\r\n0\r\n\r\n",
        "+2\r\nhi\r\n0\r\n\r\n",
        "0x2\r\nhi\r\n0\r\n\r\n",
        "2\r\nhiX0\r\n\r\n",
        "2\r\nh\r\n0\r\n\r\n",
        "2\nhi\n0\n\n",
        "\r\nhi\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhi\r\n",
        "10000000000000002\r\nhi\r\n0\r\n\r\n",
    ];
    for chunks in bad_chunks {
        let sends = format!("{PUB}{CHUNKED}\r\n{chunks}{SMUGGLED}");
        let want = one(500, r#"{"message":"INTERNAL_ERROR"}"#);
        assert_eq!(answers(&siege, sends), want, "{chunks:?}");
        let sends = format!("{V1}{CHUNKED}\r\n{chunks}{SMUGGLED}");
        assert_eq!(
            answers(&siege, sends),
            one(400, "body_unreadable"),
            "{chunks:?}"
        );
        siege.others_are_served(chunks);
    }
    let extension = format!("2;{}\r\nhi\r\n0\r\n\r\n", "x".repeat(2_000_000));
    let sends = format!("{V1}{CHUNKED}\r\n{extension}{SMUGGLED}");
    assert_eq!(answers(&siege, sends), one(400, "body_unreadable"));
    let trailers = format!("2\r\nhi\r\n0\r\n{}\r\n", "X: y\r\n".repeat(300_000));
    let sends = format!("{V1}{CHUNKED}\r\n{trailers}{SMUGGLED}");
    assert_eq!(answers(&siege, sends), one(400, "body_unreadable"));
    siege.others_are_served("trailers");
    // The client leaves before the end.
    let sends = format!("{V1}Content-Length: 9\r\n\r\nhi");
    assert_eq!(answers(&siege, sends), one(400, "body_unreadable"));
    let sends = format!("{PUB}Content-Length: 9\r\n\r\nhi");
    let want = one(500, r#"{"message":"INTERNAL_ERROR"}"#);
    assert_eq!(answers(&siege, sends), want);
    siege.memory_was_under(AT_REST + 16 * MIB);
}

#[test]
fn lengths_that_are_none_or_two_are_refused() {
    let siege = Siege::begin();
    for start in [PUB, V1] {
        for headers in [
            "Content-Length: -1",
            "Content-Length: +2",
            "Content-Length: 2x",
            "Content-Length: 0x2",
            "Content-Length: 2 2",
            "Content-Length:",
            "Content-Length: 18446744073709551616",
            "Content-Length: 99999999999999999999999",
            "Content-Length: 2\r\nContent-Length: 3",
            "Content-Length: 3\r\nContent-Length: 2",
            "Content-Length: 2, 3",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: gzip\r\nContent-Length: 2",
            "Content-Length : 2",
            "Bad Header: x\r\nContent-Length: 2",
            "X: a\0b\r\nContent-Length: 2",
        ] {
            let sends = format!("{start}{headers}\r\n\r\nhi{SMUGGLED}");
            let answers = answers(&siege, sends);
            assert_eq!(answers, one(400, ""), "{headers:?}");
            siege.others_are_served(headers);
        }
        // Both: the chunks count, nothing is taken for a second request, and that was the last.
        for headers in [
            format!("Content-Length: 4\r\n{CHUNKED}"),
            format!("{CHUNKED}Content-Length: 4\r\n"),
        ] {
            let sends = format!("{start}{headers}\r\n2\r\nhi\r\n0\r\n\r\n{SMUGGLED}");
            let answers = answers(&siege, sends);
            let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
            let taken = if start == PUB { 200 } else { 201 };
            assert_eq!(statuses, [taken], "{headers:?}: {answers:?}");
        }
        // The same length twice is one length.
        let sends = format!("{start}Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi");
        assert!(matches!(answers(&siege, sends)[..], [(200 | 201, _)]));
        // More than fits anything: refused before it is read.
        for length in ["99999999", "9223372036854775807", "18446744073709551613"] {
            let sends = format!("{start}Content-Length: {length}\r\n\r\nhi{SMUGGLED}");
            let body = if start == PUB {
                r#"{"message":"MSG_TOO_BIG"}"#
            } else {
                "body_too_big"
            };
            assert_eq!(answers(&siege, sends), one(413, body), "{length}");
        }
        siege.others_are_served("huge lengths");
    }
    siege.memory_was_under(AT_REST);
}

#[test]
fn huge_heads_are_refused_at_64_kib() {
    let siege = Siege::begin();
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes()
    };
    let value = "x".repeat(2_000_000);
    let cases = [
        ("a header of 2 MB", get("/ping", &format!("X: {value}\r\n"))),
        ("a name of 2 MB", get("/ping", &format!("{value}: x\r\n"))),
        (
            "2 MB of headers",
            get("/ping", &"X: yyyyyyyyyyyyyyy\r\n".repeat(100_000)),
        ),
        ("a target of 2 MB", get(&format!("/{value}"), "")),
        (
            "a query of 2 MB",
            get(&format!("/v1/messages?topic={value}"), ""),
        ),
        ("a line without an end", vec![b'G'; 2_000_000]),
        (
            "a method of 2 MB",
            format!("{value} /ping HTTP/1.1\r\n\r\n").into_bytes(),
        ),
    ];
    for (name, sends) in &cases {
        let answers = answers(&siege, sends);
        assert!(
            matches!(answers[..], [(431 | 400 | 414, _)]),
            "{name}: {answers:?}"
        );
        siege.others_are_served(name);
    }
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| answers(&siege, &cases[0].1));
        }
    });
    siege.others_are_served("fifty huge heads");
    siege.memory_was_under(AT_REST + 32 * MIB);
}

#[test]
fn slow_heads_are_cut_and_disturb_nobody() {
    const CLIENTS: usize = 100;
    let siege = Siege::begin_with(|builder| builder.flag("--handshake-timeout", "2s"));
    let mut slow: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| TcpStream::connect(&siege.app.http).unwrap())
        .collect();
    let head = "POST /pub?topic=t HTTP/1.1\r\nHost: x\r\nX: and so on\r\n".repeat(9);
    let mut sent = 0;
    // A byte at a time, for ever: the time-out counts from the first.
    while !slow.is_empty() {
        let byte = [head.as_bytes()[sent % head.len()]];
        slow.retain_mut(|stream| stream.write_all(&byte).is_ok());
        sent += 1;
        siege.others_are_served("slow heads");
        wait::pause(Duration::from_millis(20));
    }
    siege.memory_was_under(AT_REST + 16 * MIB);
}
