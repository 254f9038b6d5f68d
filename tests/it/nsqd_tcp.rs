//! The TCP door, as a producer sees it. Where it is meant to be nsqd's, the same bytes are sent to a
//! real nsqd and to our listener, and both must answer what the table says.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use nsqdelayd::ingest::clients::{ClientStats, Clients};
use nsqdelayd::ingest::metrics::{Door as MetricsDoor, DoorLabel, Metrics};
use nsqdelayd::ingest::{Config, Intake, listener};
use nsqdelayd::message::{Delay, Due};
use nsqdelayd::nsq::frame::{self, Frame, FrameType};
use nsqdelayd::store::{Cancel, ErrorKind, ScheduleStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::memory_store::{MemoryStore, Mood};
use crate::support::nsqd::Nsqd;
use crate::support::wait;

const MAX_MSG_SIZE: usize = 1000;
const MAX_BODY_SIZE: usize = 5000;
const MAX_DELAY: Delay = Delay(3_600_000);

/// Our listener over a store in memory.
struct Door {
    address: SocketAddr,
    store: Arc<MemoryStore>,
    clients: Clients,
    metrics: Metrics,
    tracker: TaskTracker,
    drain: CancellationToken,
}

impl Door {
    async fn open() -> Self {
        Self::open_with(|_config| {}).await
    }

    async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            max_msg_size: MAX_MSG_SIZE,
            max_body_size: MAX_BODY_SIZE,
            max_delay: MAX_DELAY,
            heartbeat_interval: Duration::from_secs(30),
            max_heartbeat_interval: Duration::from_secs(60),
            max_connections: 100,
            handshake_timeout: Duration::from_secs(5),
            connection_in_flight_bytes_max: 1024 * 1024,
        };
        change(&mut config);
        let store = Arc::new(MemoryStore::new());
        let dyn_store: Arc<dyn ScheduleStore> = Arc::<MemoryStore>::clone(&store);
        let intake = Intake {
            store: dyn_store,
            config: Arc::new(config),
        };
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = Self {
            address: socket.local_addr().unwrap(),
            store,
            clients: Clients::default(),
            metrics: Metrics::default(),
            tracker: TaskTracker::new(),
            drain: CancellationToken::new(),
        };
        door.tracker.spawn(listener::serve(
            socket,
            intake,
            door.clients.clone(),
            door.metrics.clone(),
            door.tracker.clone(),
            door.drain.clone(),
        ));
        door
    }

    async fn client(&self) -> Client {
        let mut client = Client::connect(self.address).await;
        client.send(b"  V2").await;
        client
    }

    fn only_client(&self) -> Option<ClientStats> {
        self.clients.snapshot().into_iter().next()
    }
}

/// A raw connection.
struct Client {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            buffer: BytesMut::new(),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn close_writing(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The next frame: a response as it is, an error behind `!`. `None`: closed.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, 1 << 20).unwrap() {
                let sign = match frame.kind {
                    FrameType::Response => "",
                    FrameType::Error => "!",
                    FrameType::Message => "message ",
                };
                return Some(format!("{sign}{}", show(&frame.body)));
            }
            let read = tokio::time::timeout(wait::LIMIT, self.stream.read_buf(&mut self.buffer));
            // A reset, which nsqd may send after its last frame, is a close too.
            if read.await.expect("a frame or a close").unwrap_or(0) == 0 {
                assert!(self.buffer.is_empty(), "half a frame");
                return None;
            }
        }
    }

    #[track_caller]
    async fn expect(&mut self, frame: &str) {
        assert_eq!(self.next().await.as_deref(), Some(frame));
    }

    #[track_caller]
    async fn expect_closed(&mut self) {
        assert_eq!(self.next().await, None);
    }

    async fn all(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// Printable ASCII as it is, other bytes as `\xNN`.
fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").unwrap(),
        }
    }
    text
}

/// Whether the client closes its half after sending.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// It says that there is no more.
    Closes,
    /// It says nothing: the server closes.
    Waits,
}
use Then::{Closes, Waits};

async fn transcript(address: SocketAddr, bytes: &[u8], then: Then) -> Vec<String> {
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    if then == Closes {
        client.close_writing().await;
    }
    client.all().await
}

fn sized(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// `V2`, then the parts.
fn v2(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"  V2".to_vec();
    bytes.extend(parts.concat());
    bytes
}

fn identify(json: &str) -> Vec<u8> {
    [b"IDENTIFY\n".as_slice(), &sized(json.as_bytes())].concat()
}

fn mpub_body(bodies: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(bodies.len()).unwrap();
    let mut body = count.to_be_bytes().to_vec();
    body.extend(bodies.iter().flat_map(|body| sized(body)));
    sized(&body)
}

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

fn an_nsqd() -> Nsqd {
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

const HI: &[u8] = b"\0\0\0\x02hi";

#[tokio::test]
async fn lines_are_refused_as_by_nsqd() {
    let bad_topic = |shown: &str| format!("!E_BAD_TOPIC PUB topic name {shown} is not valid");
    let long = "x".repeat(65);
    let mut cases = vec![
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
async fn delays_that_nsqd_lets_wrap_are_out_of_range() {
    let door = Door::open().await;
    for delay in [
        "18446744073710",
        "18446744073709551615",
        "18446744073709551616",
        "18446744073709551621",
        "340282366920938463463374607431768211456",
    ] {
        let sends = v2(&[format!("DPUB t {delay}\n").as_bytes()]);
        let answer = format!("!E_INVALID DPUB timeout {delay} out of range 0-3600000");
        assert_eq!(
            transcript(door.address, &sends, Waits).await,
            [answer.as_str()]
        );
    }
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
async fn an_mpub_longer_than_bodies_may_be_is_refused_whatever_it_declares() {
    let door = Door::open().await;
    let message = sized(&[b'x'; MAX_MSG_SIZE]);
    let sends = v2(&[
        b"MPUB t\n\0\0\0\x01\0\0\0\x05",
        &message.repeat(4),
        &message[..4],
    ]);
    let answer = "!E_BAD_BODY MPUB body too big 5024 > 5000";
    assert_eq!(transcript(door.address, &sends, Waits).await, [answer]);
    assert!(door.store.messages().is_empty());
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
    let refused = |json: &str, text: &str| {
        case(
            &[&identify(json)],
            Waits,
            &[&format!("!E_BAD_BODY IDENTIFY {text}")],
        )
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
        refused(r#"{"msg_timeout":900001}"#, "msg timeout (900001) is invalid"),
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
        r#"{a:1}"#,
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

/// Random conversations of plausible pieces, cut and bent.
#[tokio::test]
async fn random_conversations_get_nsqds_answers() {
    const CONVERSATIONS: usize = 400;
    let nsqd = an_nsqd();
    let door = Door::open().await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 0..CONVERSATIONS {
        let sends = conversation(&mut random);
        let mut theirs = Client::connect(nsqd.tcp.parse().unwrap()).await;
        // nsqd may reset after its error, which may eat frames: then what came has to be a beginning.
        let mut reset = theirs.stream.write_all(&sends).await.is_err();
        reset |= theirs.stream.shutdown().await.is_err();
        let mut frames = Vec::new();
        loop {
            match Frame::decode(&mut theirs.buffer, 1 << 20).unwrap() {
                Some(frame) => {
                    let sign = if frame.kind == FrameType::Error {
                        "!"
                    } else {
                        ""
                    };
                    frames.push(format!("{sign}{}", show(&frame.body)));
                }
                None => match theirs.stream.read_buf(&mut theirs.buffer).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(_) => {
                        reset = true;
                        break;
                    }
                },
            }
        }
        let ours = transcript(door.address, &sends, Closes).await;
        let same = if reset {
            ours.starts_with(&frames)
        } else {
            ours == frames
        };
        assert!(
            same,
            "seed {seed}, conversation {number}: sent {}\n  nsqd {frames:?}\n  ours {ours:?}",
            sends.escape_ascii()
        );
    }
}

fn conversation(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut sends = b"  V2".to_vec();
    for _ in 0..random.usize(1..6) {
        let topic: &[u8] = random
            .choice([b"t".as_slice(), b"a.b", b"x#ephemeral", b"", b"\xff", b"a!"])
            .unwrap();
        let topic = if random.u8(..4) > 0 { b"t" } else { topic };
        let delay: &[u8] = random
            .choice([b"1000".as_slice(), b"0", b"", b"x", b"3600001"])
            .unwrap();
        let line = match random.u8(..12) {
            0 => b"NOP".to_vec(),
            1..=3 => [b"PUB ", topic].concat(),
            4..=6 => [b"DPUB ", topic, b" ", delay].concat(),
            7..=8 => [b"MPUB ", topic].concat(),
            9 => b"IDENTIFY".to_vec(),
            10 => b"AUTH".to_vec(),
            _ => b"FOO".to_vec(),
        };
        let mut part = line.clone();
        part.extend_from_slice(if random.bool() { b"\n" } else { b"\r\n" });
        match line.first() {
            Some(b'N' | b'F') => {}
            Some(b'M') => part.extend(mpub_body(&vec![b"body".as_slice(); random.usize(1..5)])),
            Some(b'I') => part.extend(sized(br#"{"sample_rate":1}"#)),
            _ => part.extend(sized(&vec![b'x'; random.usize(1..40)])),
        }
        if random.u8(..12) == 0 {
            let at = random.usize(..part.len());
            part[at] = random.u8(..);
        }
        if random.u8(..20) == 0 {
            part.truncate(random.usize(..part.len()));
        }
        sends.extend(part);
    }
    sends
}

#[tokio::test]
async fn what_is_published_is_stored_with_its_delay() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"PUB a\n\0\0\0\x01p").await;
    client.send(b"DPUB b 250\n\0\0\0\x01d").await;
    client.send(b"DPUB b 250 order:1\n\0\0\0\x01i").await;
    client
        .send(&[b"MPUB c\n", mpub_body(&[b"m", b"n"]).as_slice()].concat())
        .await;
    client
        .send(&[b"MDPUB c 99\n", mpub_body(&[b"x", b"y"]).as_slice()].concat())
        .await;
    for _ in 0..5 {
        client.expect("OK").await;
    }
    let stored: Vec<_> = door
        .store
        .messages()
        .into_iter()
        .map(|m| {
            let Due::After(delay) = m.due else {
                panic!("a delay")
            };
            let id = m.id.map(|id| id.to_string());
            (m.topic.to_string(), show(&m.body), delay.0, id)
        })
        .collect();
    let expected = [
        ("a", "p", 0, None),
        ("b", "d", 250, None),
        ("b", "i", 250, Some("order:1")),
        ("c", "m", 0, None),
        ("c", "n", 0, None),
        ("c", "x", 99, None),
        ("c", "y", 99, None),
    ];
    let expected = expected.map(|(topic, body, delay, id)| {
        (
            topic.to_owned(),
            body.to_owned(),
            delay,
            id.map(str::to_owned),
        )
    });
    assert_eq!(stored, expected);
}

#[tokio::test]
async fn extensions_refuse_as_their_models_do() {
    let door = Door::open().await;
    for (line, answer) in [
        (
            "MDPUB",
            "!E_INVALID MDPUB insufficient number of parameters",
        ),
        (
            "MDPUB t",
            "!E_INVALID MDPUB insufficient number of parameters",
        ),
        (
            "MDPUB t! 1",
            "!E_BAD_TOPIC MDPUB topic name \"t!\" is not valid",
        ),
        ("MDPUB t -1", "!E_INVALID MDPUB could not parse timeout -1"),
        (
            "MDPUB t 3600001",
            "!E_INVALID MDPUB timeout 3600001 out of range 0-3600000",
        ),
        (
            "CANCEL",
            "!E_INVALID CANCEL insufficient number of parameters",
        ),
        (
            "SUB t ch",
            "!E_INVALID cannot SUB here: nsqdelayd only takes messages, consume from nsqd",
        ),
    ] {
        let sends = v2(&[line.as_bytes(), b"\n"]);
        assert_eq!(transcript(door.address, &sends, Waits).await, [answer]);
    }
    for id in ["a/b", "a{b}", "\u{7f}", &"x".repeat(129), &"0".repeat(40)] {
        let sends = v2(&[b"DPUB t 1 ", id.as_bytes(), b"\n"]);
        let answers = transcript(door.address, &sends, Waits).await;
        assert_eq!(answers.len(), 1);
        assert!(
            answers[0].starts_with("!E_INVALID DPUB id \""),
            "{answers:?}"
        );
    }
}

#[tokio::test]
async fn cancel_says_what_became_of_the_message_and_does_not_close() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01a").await;
    client.send(b"DPUB t 500\n\0\0\0\x01b").await;
    client.expect("OK").await;
    client.expect("OK").await;
    let minted = door.store.ids().pop().unwrap();
    let mut forged = minted.clone().into_bytes();
    forged[39] = if forged[39] == b'0' { b'1' } else { b'0' };
    client
        .send(format!("CANCEL mine\nCANCEL {minted}\nCANCEL mine\n").as_bytes())
        .await;
    client.expect("OK").await;
    client.expect("OK").await;
    client.expect("OK").await;
    assert!(door.store.messages().is_empty());
    door.store.set_state("gone", Cancel::InFlight);
    client
        .send(b"CANCEL gone\nCANCEL nobody\nCANCEL a/b\nCANCEL \nCANCEL ")
        .await;
    client.send(&forged).await;
    client.send(b"\nPUB t\n\0\0\0\x01c").await;
    client
        .expect("!E_IN_FLIGHT CANCEL \"gone\" is on its way to nsqd")
        .await;
    for id in ["nobody", "a/b", "", str::from_utf8(&forged).unwrap()] {
        let answer = format!("!E_NOT_FOUND CANCEL \"{id}\" was delivered or never existed");
        client.expect(&answer).await;
    }
    client.expect("OK").await;
    door.store.set_mood(Mood::Failing(ErrorKind::Unavailable));
    client.send(b"CANCEL gone\nNOP\nCANCEL nobody\n").await;
    let failed =
        "!E_CANCEL_FAILED CANCEL failed redis is not reachable, nothing was stored, try again";
    client.expect(failed).await;
    client.expect(failed).await;
}

#[tokio::test]
async fn a_cancel_waits_for_the_publish_before_it() {
    let door = Door::open().await;
    let mut client = door.client().await;
    door.store.set_mood(Mood::Stalled);
    client
        .send(b"DPUB t 500 mine\n\0\0\0\x01aCANCEL mine\nDPUB t 500 other\n\0\0\0\x01b")
        .await;
    wait::until_async("the publish to begin", async || door.store.calls() == 1).await;
    door.store.set_mood(Mood::Well);
    for _ in 0..3 {
        client.expect("OK").await;
    }
    assert_eq!(door.store.ids(), ["other"]);
}

#[tokio::test]
async fn an_id_that_is_taken_is_a_conflict() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01a").await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01a").await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01b").await;
    client.send(b"PUB t\n\0\0\0\x01c").await;
    client.expect("OK").await;
    client.expect("OK").await;
    client
        .expect("!E_CONFLICT DPUB failed the id is taken by a message with other content")
        .await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_failing_store_is_nsqds_failed_error() {
    let door = Door::open().await;
    door.store.set_mood(Mood::Failing(ErrorKind::Unavailable));
    let away = "failed redis is not reachable, nothing was stored, try again";
    for (command, answer) in [
        (
            b"PUB t\n\0\0\0\x01a".to_vec(),
            format!("!E_PUB_FAILED PUB {away}"),
        ),
        (
            b"DPUB t 1\n\0\0\0\x01a".to_vec(),
            format!("!E_DPUB_FAILED DPUB {away}"),
        ),
        (
            [b"MPUB t\n", mpub_body(&[b"a"]).as_slice()].concat(),
            format!("!E_MPUB_FAILED MPUB {away}"),
        ),
        (
            [b"MDPUB t 1\n", mpub_body(&[b"a"]).as_slice()].concat(),
            format!("!E_DPUB_FAILED MDPUB {away}"),
        ),
    ] {
        let sends = v2(&[&command, &command]);
        assert_eq!(transcript(door.address, &sends, Waits).await, [answer]);
    }
    door.store.set_mood(Mood::Failing(ErrorKind::Unknown));
    let sends = v2(&[b"PUB t\n", HI]);
    let answer = "!E_PUB_FAILED PUB failed outcome unknown: redis did not answer, it may or may not have taken effect";
    assert_eq!(transcript(door.address, &sends, Waits).await, [answer]);
}

#[tokio::test]
async fn heartbeats_flow_while_the_store_stalls_and_answers_keep_their_order() {
    let interval = Duration::from_millis(50);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    door.store.set_mood(Mood::Stalled);
    client
        .send(b"PUB t\n\0\0\0\x01aCANCEL nobody\nPUB t\n\0\0\0\x01bNOP\nCLS\n")
        .await;
    // More than the read deadline: it does not run while the client waits for us.
    for _ in 0..6 {
        client.expect("_heartbeat_").await;
    }
    door.store.set_mood(Mood::Well);
    let mut answers = client.all().await;
    answers.retain(|answer| answer != "_heartbeat_");
    let expected = [
        "OK",
        "!E_NOT_FOUND CANCEL \"nobody\" was delivered or never existed",
        "OK",
        "!E_INVALID cannot CLS in current state",
    ];
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn an_idle_client_is_closed_without_a_word() {
    let interval = Duration::from_millis(50);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    client.send(b"PUB t\n\0\0\0\x01aNO").await;
    client.expect("OK").await;
    let rest = client.all().await;
    assert!(rest.iter().all(|frame| frame == "_heartbeat_"), "{rest:?}");
    wait::until_async("its stats to be gone", async || {
        door.only_client().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_trickled_body_is_cut_off() {
    let interval = Duration::from_millis(100);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    client.send(b"PUB t\n\0\0\0\xff").await;
    let mut frames = Vec::new();
    loop {
        tokio::select! {
            frame = client.next() => match frame {
                Some(frame) => frames.push(frame),
                None => break,
            },
            () = tokio::time::sleep(interval / 5) => {
                // The server may have closed in the meantime.
                if client.stream.write_all(b"x").await.is_err() { break }
            }
        }
    }
    frames.retain(|frame| frame != "_heartbeat_");
    assert_eq!(frames, ["!E_BAD_MESSAGE PUB failed to read message body"]);
}

#[tokio::test]
async fn no_heartbeat_comes_before_the_answer_to_identify() {
    let interval = Duration::from_millis(100);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    let command = identify(r#"{"heartbeat_interval":-1}"#);
    client.send(&command[..10]).await;
    // The heartbeat would be due in the middle of this; the read deadline is twice as far.
    tokio::time::sleep(interval * 3 / 2).await;
    client.send(&command[10..]).await;
    client.expect("OK").await;
    client.close_writing().await;
    client.expect_closed().await;
}

#[tokio::test]
async fn identify_sets_the_heartbeat() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client
        .send(&identify(r#"{"heartbeat_interval":1000}"#))
        .await;
    client.expect("OK").await;
    client.expect("_heartbeat_").await;
    client.send(b"NOP\n").await;
    client.expect("_heartbeat_").await;
}

#[tokio::test]
async fn an_error_frame_outlives_what_is_sent_behind_it() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"PUB t\n\0\0\0\x01aFOO\n").await;
    let (mut reader, mut writer) = client.stream.into_split();
    let flood = door.tracker.spawn(async move {
        for _ in 0..64 {
            writer.write_all(&[b'x'; 65_536]).await?;
        }
        writer.shutdown().await
    });
    flood.await.unwrap().unwrap();
    let mut came = Vec::new();
    reader.read_to_end(&mut came).await.unwrap();
    assert!(came.ends_with(b"E_INVALID invalid command FOO"));
    assert_eq!(door.store.messages().len(), 1);
}

#[tokio::test]
async fn draining_answers_what_was_read_and_closes_without_a_word() {
    let door = Door::open().await;
    let mut busy = door.client().await;
    let mut idle = door.client().await;
    let mut half = door.client().await;
    half.send(b"PUB t\n\0\0\0\x09a").await;
    door.store.set_mood(Mood::Stalled);
    busy.send(b"PUB t\n\0\0\0\x01aPUB t\n\0\0\0\x01bPUB t\n\0\0")
        .await;
    wait::until_async("the store to be asked", async || door.store.calls() == 1).await;
    door.drain.cancel();
    idle.expect_closed().await;
    half.expect_closed().await;
    door.store.set_mood(Mood::Well);
    busy.expect("OK").await;
    busy.expect("OK").await;
    busy.expect_closed().await;
    drop((busy, idle, half));
    door.tracker.close();
    door.tracker.wait().await;
    assert!(TcpStream::connect(door.address).await.is_err());
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once() {
    let door = Door::open_with(|config| config.max_connections = 2).await;
    let first = door.client().await;
    let mut second = door.client().await;
    second.send(b"PUB t\n\0\0\0\x01a").await;
    second.expect("OK").await;
    let mut third = Client::connect(door.address).await;
    third.expect_closed().await;
    let label = DoorLabel {
        door: MetricsDoor::Tcp,
    };
    assert_eq!(
        door.metrics.connections_refused.get_or_create(&label).get(),
        1
    );
    drop(first);
    wait::until_async("the place to be free", async || {
        door.metrics.connections.get_or_create(&label).get() == 1
    })
    .await;
    let mut fourth = door.client().await;
    fourth.send(b"PUB t\n\0\0\0\x01a").await;
    fourth.expect("OK").await;
}

#[tokio::test]
async fn a_client_without_magic_is_closed() {
    let wait = Duration::from_millis(50);
    let door = Door::open_with(|config| config.handshake_timeout = wait).await;
    let mut silent = Client::connect(door.address).await;
    let mut half = Client::connect(door.address).await;
    half.send(b"  V").await;
    silent.expect_closed().await;
    half.expect_closed().await;
}

#[tokio::test]
async fn reading_stops_when_enough_is_in_flight() {
    const MESSAGES: usize = 2000;
    let door = Door::open_with(|config| config.connection_in_flight_bytes_max = 10_000).await;
    let mut client = door.client().await;
    door.store.set_mood(Mood::Stalled);
    let one = [b"DPUB t 1\n", sized(&[b'x'; 500]).as_slice()].concat();
    let (mut reader, mut writer) = client.stream.into_split();
    let all = one.repeat(MESSAGES);
    door.tracker.spawn(async move {
        writer.write_all(&all).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    wait::until_async("the store to be asked", async || door.store.calls() > 0).await;
    let calls = door.store.calls();
    door.store.set_mood(Mood::Well);
    let mut came = Vec::new();
    reader.read_to_end(&mut came).await.unwrap();
    assert!(calls <= 16, "{calls} calls for 10,000 bytes");
    assert_eq!(came, frame::OK.repeat(MESSAGES));
    assert_eq!(door.store.messages().len(), MESSAGES);
    client = door.client().await;
    client.send(b"NOP\n").await;
}

#[tokio::test]
async fn stats_tell_who_published_what() {
    let door = Door::open().await;
    let mut client = door.client().await;
    let json = r#"{"client_id":"c","hostname":"h","user_agent":"u/1"}"#;
    client.send(&identify(json)).await;
    client
        .send(&[b"MPUB a\n", mpub_body(&[b"x", b"y"]).as_slice()].concat())
        .await;
    client.send(b"PUB b\n\0\0\0\x01a").await;
    for _ in 0..3 {
        client.expect("OK").await;
    }
    wait::until_async("the counts", async || {
        door.only_client()
            .is_some_and(|stats| stats.message_count == 3)
    })
    .await;
    let stats = door.only_client().unwrap();
    assert_eq!(
        (
            stats.client_id.as_str(),
            stats.hostname.as_str(),
            stats.user_agent.as_str()
        ),
        ("c", "h", "u/1")
    );
    assert_eq!(stats.remote_address, client.stream.local_addr().unwrap());
    let counts: Vec<_> = stats
        .pub_counts
        .iter()
        .map(|(t, n)| (t.as_str(), *n))
        .collect();
    assert_eq!(counts, [("a", 2), ("b", 1)]);
    let label = DoorLabel {
        door: MetricsDoor::Tcp,
    };
    assert_eq!(door.metrics.accepted.get_or_create(&label).get(), 3);
}
