//! Where the door is meant to be nsqd's, the same bytes are sent to a real nsqd and to our listener,
//! and both must answer what the table says.

use std::fmt::Write as _;

use super::Then::{Closes, Waits};
use super::{
    Door, HI, MAX_BODY_SIZE, MAX_MSG_SIZE, Then, identify, mpub_body, sized, transcript, v2,
};
use crate::support::nsqd::Nsqd;

/// One conversation and what both sides must answer.
struct Case {
    sends: Vec<u8>,
    then: Then,
    answers: Vec<String>,
}

fn case(sends: &[&[u8]], then: Then, answers: &[&str]) -> Case {
    Case {
        sends: v2(sends),
        then,
        answers: answers.iter().map(|answer| (*answer).to_owned()).collect(),
    }
}

pub(super) fn an_nsqd() -> Nsqd {
    Nsqd::start_with(&[
        "--snappy=false",
        "--deflate=false",
        &format!("--max-msg-size={MAX_MSG_SIZE}"),
        &format!("--max-body-size={MAX_BODY_SIZE}"),
    ])
}

/// Runs the table against both.
async fn check(cases: Vec<Case>) {
    let nsqd = an_nsqd();
    let door = Door::open().await;
    let mut faults = String::new();
    for case in cases {
        let theirs = transcript(nsqd.tcp.parse().unwrap(), &case.sends, case.then).await;
        let ours = transcript(door.address, &case.sends, case.then).await;
        if ours != case.answers || theirs != case.answers {
            let sends = case.sends.escape_ascii().to_string();
            writeln!(
                faults,
                "sent {:.300}\n  nsqd {theirs:?}\n  ours {ours:?}\n  table {:?}",
                sends, case.answers
            )
            .unwrap();
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[tokio::test]
async fn lines_are_refused_as_by_nsqd() {
    let cases = vec![
        case(&[b"PUB t\n", HI], Closes, &["OK"]),
        case(&[b"PUB t\r\n", HI], Closes, &["OK"]),
        case(&[b"PUB t extra  more\n", HI], Closes, &["OK"]),
        case(&[b"NOP\nNOP x\n"], Closes, &[]),
        case(&[b"NO"], Closes, &[]),
        case(&[b""], Closes, &[]),
        case(&[b"\n"], Waits, &["!E_INVALID invalid command "]),
        case(&[b"\r\n"], Waits, &["!E_INVALID invalid command "]),
        case(&[b"pub t\n"], Waits, &["!E_INVALID invalid command pub"]),
        case(&[b" PUB t\n"], Waits, &["!E_INVALID invalid command "]),
        case(
            &[b"N\0\xff\"P x\n"],
            Waits,
            &[r#"!E_INVALID invalid command N\x00\xff"P"#],
        ),
        case(
            &[b"PUB\n"],
            Waits,
            &["!E_INVALID PUB insufficient number of parameters"],
        ),
        case(
            &[b"MPUB\n"],
            Waits,
            &["!E_INVALID MPUB insufficient number of parameters"],
        ),
        case(
            &[b"DPUB t\n"],
            Waits,
            &["!E_INVALID DPUB insufficient number of parameters"],
        ),
        case(
            &[b"MPUB b!\n"],
            Waits,
            &[r#"!E_BAD_TOPIC E_BAD_TOPIC MPUB topic name "b!" is not valid"#],
        ),
        case(
            &[b"DPUB b! x\n"],
            Waits,
            &[r#"!E_BAD_TOPIC DPUB topic name "b!" is not valid"#],
        ),
        // The replies to what came before the error come first; what follows it is not done.
        case(
            &[b"PUB t\n", HI, b"NOP\nPUB t\n", HI, b"CLS\n"],
            Waits,
            &["OK", "OK", "!E_INVALID cannot CLS in current state"],
        ),
    ];
    check(cases).await;
}

#[tokio::test]
async fn topics_are_refused_as_by_nsqd() {
    let bad_topic = |shown: &str| format!("!E_BAD_TOPIC PUB topic name {shown} is not valid");
    let long = "x".repeat(65);
    let mut cases = Vec::new();
    for (name, shown) in [
        ("", r#""""#.to_owned()),
        ("t#ephemera", "\"t#ephemera\"".to_owned()),
        ("#ephemeral", "\"#ephemeral\"".to_owned()),
        ("t\t\x01\"\\", r#""t\t\x01\"\\""#.to_owned()),
        ("\u{e9}", r#""\xc3\xa9""#.to_owned()),
        ("\u{200b}", r#""\u200b""#.to_owned()),
        (long.as_str(), format!("\"{long}\"")),
    ] {
        let line = format!("PUB {name}\n");
        cases.push(case(&[line.as_bytes()], Waits, &[&bad_topic(&shown)]));
    }
    cases.push(case(
        &[b"PUB \xff\xfe\n"],
        Waits,
        &[&bad_topic(r#""\xff\xfe""#)],
    ));
    let longest = format!("PUB {}#ephemeral\n", "x".repeat(54));
    cases.push(case(&[longest.as_bytes(), HI], Closes, &["OK"]));
    check(cases).await;
}

#[tokio::test]
async fn consumers_commands_are_refused_as_by_nsqd() {
    let mut cases = Vec::new();
    for command in [
        "CLS",
        "RDY",
        "FIN",
        "REQ",
        "TOUCH",
        "CLS 1",
        "FIN 0123456789abcdef",
        "RDY -1",
    ] {
        let name = command.split(' ').next().unwrap();
        let answer = format!("!E_INVALID cannot {name} in current state");
        let line = format!("{command}\n");
        cases.push(case(&[line.as_bytes()], Waits, &[&answer]));
    }
    check(cases).await;
}

#[tokio::test]
async fn a_line_fits_16_kib_with_its_end() {
    let fits = [b"NOP ".as_slice(), &[b'x'; 16_379], b"\n"].concat();
    let too_long = [b"NOP ".as_slice(), &[b'x'; 16_380]].concat();
    check(vec![
        case(&[&fits, b"PUB t\n", HI], Closes, &["OK"]),
        case(&[&too_long], Waits, &[]),
        case(&[b"PUB t\n", HI, &too_long], Waits, &["OK"]),
    ])
    .await;
}

#[tokio::test]
async fn sizes_are_refused_as_by_nsqd() {
    let big = vec![b'x'; MAX_MSG_SIZE];
    let mut cases = vec![
        case(&[b"PUB t\n", &sized(&big)], Closes, &["OK"]),
        case(
            &[b"PUB t\n\0\0\x03\xe9"],
            Waits,
            &["!E_BAD_MESSAGE PUB message too big 1001 > 1000"],
        ),
    ];
    for (command, name) in [("PUB t", "PUB"), ("DPUB t 5", "DPUB")] {
        let line = format!("{command}\n");
        for (size, shown) in [
            (b"\0\0\0\0", "0"),
            (b"\xff\xff\xff\xff", "-1"),
            (b"\x80\0\0\0", "-2147483648"),
        ] {
            let answer = format!("!E_BAD_MESSAGE {name} invalid message body size {shown}");
            cases.push(case(&[line.as_bytes(), size], Waits, &[&answer]));
        }
        let answer = format!("!E_BAD_MESSAGE {name} message too big 2147483647 > 1000");
        cases.push(case(
            &[line.as_bytes(), b"\x7f\xff\xff\xff"],
            Waits,
            &[&answer],
        ));
        let answer = format!("!E_BAD_MESSAGE {name} failed to read message body size");
        cases.push(case(&[line.as_bytes(), b"\0\0\0"], Closes, &[&answer]));
        let answer = format!("!E_BAD_MESSAGE {name} failed to read message body");
        cases.push(case(
            &[line.as_bytes(), b"\0\0\0\x03hi"],
            Closes,
            &[&answer],
        ));
        cases.push(case(&[line.as_bytes(), b"\0\0\0\x03"], Closes, &[&answer]));
    }
    for (name, what) in [("IDENTIFY", "IDENTIFY"), ("AUTH", "AUTH")] {
        let line = format!("{name}\n");
        for (size, then, text) in [
            (b"\0\0\0\0".as_slice(), Waits, "invalid body size 0"),
            (b"\xff\xff\xff\xff", Waits, "invalid body size -1"),
            (b"\0\0\x13\x89", Waits, "body too big 5001 > 5000"),
            (b"\0\0", Closes, "failed to read body size"),
            (b"\0\0\0\x03{}", Closes, "failed to read body"),
        ] {
            let answer = format!("!E_BAD_BODY {what} {text}");
            cases.push(case(&[line.as_bytes(), size], then, &[&answer]));
        }
    }
    cases.push(case(
        &[b"AUTH secret\n"],
        Waits,
        &["!E_INVALID AUTH invalid number of parameters"],
    ));
    cases.push(case(
        &[b"AUTH\n", &sized(b"secret")],
        Waits,
        &["!E_AUTH_DISABLED AUTH disabled"],
    ));
    check(cases).await;
}

#[tokio::test]
async fn delays_are_read_as_by_nsqd() {
    let answered = |delay: &'static str, answer: &str| {
        let line = format!("DPUB t {delay}\n");
        let ok = answer == "OK";
        let (body, then): (&[u8], _) = if ok { (HI, Closes) } else { (b"", Waits) };
        case(&[line.as_bytes(), body], then, &[answer])
    };
    check(vec![
        answered("0", "OK"),
        answered("", "OK"),
        answered(" x", "OK"),
        answered("0003600000", "OK"),
        answered("3600000", "OK"),
        answered(
            "3600001",
            "!E_INVALID DPUB timeout 3600001 out of range 0-3600000",
        ),
        answered(
            "0003600001",
            "!E_INVALID DPUB timeout 3600001 out of range 0-3600000",
        ),
        answered("-1", "!E_INVALID DPUB could not parse timeout -1"),
        answered("+1", "!E_INVALID DPUB could not parse timeout +1"),
        answered("1.0", "!E_INVALID DPUB could not parse timeout 1.0"),
        answered("1e3", "!E_INVALID DPUB could not parse timeout 1e3"),
        answered(
            "\u{0661}",
            "!E_INVALID DPUB could not parse timeout \\xd9\\xa1",
        ),
    ])
    .await;
}

#[tokio::test]
async fn mpub_is_read_as_by_nsqd() {
    let refused = |body: &[u8], then: Then, answer: &str| {
        case(&[b"MPUB t\n", body], then, &[&format!("!{answer}")])
    };
    let big = vec![b'x'; MAX_MSG_SIZE];
    check(vec![
        case(&[b"MPUB t\n", &mpub_body(&[b"a", b"bc"])], Closes, &["OK"]),
        case(&[b"MPUB t\n", &mpub_body(&[&big, &big])], Closes, &["OK"]),
        // The declared body size is only held against the limits.
        case(
            &[b"MPUB t\n\0\0\0\x01\0\0\0\x02", HI, HI, b"PUB t\n", HI],
            Closes,
            &["OK", "OK"],
        ),
        case(
            &[b"MPUB t\n\0\0\x13\x88\0\0\0\x01", HI, b"PUB t\n", HI],
            Closes,
            &["OK", "OK"],
        ),
        refused(b"\0\0\0\0", Waits, "E_BAD_BODY MPUB invalid body size 0"),
        refused(
            b"\xff\xff\xff\xfe",
            Waits,
            "E_BAD_BODY MPUB invalid body size -2",
        ),
        refused(
            b"\0\0\x13\x89",
            Waits,
            "E_BAD_BODY MPUB body too big 5001 > 5000",
        ),
        refused(b"\0\0", Closes, "E_BAD_BODY MPUB failed to read body size"),
        refused(
            b"\0\0\0\x10\0\0",
            Closes,
            "E_BAD_BODY MPUB failed to read message count",
        ),
        refused(
            b"\0\0\0\x10\0\0\0\0",
            Waits,
            "E_BAD_BODY MPUB invalid message count 0",
        ),
        refused(
            b"\0\0\0\x10\xff\xff\xff\xff",
            Waits,
            "E_BAD_BODY MPUB invalid message count -1",
        ),
        refused(
            b"\0\0\0\x10\0\0\x03\xe8",
            Waits,
            "E_BAD_BODY MPUB invalid message count 1000",
        ),
    ])
    .await;
}

#[tokio::test]
async fn the_messages_of_mpub_are_read_as_by_nsqd() {
    let refused = |body: &[u8], then: Then, answer: &str| {
        case(&[b"MPUB t\n", body], then, &[&format!("!{answer}")])
    };
    check(vec![
        refused(
            b"\0\0\0\x10\0\0\x03\xe7",
            Closes,
            "E_BAD_MESSAGE MPUB failed to read message(0) body size",
        ),
        refused(
            b"\0\0\0\x10\0\0\0\x02\0\0\0\x01x\0\0",
            Closes,
            "E_BAD_MESSAGE MPUB failed to read message(1) body size",
        ),
        refused(
            b"\0\0\0\x10\0\0\0\x02\0\0\0\x01x\0\0\0\x02x",
            Closes,
            "E_BAD_MESSAGE MPUB failed to read message body",
        ),
        refused(
            b"\0\0\0\x10\0\0\0\x02\0\0\0\x01x\0\0\0\0",
            Waits,
            "E_BAD_MESSAGE MPUB invalid message(1) body size 0",
        ),
        refused(
            b"\0\0\0\x10\0\0\0\x02\xff\xff\xff\xff",
            Waits,
            "E_BAD_MESSAGE MPUB invalid message(0) body size -1",
        ),
        refused(
            b"\0\0\0\x10\0\0\0\x02\0\0\x03\xe9",
            Waits,
            "E_BAD_MESSAGE MPUB message too big 1001 > 1000",
        ),
    ])
    .await;
}

#[tokio::test]
async fn identify_is_answered_as_by_nsqd() {
    let reply = |changed: &[(&str, &str)]| {
        let mut json = r#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"deflate":false,"deflate_level":6,"max_deflate_level":6,"snappy":false,"sample_rate":0,"auth_required":false,"output_buffer_size":16384,"output_buffer_timeout":250}"#.to_owned();
        for (from, to) in changed {
            assert!(json.contains(from));
            json = json.replace(from, to);
        }
        json
    };
    let negotiated = |json: &str, changed: &[(&str, &str)]| {
        let json = format!(r#"{{"feature_negotiation":true{json}}}"#);
        case(&[&identify(&json)], Closes, &[&reply(changed)])
    };
    check(vec![
        case(&[&identify("{}")], Closes, &["OK"]),
        case(&[b"IDENTIFY a b\n", &sized(b"{}")], Closes, &["OK"]),
        negotiated("", &[]),
        negotiated(
            r#","tls_v1":true,"deflate":true,"deflate_level":3,"snappy":true"#,
            &[],
        ),
        negotiated(
            r#","msg_timeout":1000,"sample_rate":99,"output_buffer_size":64,"output_buffer_timeout":25"#,
            &[
                ("\"msg_timeout\":60000", "\"msg_timeout\":1000"),
                ("sample_rate\":0", "sample_rate\":99"),
                ("16384", "64"),
                ("250}", "25}"),
            ],
        ),
        negotiated(
            r#","output_buffer_size":-1"#,
            &[("16384", "1"), ("250}", "0}")],
        ),
        negotiated(r#","output_buffer_timeout":-1"#, &[("250}", "0}")]),
        // A repeated one changes what it names.
        case(
            &[
                &identify(r#"{"msg_timeout":2000,"sample_rate":7}"#),
                b"PUB t\n",
                HI,
                &identify(r#"{"feature_negotiation":true}"#),
            ],
            Closes,
            &["OK", "OK", &reply(&[("\"msg_timeout\":60000", "\"msg_timeout\":2000")])],
        ),
    ])
    .await;
}

#[tokio::test]
async fn identify_refuses_values_as_nsqd_does() {
    let refused = |json: &str, text: &str| {
        case(
            &[&identify(json)],
            Waits,
            &[&format!("!E_BAD_BODY IDENTIFY {text}")],
        )
    };
    check(vec![
        refused(
            r#"{"heartbeat_interval":999}"#,
            "heartbeat interval (999) is invalid",
        ),
        refused(
            r#"{"heartbeat_interval":60001}"#,
            "heartbeat interval (60001) is invalid",
        ),
        refused(
            r#"{"heartbeat_interval":-2}"#,
            "heartbeat interval (-2) is invalid",
        ),
        refused(
            r#"{"output_buffer_size":63,"output_buffer_timeout":24}"#,
            "output buffer timeout (24) is invalid",
        ),
        refused(
            r#"{"output_buffer_size":65537,"sample_rate":-1}"#,
            "output buffer size (65537) is invalid",
        ),
        refused(
            r#"{"sample_rate":100,"msg_timeout":1}"#,
            "sample rate (100) is invalid",
        ),
        refused(
            r#"{"msg_timeout":900001}"#,
            "msg timeout (900001) is invalid",
        ),
    ])
    .await;
}

#[tokio::test]
async fn identify_reads_json_as_nsqd_does() {
    let deep = |depth: usize| format!("{{\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let mut cases = Vec::new();
    for json in [
        "null",
        " { } ",
        r#"{"client_id":null,"heartbeat_interval":null,"tls_v1":null}"#,
        r#"{"HeartBeat_Interval":5000,"\u0068ostname":"x","unknown":{"a":[1,{"b":[]},{}]}}"#,
        r#"{"heartbeat_interval":999,"HEARTBEAT_INTERVAL":1000}"#,
        r#"{"heartbeat_interval":-0}"#,
        r#"{"client_id":"\ud800","x":"\udc00\ud83d\ude00"}"#,
        r#"{"x":1e400,"y":-0.5E-3}"#,
        &deep(2000),
    ] {
        cases.push(case(&[&identify(json)], Closes, &["OK"]));
    }
    let invalid_utf8 = [
        b"IDENTIFY\n".as_slice(),
        &sized(b"{\"client_id\":\"\xff\xc3\",\"\xfe\":1}"),
    ];
    cases.push(case(&[&invalid_utf8.concat()], Closes, &["OK"]));
    check(cases).await;
}

#[tokio::test]
async fn identify_refuses_what_nsqd_cannot_decode() {
    let mut cases = Vec::new();
    let kelvin = "{\"heartbeat_interval\":1000,\"ho\u{17f}tname\":5}";
    for json in [
        " ",
        "x",
        "{",
        "[]",
        "1",
        "\"x\"",
        "true",
        "nul",
        "nullx",
        "{}{}",
        "{} x",
        r#"{"a":1,}"#,
        r#"{"a" 1}"#,
        r"{a:1}",
        r#"{"a":01}"#,
        r#"{"a":+1}"#,
        r#"{"a":.5}"#,
        r#"{"a":1.}"#,
        r#"{"a":-}"#,
        r#"{"a":1e}"#,
        r#"{"a":NaN}"#,
        r#"{"a":[1,]}"#,
        r#"{"a":[}]}"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\u12g4"}"#,
        "{\"a\":\"\t\"}",
        "{\"a\":\"\n\"}",
        "\u{feff}{}",
        kelvin,
        r#"{"heartbeat_interval":1000.0}"#,
        r#"{"heartbeat_interval":1e3}"#,
        r#"{"heartbeat_interval":"1000"}"#,
        r#"{"heartbeat_interval":9223372036854775808}"#,
        r#"{"sample_rate":2147483648}"#,
        r#"{"deflate_level":"x"}"#,
        r#"{"deflate_level":99999999999999999999}"#,
        r#"{"tls_v1":1}"#,
        r#"{"snappy":"true"}"#,
        r#"{"client_id":1}"#,
        r#"{"hostname":[]}"#,
        r#"{"user_agent":{}}"#,
        r#"{"CLIENT_ID":false}"#,
    ] {
        cases.push(case(
            &[&identify(json)],
            Waits,
            &["!E_BAD_BODY IDENTIFY failed to decode JSON body"],
        ));
    }
    check(cases).await;
}

#[tokio::test]
async fn nesting_is_allowed_as_deep_as_go_allows_it() {
    let nsqd = an_nsqd_with_large_bodies();
    let door = Door::open_with(|config| config.max_body_size = 1_000_000).await;
    for (depth, answer) in [
        (9_999, "OK"),
        (10_000, "!E_BAD_BODY IDENTIFY failed to decode JSON body"),
        (100_000, "!E_BAD_BODY IDENTIFY failed to decode JSON body"),
    ] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let json = format!("{{\"x\":{}1{}}}", open.repeat(depth), close.repeat(depth));
            let sends = v2(&[&identify(&json)]);
            let theirs = transcript(nsqd.tcp.parse().unwrap(), &sends, Closes).await;
            let ours = transcript(door.address, &sends, Closes).await;
            assert_eq!(
                (theirs, ours),
                (vec![answer.to_owned()], vec![answer.to_owned()])
            );
        }
    }
}

fn an_nsqd_with_large_bodies() -> Nsqd {
    Nsqd::start_with(&[
        "--snappy=false",
        "--deflate=false",
        "--max-body-size=1000000",
    ])
}

#[tokio::test]
async fn another_magic_is_a_bad_protocol() {
    let nsqd = an_nsqd();
    let door = Door::open().await;
    for (sends, then, answers) in [
        (
            b"  V1".as_slice(),
            Waits,
            vec!["!E_BAD_PROTOCOL".to_owned()],
        ),
        (b"GET ", Waits, vec!["!E_BAD_PROTOCOL".to_owned()]),
        (b"\0\0\0\0", Waits, vec!["!E_BAD_PROTOCOL".to_owned()]),
        (b"  V", Closes, vec![]),
        (b"", Closes, vec![]),
    ] {
        let theirs = transcript(nsqd.tcp.parse().unwrap(), sends, then).await;
        let ours = transcript(door.address, sends, then).await;
        assert_eq!(theirs, answers, "nsqd, {sends:?}");
        assert_eq!(ours, answers, "ours, {sends:?}");
    }
}
