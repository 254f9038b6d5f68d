//! What a hostile client says over nsqd's protocol, and the one answer that it gets.

use std::net::TcpStream;

use super::Then::{Closes, Waits};
use super::{AT_REST, MAX_BODY_SIZE, MAX_DELAY, MAX_MSG_SIZE, MIB, Siege, Then, frames, reset};
use crate::support::producer::{Producer, identify, mpub, publish};
use crate::support::wait;

/// Name, what is sent behind the magic, what the client does then, the answers.
type Case = (&'static str, Vec<u8>, Then, Vec<String>);

fn case(name: &'static str, sends: impl Into<Vec<u8>>, then: Then, answers: &[&str]) -> Case {
    let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
    (name, sends.into(), then, answers)
}

/// A refusal that needs no more bytes.
fn refused(name: &'static str, sends: impl Into<Vec<u8>>, answer: &str) -> Case {
    case(name, sends, Waits, &[&format!("!{answer}")])
}

fn check(siege: &Siege, cases: Vec<Case>) {
    for (name, sends, then, answers) in cases {
        let sends = [b"  V2".as_slice(), &sends].concat();
        assert_eq!(frames(&siege.app.tcp, &sends, then), answers, "{name}");
        siege.others_are_served(name);
    }
}

/// A line, then the size of a body that does not follow.
fn declares(line: &str, size: i32) -> Vec<u8> {
    [line.as_bytes(), b"\n", &size.to_be_bytes()].concat()
}

fn lines() -> Vec<Case> {
    let bad_topic = |shown: &str| format!("E_BAD_TOPIC PUB topic name \"{shown}\" is not valid");
    vec![
        case("a line of 17 KB", vec![b'x'; 17_000], Waits, &[]),
        case(
            "a line of 17 KB behind a message",
            [publish("t", b"a"), vec![b'P'; 17_000]].concat(),
            Waits,
            &["OK"],
        ),
        case("a line of 2 MB", vec![b' '; 2_000_000], Waits, &[]),
        refused("no command", "\n", "E_INVALID invalid command "),
        refused(
            "a command of NULs",
            "\0\0\0\0\n",
            r"E_INVALID invalid command \x00\x00\x00\x00",
        ),
        refused(
            "HTTP",
            "POST /pub?topic=t HTTP/1.1\r\n",
            "E_INVALID invalid command POST",
        ),
        refused("a topic of a NUL", "PUB \0\n", &bad_topic(r"\x00")),
        refused(
            "a topic in UTF-8",
            "PUB größe\n",
            &bad_topic(r"gr\xc3\xb6\xc3\x9fe"),
        ),
        refused(
            "a topic that is not UTF-8",
            b"PUB \xff\xfe\n",
            &bad_topic(r"\xff\xfe"),
        ),
        refused("a topic of #", "PUB #\n", &bad_topic("#")),
        refused("a topic with #", "PUB a#b\n", &bad_topic("a#b")),
        refused(
            "only #ephemeral",
            "PUB #ephemeral\n",
            &bad_topic("#ephemeral"),
        ),
        refused(
            "a topic of 16 KB",
            format!("PUB {}\n", "x".repeat(16_000)),
            &bad_topic(&"x".repeat(16_000)),
        ),
        refused(
            "a topic with braces",
            "PUB {nsqdelayd}:secret\n",
            &bad_topic("{nsqdelayd}:secret"),
        ),
    ]
}

fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (line, name) in [("PUB t", "PUB"), ("DPUB t 5", "DPUB")] {
        for size in [0, -1, i32::MIN] {
            let answer = format!("E_BAD_MESSAGE {name} invalid message body size {size}");
            cases.push(refused(
                "a size of a message",
                declares(line, size),
                &answer,
            ));
        }
        for size in [i32::MAX, 1_048_577] {
            let answer = format!("E_BAD_MESSAGE {name} message too big {size} > {MAX_MSG_SIZE}");
            cases.push(refused("a message too big", declares(line, size), &answer));
        }
    }
    for name in ["IDENTIFY", "AUTH", "MPUB", "MDPUB"] {
        let line = match name {
            "MPUB" => "MPUB t",
            "MDPUB" => "MDPUB t 5",
            alone => alone,
        };
        for size in [0, -1, i32::MIN] {
            let answer = format!("E_BAD_BODY {name} invalid body size {size}");
            cases.push(refused("a size of a body", declares(line, size), &answer));
        }
        for size in [i32::MAX, 5_242_881] {
            let answer = format!("E_BAD_BODY {name} body too big {size} > {MAX_BODY_SIZE}");
            cases.push(refused("a body too big", declares(line, size), &answer));
        }
    }
    cases
}

fn batches() -> Vec<Case> {
    let counted = |count: i32, rest: &[u8]| {
        let head = declares("MPUB t", 5_242_880);
        [&head, &count.to_be_bytes()[..], rest].concat()
    };
    let invalid = |count: i32| {
        let answer = format!("E_BAD_BODY MPUB invalid message count {count}");
        refused("a count", counted(count, b""), &answer)
    };
    vec![
        invalid(0),
        invalid(-1),
        invalid(i32::MIN),
        invalid(i32::MAX),
        invalid(1_048_576),
        case(
            "a million messages, and the end",
            counted(1_000_000, b""),
            Closes,
            &["!E_BAD_MESSAGE MPUB failed to read message(0) body size"],
        ),
        refused(
            "a second message of size 0",
            counted(2, b"\0\0\0\x01x\0\0\0\0"),
            "E_BAD_MESSAGE MPUB invalid message(1) body size 0",
        ),
        refused(
            "a message of 2 GiB",
            counted(2, b"\x7f\xff\xff\xff"),
            "E_BAD_MESSAGE MPUB message too big 2147483647 > 1048576",
        ),
    ]
}

fn delays() -> Vec<Case> {
    let mut cases = Vec::new();
    for delay in [
        "315360000001",
        "9223372036854775808",
        // These wrap to little in nsqd.
        "18446744073710",
        "18446744073709551621",
        "340282366920938463463374607431768211461",
    ] {
        let answer = format!("E_INVALID DPUB timeout {delay} out of range 0-{MAX_DELAY}");
        cases.push(refused("a delay", format!("DPUB t {delay}\n"), &answer));
    }
    for delay in ["-1", "+1", "1.0", "1e3", "0x10", "NaN", "1_000"] {
        let answer = format!("E_INVALID DPUB could not parse timeout {delay}");
        cases.push(refused("a delay", format!("DPUB t {delay}\n"), &answer));
    }
    for (id, shown) in [("{a}:due", "{a}:due"), ("a/b", "a/b"), ("a\0b", r"a\x00b")] {
        let answer = format!(
            "E_INVALID DPUB id \"{shown}\" is not valid: an id is 1 to 128 printable ASCII \
             characters without space, /, {{ and }}"
        );
        cases.push(refused("an id", format!("DPUB t 5 {id}\n"), &answer));
    }
    cases
}

fn json() -> Vec<Case> {
    let undecodable = "E_BAD_BODY IDENTIFY failed to decode JSON body";
    let deep = "[".repeat(100_000);
    let deep_objects = "{\"a\":".repeat(100_000);
    vec![
        refused("100,000 arrays in IDENTIFY", identify(&deep), undecodable),
        refused(
            "100,000 objects in IDENTIFY",
            identify(&deep_objects),
            undecodable,
        ),
        refused(
            "100,000 closed arrays in IDENTIFY",
            identify(&format!("{{\"x\":{deep}{}}}", "]".repeat(100_000))),
            undecodable,
        ),
        refused("IDENTIFY with NaN", identify("{\"a\":NaN}"), undecodable),
        refused(
            "IDENTIFY with 2^53 + 1",
            identify("{\"heartbeat_interval\":9007199254740993}"),
            "E_BAD_BODY IDENTIFY heartbeat interval (9007199254740993) is invalid",
        ),
        case(
            "a client's name of 5 MB",
            identify(&format!("{{\"client_id\":\"{}\"}}", "x".repeat(5_000_000))),
            Closes,
            &["OK"],
        ),
    ]
}

#[test]
fn hostile_commands_get_their_error_and_disturb_nobody() {
    let siege = Siege::begin();
    for table in [lines(), sizes(), batches(), delays(), json()] {
        check(&siege, table);
    }
    siege.memory_was_under(AT_REST + 32 * MIB);
}

#[test]
fn a_magic_may_come_in_pieces_and_no_other_is_taken() {
    let siege = Siege::begin();
    let mut client = Producer::try_connect_raw(&siege.app.tcp).unwrap();
    for byte in [b"  V2".as_slice(), &publish("t", b"a")].concat() {
        client.send(&[byte]).unwrap();
    }
    client.expect_ok();
    for magic in [
        "  V1",
        "  V3",
        "V2  ",
        "\0\0\0\0",
        "GET ",
        "\u{16}\u{3}\u{1}\0",
        "  v2",
    ] {
        let sends = [magic.as_bytes(), b"PUB t\n\0\0\0\x01a"].concat();
        assert_eq!(
            frames(&siege.app.tcp, &sends, Waits),
            ["!E_BAD_PROTOCOL"],
            "{magic:?}"
        );
        siege.others_are_served(magic);
    }
    assert_eq!(frames(&siege.app.tcp, b"  V", Closes), [""; 0]);
    siege.memory_was_under(AT_REST);
}

#[test]
fn resets_lose_nothing_that_was_acknowledged_and_disturb_nobody() {
    const RESETS: usize = 300;
    let siege = Siege::begin();
    let mut acknowledged = 0;
    for number in 0..RESETS {
        let mut client = siege.app.producer();
        let half = mpub("resets", &[&vec![b'x'; 1 + number * 100]]);
        client.send(&publish("resets", b"whole")).unwrap();
        client.send(&half[..half.len() - 1]).unwrap();
        // Its OK has come and is not read: the close is a reset.
        reset(&client.socket().unwrap());
        acknowledged += 1;
    }
    siege.others_are_served("resets");
    wait::until("the whole messages to arrive", || {
        siege.nsqd.message_count("resets") >= acknowledged
    });
    siege.others_are_served("resets");
    assert_eq!(siege.nsqd.message_count("resets"), acknowledged);
    siege.memory_was_under(AT_REST + 16 * MIB);
}

/// Conversations bent at random. Whatever they come to be, there are frames and then a close.
#[test]
fn mutants_get_frames_and_a_close_and_disturb_nobody() {
    const MUTANTS: usize = 1_000;
    let siege = Siege::begin();
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let sound = [
        b"  V2".to_vec(),
        identify(r#"{"client_id":"c","feature_negotiation":true}"#),
        publish("t", b"body"),
        b"DPUB t 315360000000 mine\n\0\0\0\x01a".to_vec(),
        mpub("t", &[b"a", b"bc", b"def"]),
        b"MDPUB t 315360000000\n\0\0\0\x09\0\0\0\x01\0\0\0\x01x".to_vec(),
        b"CANCEL mine\nNOP\nCANCEL nobody\n".to_vec(),
        b"AUTH\n\0\0\0\x01s".to_vec(),
    ]
    .concat();
    for number in 0..MUTANTS {
        let mut sends = sound.clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..sends.len());
            match random.u8(..4) {
                0 => sends[at] = random.u8(..),
                1 => drop(sends.splice(at..at, [0, 0xff, b'\n', b' '])),
                2 => sends.truncate(at.max(1)),
                _ => drop(sends.drain(at..(at + 5).min(sends.len()))),
            }
            if sends.is_empty() {
                break;
            }
        }
        // A frame that is none would fail the reading of it.
        let answers = frames(&siege.app.tcp, &sends, Closes);
        let errors = answers
            .iter()
            .filter(|a| a.starts_with("!E_") && !is_soft(a));
        assert!(errors.count() <= 1, "{number}: {answers:?}");
        if number % 100 == 0 {
            siege.others_are_served("a mutant");
        }
    }
    siege.others_are_served("mutants");
    siege.memory_was_under(AT_REST + 16 * MIB);
}

/// Errors that do not close.
fn is_soft(answer: &str) -> bool {
    ["!E_NOT_FOUND", "!E_IN_FLIGHT", "!E_CANCEL_FAILED"]
        .iter()
        .any(|soft| answer.starts_with(soft))
}

#[test]
fn a_thousand_half_open_connections_are_closed_without_a_word() {
    const EACH: usize = 500;
    let siege = Siege::begin_with(|builder| builder.flag("--handshake-timeout", "3s"));
    let connect = |address: &str| TcpStream::connect(address).unwrap();
    let tcp: Vec<_> = (0..EACH).map(|_| connect(&siege.app.tcp)).collect();
    let http: Vec<_> = (0..EACH).map(|_| connect(&siege.app.http)).collect();
    for (number, stream) in tcp.iter().chain(&http).enumerate() {
        use std::io::Write as _;
        let begun: &[u8] = if number < EACH {
            b"  V"
        } else {
            b"POST /pub?to"
        };
        let mut stream = stream;
        stream.write_all(&begun[..number % begun.len()]).unwrap();
    }
    siege.others_are_served("half-open connections");
    for stream in tcp.into_iter().chain(http) {
        assert_eq!(super::everything(stream), "");
    }
    siege.others_are_served("their end");
    siege.memory_was_under(AT_REST + 32 * MIB);
}
