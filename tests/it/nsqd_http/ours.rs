//! What is ours alone: the id, `defer` on `/mpub`, refusals of the store, and clients that mean ill.

use std::time::Duration;

use nsqdelayd::message::{Delay, Due};
use nsqdelayd::phase::Phase;
use nsqdelayd::store::ErrorKind;

use super::{mpub, post};
use crate::support::http_door::{HttpDoor, Line, request};
use crate::support::memory_store::Mood;

#[tokio::test]
async fn a_declared_body_over_the_maximum_is_refused_unread() {
    let door = HttpDoor::open().await;
    for (path, message) in [
        ("/pub?topic=t", "MSG_TOO_BIG"),
        ("/mpub?topic=t", "BODY_TOO_BIG"),
    ] {
        let mut line = Line::connect(&door.address).await;
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n");
        let reply = line.ask(head).await;
        assert_eq!(reply.status, 413);
        assert_eq!(reply.text(), format!("{{\"message\":\"{message}\"}}"));
    }
}

#[tokio::test]
async fn a_client_that_still_sends_gets_the_refusal() {
    let door = HttpDoor::open().await;
    let reply = door
        .ask(post("/pub?topic=t", vec![b'x'; 8 * 1024 * 1024]))
        .await;
    assert_eq!(reply.text(), r#"{"message":"MSG_TOO_BIG"}"#);
}

#[tokio::test]
async fn what_was_accepted_is_in_the_store_as_it_was_sent() {
    let door = HttpDoor::open().await;
    let reply = door.ask(post("/pub?topic=t&defer=1500", b"\0\xff\n")).await;
    assert_eq!(reply.text(), "OK");
    assert_eq!(reply.header("X-Nsqdelayd-Id"), door.store.ids()[0]);
    let messages = door.store.messages();
    assert_eq!(&messages[0].body[..], b"\0\xff\n");
    assert_eq!(messages[0].due, Due::After(Delay(1500)));

    door.ask(post("/mpub?topic=t&defer=7", "a\r\n\nb")).await;
    door.ask(post(
        "/mpub?topic=t&binary=1&defer=8",
        mpub(2, &[b"c\n", b"d"]),
    ))
    .await;
    let kept = door.store.messages();
    let kept: Vec<_> = kept[1..].iter().map(|m| (m.due, m.body.to_vec())).collect();
    let after = |ms| Due::After(Delay(ms));
    assert_eq!(
        kept,
        [
            (after(7), b"a\r".to_vec()),
            (after(7), b"b".to_vec()),
            (after(8), b"c\n".to_vec()),
            (after(8), b"d".to_vec()),
        ]
    );
    assert_eq!(door.store.calls(), 3, "a batch is one call: all or nothing");
}

#[tokio::test]
async fn the_clients_own_id_is_taken_and_guarded() {
    let door = HttpDoor::open().await;
    for (path, body, status, text) in [
        ("/pub?topic=t&id=a", "x", 200, "OK"),
        ("/pub?topic=t&id=a", "x", 200, "OK"),
        (
            "/pub?topic=t&id=a",
            "y",
            409,
            r#"{"message":"ID_CONFLICT"}"#,
        ),
        ("/pub?topic=t&id=", "x", 400, r#"{"message":"INVALID_ID"}"#),
        (
            "/pub?topic=t&id=a%20b",
            "x",
            400,
            r#"{"message":"INVALID_ID"}"#,
        ),
        (
            "/pub?topic=t&id=%7Ba%7D",
            "x",
            400,
            r#"{"message":"INVALID_ID"}"#,
        ),
        (
            "/pub?topic=t&id=%ff",
            "x",
            400,
            r#"{"message":"INVALID_ID"}"#,
        ),
    ] {
        let reply = door.ask(post(path, body)).await;
        assert_eq!((reply.status, &*reply.text()), (status, text), "{path}");
        if status == 200 {
            assert_eq!(reply.header("X-Nsqdelayd-Id"), "a");
        }
    }
}

#[tokio::test]
async fn delays_that_wrap_in_nsqd_are_refused() {
    let door = HttpDoor::open().await;
    for defer in ["18446744073710", "9223372036854775807"] {
        let reply = door
            .ask(post(&format!("/pub?topic=t&defer={defer}"), "x"))
            .await;
        assert_eq!(reply.text(), r#"{"message":"INVALID_DEFER"}"#, "{defer}");
    }
    let reply = door.ask(post("/mpub?topic=t&defer=x", "x")).await;
    assert_eq!(reply.text(), r#"{"message":"INVALID_DEFER"}"#);
}

#[tokio::test]
async fn what_the_store_does_not_take_is_not_ok() {
    let door = HttpDoor::open().await;
    for (kind, status, message) in [
        (ErrorKind::Unavailable, 503, "STORE_UNAVAILABLE"),
        (ErrorKind::Unknown, 503, "OUTCOME_UNKNOWN"),
        (ErrorKind::Refused, 503, "STORE_REFUSED"),
        (ErrorKind::Cancelled, 409, "ID_CANCELLED"),
        (ErrorKind::Corrupt, 500, "INTERNAL_ERROR"),
    ] {
        door.store.set_mood(Mood::Failing(kind));
        for path in ["/pub?topic=t", "/mpub?topic=t"] {
            let reply = door.ask(post(path, "x")).await;
            assert_eq!(reply.status, status);
            assert_eq!(reply.text(), format!("{{\"message\":\"{message}\"}}"));
        }
        let reply = door.bare("GET", "/ping").await;
        assert_eq!(
            (reply.status, &*reply.text()),
            (500, "NOK - redis is not reachable")
        );
        assert_eq!(reply.header("X-Nsq-Content-Type"), "");
        let reply = door.bare("GET", "/stats?format=json").await;
        assert_eq!(reply.json()["health"], "NOK - redis is not reachable");
    }
}

#[tokio::test]
async fn a_stopping_instance_says_exiting_after_its_checks() {
    let door = HttpDoor::open().await;
    door.phase.send_replace(Phase::Draining);
    for path in ["/pub?topic=t", "/mpub?topic=t"] {
        let reply = door.ask(post(path, "x")).await;
        assert_eq!(
            (reply.status, &*reply.text()),
            (503, r#"{"message":"EXITING"}"#)
        );
    }
    assert_eq!(door.ask(post("/pub?topic=!", "x")).await.status, 400);
}

#[tokio::test]
async fn broken_requests_end_their_own_connection_only() {
    let door = HttpDoor::open().await;
    let mut bystander = Line::connect(&door.address).await;
    let chunked = "POST /pub?topic=t HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let with =
        |header: &str| format!("POST /pub?topic=t HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\nhi");
    for (bytes, status) in [
        (format!("{chunked}zz\r\nhi\r\n0\r\n\r\n"), 500),
        (format!("{chunked}-2\r\nhi\r\n0\r\n\r\n"), 500),
        (with("Transfer-Encoding: gzip, chunked"), 501),
        (
            format!("{chunked}fffffffffffffffff\r\nhi\r\n0\r\n\r\n"),
            500,
        ),
        (format!("{chunked}2\r\nhiX0\r\n\r\n"), 500),
        (with("Content-Length: -1"), 400),
        (with("Content-Length: 99999999999999999999999"), 400),
        (with("Content-Length: 2\r\nContent-Length: 3"), 400),
        (with("Content-Length: +2"), 400),
        (with("Content-Length: 2\r\nBad Header: x"), 400),
        (with("Transfer-Encoding: gzip"), 400),
        ("garbage\r\n\r\n".to_owned(), 400),
        ("GET /ping HTTP/3.7\r\n\r\n".to_owned(), 400),
        (
            format!(
                "GET /ping HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
                "x".repeat(2 << 20)
            ),
            431,
        ),
        (
            format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(2 << 20)),
            431,
        ),
    ] {
        let mut line = Line::connect(&door.address).await;
        let reply = line.ask(&bytes).await;
        let start: String = bytes.chars().take(200).collect();
        assert_eq!(reply.status, status, "{start}");
        assert!(line.is_closed().await, "{start}");
        let reply = bystander.ask(request("GET", "/ping", "", "")).await;
        assert_eq!(reply.status, 200);
    }
    assert_eq!(door.store.calls(), 0);
}

#[tokio::test]
async fn slow_heads_are_cut_and_idle_connections_are_not() {
    // Long enough for a whole request on a busy machine.
    let timeout = Duration::from_secs(1);
    let door = HttpDoor::open_with(|config| config.handshake_timeout = timeout).await;
    let mut idle = Line::connect(&door.address).await;
    let ping = request("GET", "/ping", "", "");
    assert_eq!(idle.ask(&ping).await.status, 200);
    let mut silent = Line::connect(&door.address).await;
    let mut slow = Line::connect(&door.address).await;
    slow.send(b"GET /ping HT").await;
    assert!(slow.is_closed().await);
    assert!(silent.is_closed().await);
    assert_eq!(idle.ask(&ping).await.status, 200);
    idle.send(b"GET /ping HT").await;
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let door = HttpDoor::open_with(|config| config.max_connections = 1).await;
    let mut first = Line::connect(&door.address).await;
    let ping = request("GET", "/ping", "", "");
    assert_eq!(first.ask(&ping).await.status, 200);
    let mut second = Line::connect(&door.address).await;
    let reply = second.reply(true).await;
    assert_eq!(
        (reply.status, &*reply.text()),
        (503, r#"{"message":"TOO_MANY_CONNECTIONS"}"#)
    );
    assert_eq!(first.ask(&ping).await.status, 200);
}

#[tokio::test]
async fn a_drain_answers_what_was_asked_and_closes_what_is_idle() {
    let door = HttpDoor::open().await;
    let mut idle = Line::connect(&door.address).await;
    assert_eq!(idle.ask(request("GET", "/ping", "", "")).await.status, 200);
    door.store.set_mood(Mood::Stalled);
    let mut busy = Line::connect(&door.address).await;
    busy.send(post("/pub?topic=t", "x")).await;
    while door.store.calls() == 0 {
        tokio::task::yield_now().await;
    }
    door.drain.cancel();
    assert!(idle.is_closed().await);
    door.store.set_mood(Mood::Well);
    assert_eq!(busy.reply(true).await.text(), "OK");
    assert!(busy.is_closed().await);
    drop((idle, busy));
    door.tracker.close();
    door.tracker.wait().await;
}

#[tokio::test]
async fn a_body_that_comes_after_its_refusal_is_not_the_next_request() {
    let door = HttpDoor::open().await;
    let json = "Content-Type: application/json\r\n";
    for (path, status) in [("/v1/messages?no=1", 400), ("/nope", 404), ("/ping", 405)] {
        let mut line = Line::connect(&door.address).await;
        let body = r#"{"topic":"t","body":"x"}"#;
        let whole = request("POST", path, json, body);
        for _ in 0..3 {
            let (head, body) = whole.split_at(whole.len() - body.len());
            line.send(head).await;
            // The head alone is enough to refuse it.
            tokio::task::yield_now().await;
            line.send(body).await;
            assert_eq!(line.reply(true).await.status, status, "{path}");
        }
        // One that never comes is not waited for.
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        );
        let reply = line.ask(head).await;
        assert_eq!(
            (reply.status, reply.header("Connection")),
            (status, "close")
        );
        assert!(line.is_closed().await);
    }
}
