//! HTTP clients that would make us hold much: bodies, answers, lines.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};

use super::http::{answers, one};
use super::{AT_REST, IN_FLIGHT, MAX_BODY_SIZE, MAX_MSG_SIZE, MIB, Siege, everything};

#[test]
fn pipelined_huge_bodies_are_answered_one_by_one() {
    const REQUESTS: usize = 20;
    let siege = Siege::begin();
    let request = |path: &str, body: &[u8]| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let far = super::MAX_DELAY;
    let largest = request(
        &format!("/pub?topic=t&defer={far}"),
        &vec![b'x'; MAX_MSG_SIZE],
    );
    let newlines = request("/mpub?topic=t", &vec![b'\n'; MAX_BODY_SIZE]);
    let taken = answers(
        &siege,
        [largest.repeat(REQUESTS / 2), newlines.repeat(REQUESTS)].concat(),
    );
    assert_eq!(taken, vec![(200, "OK".to_owned()); REQUESTS + REQUESTS / 2]);
    siege.others_are_served("pipelined bodies");
    // One byte more is refused, and then nothing of that connection is looked at.
    let over = request("/pub?topic=t", &vec![b'x'; 8 * MAX_MSG_SIZE]);
    let refused = answers(&siege, over.repeat(3));
    assert_eq!(refused, one(413, r#"{"message":"MSG_TOO_BIG"}"#));
    siege.others_are_served("bodies too big");
    siege.memory_was_under(AT_REST + 96 * MIB);
}

#[test]
fn answers_that_nobody_takes_hold_little() {
    const CLIENTS: usize = 50;
    let siege = Siege::begin();
    let request = "GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| TcpStream::connect(&siege.app.http).unwrap())
        .collect();
    for mut client in &clients {
        client.set_nonblocking(true).unwrap();
        // As much as it takes without anybody reading an answer.
        while client.write_all(request.as_bytes()).is_ok() {}
    }
    siege.others_are_served("clients that never read");
    siege.memory_was_under(AT_REST + 64 * MIB);
}

/// All requests together may hold `in_flight_bytes_max`; what comes beyond is refused and held nowhere.
#[test]
fn bodies_that_stall_hold_a_bounded_memory() {
    const CLIENTS: usize = 100;
    let siege = Siege::begin();
    let head = format!("Content-Length: {MAX_BODY_SIZE}\r\n\r\n");
    let line = vec![b'x'; MAX_BODY_SIZE - 1];
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| TcpStream::connect(&siege.app.http).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            let (head, line) = (&head, &line);
            scope.spawn(move || {
                write!(client, "POST /mpub?topic=t HTTP/1.1\r\nHost: x\r\n{head}").unwrap();
                // One that is refused is read on for a while only.
                drop(client.write_all(line));
            });
        }
    });
    siege.others_are_served("stalled bodies");
    let mut overloaded = 0;
    let mut whole = 0;
    for mut client in clients {
        drop(client.write_all(b"x"));
        drop(client.shutdown(Shutdown::Write));
        let answer = everything(client);
        overloaded += usize::from(answer.contains(r#"{"message":"OVERLOADED"}"#));
        whole += usize::from(answer.contains(r#"{"message":"MSG_TOO_BIG"}"#));
    }
    eprintln!("{whole} whole, {overloaded} refused");
    assert_eq!(whole + overloaded, CLIENTS);
    assert!(overloaded > 0);
    siege.others_are_served("the end of the bodies");
    siege.memory_was_under(AT_REST + IN_FLIGHT);
}

#[test]
fn a_body_has_an_end_to_its_lines() {
    let siege = Siege::begin();
    let body = b"x\n".repeat((1 << 20) + 1);
    let head = format!(
        "POST /mpub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let over = [head.as_bytes(), &body].concat();
    assert_eq!(
        answers(&siege, over),
        one(413, r#"{"message":"BODY_TOO_BIG"}"#)
    );
    siege.others_are_served("a line too many");
}

/// A line of a byte becomes a message of a hundred.
#[test]
fn bodies_of_the_smallest_lines_hold_a_bounded_memory() {
    const CLIENTS: usize = 3;
    // A quarter of the usual, which takes long in a build for tests.
    let siege = Siege::begin_with(|builder| {
        builder
            .flag("--max-msg-size", "262144")
            .flag("--max-body-size", "1310720")
    });
    let post = |body: &[u8]| {
        let far = super::MAX_DELAY;
        let head = format!(
            "POST /mpub?topic=t&defer={far} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let lines = post(&b"x\n".repeat(1_310_720 / 2));
    let all: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| answers(&siege, &lines)))
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let count = |status, body: &str| all.iter().filter(|a| **a == one(status, body)).count();
    let taken = count(200, "OK");
    let refused =
        count(503, r#"{"message":"OVERLOADED"}"#) + count(503, r#"{"message":"STORE_REFUSED"}"#);
    assert!(taken > 0 && taken + refused == CLIENTS, "{all:?}");
    siege.others_are_served("the smallest lines");
    siege.memory_was_under(AT_REST + 256 * MIB);
}
