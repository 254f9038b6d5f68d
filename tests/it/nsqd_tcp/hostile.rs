//! What a client may do to a compressed stream or to a handshake, held against a real nsqd where it
//! answers, and the memory that it costs us.

use std::io::{Read as _, Write as _};

use flate2::write::DeflateEncoder;
use nsqdelayd::transport::Compression;
use tokio::net::TcpStream;

use super::upgraded::Upgraded;
use super::upgrades::{ALL, Both};
use super::{HI, identify, v2};
use crate::support::app::App;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::wait;

const SNAPPY: &str = r#"{"feature_negotiation":true,"snappy":true}"#;
const DEFLATE: &str = r#"{"feature_negotiation":true,"deflate":true}"#;
const IDENTIFIER: &[u8] = b"\xff\x06\0\0sNaPpY";

fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&[kind], &len[..3], body].concat()
}

/// A whole stream, its identifier first.
fn snappy(bytes: &[u8]) -> Vec<u8> {
    let mut writer = snap::write::FrameEncoder::new(Vec::new());
    writer.write_all(bytes).unwrap();
    writer.into_inner().unwrap()
}

/// Sends `raw` as it is on a connection whose answers are compressed.
async fn raw(both: &Both, json: &str, compression: Compression, raw: &[u8]) -> [Vec<String>; 2] {
    let mut seen = Vec::new();
    for address in [both.nsqd.tcp.parse().unwrap(), both.door.address] {
        let stream = TcpStream::connect(address).await.unwrap();
        let (incoming, outgoing) = nsqdelayd::transport::plain(stream);
        let mut client = Upgraded::of(incoming, outgoing);
        client.send(&v2(&[&identify(json)])).await;
        client.next().await.unwrap();
        client.incoming.compressed(compression);
        client.send(raw).await;
        client.close_writing().await;
        seen.push(client.all().await);
    }
    seen.try_into().unwrap()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases is one thing")]
async fn chunks_of_every_kind_are_read_as_by_nsqd() {
    let both = Both::open(ALL).await;
    let message = snappy(&[b"PUB t\n", HI].concat());
    let data = &message[IDENTIFIER.len()..];
    let noise: Vec<u8> = {
        let mut random = fastrand::Rng::with_seed(1);
        (0..500).map(|_| random.u8(..)).collect()
    };
    let body = [b"PUB t\n".as_slice(), &500_u32.to_be_bytes(), &noise].concat();
    let mut bent = message.clone();
    bent[14] ^= 1;
    let cases: Vec<(&str, Vec<u8>, bool)> = vec![
        ("one message", message.clone(), true),
        (
            "an identifier in mid-stream",
            [&*message, &message].concat(),
            true,
        ),
        (
            "several identifiers",
            [IDENTIFIER, IDENTIFIER, data].concat(),
            true,
        ),
        ("uncompressed", snappy(&body), true),
        (
            "padding",
            [IDENTIFIER, &chunk(0xfe, &[0; 100]), data].concat(),
            true,
        ),
        (
            "empty padding",
            [IDENTIFIER, &chunk(0xfe, b""), data].concat(),
            true,
        ),
        (
            "skippable",
            [IDENTIFIER, &chunk(0x80, b"x"), &chunk(0xfd, &[1; 9]), data].concat(),
            true,
        ),
        (
            "long padding",
            [IDENTIFIER, &chunk(0xfe, &[0; 70_000]), data].concat(),
            true,
        ),
        (
            "longer padding",
            [IDENTIFIER, &chunk(0xfe, &[0; 77_000]), data].concat(),
            false,
        ),
        ("no identifier", data.to_vec(), false),
        (
            "bad identifier",
            [b"\xff\x06\0\0sNaPpX".as_slice(), data].concat(),
            false,
        ),
        (
            "short identifier",
            [b"\xff\x05\0\0sNaPp".as_slice(), data].concat(),
            false,
        ),
        (
            "reserved",
            [IDENTIFIER, &chunk(0x02, b"x"), data].concat(),
            false,
        ),
        (
            "reserved too",
            [IDENTIFIER, &chunk(0x7f, b""), data].concat(),
            false,
        ),
        ("bad checksum", bent, false),
        (
            "short chunk",
            [IDENTIFIER, &chunk(0x00, b"abc"), data].concat(),
            false,
        ),
        (
            "4 GiB",
            [
                IDENTIFIER,
                &chunk(0x00, b"\0\0\0\0\xff\xff\xff\xff\x0f"),
                data,
            ]
            .concat(),
            false,
        ),
        (
            "uncompressed too long",
            [IDENTIFIER, &chunk(0x01, &[0; 70_000]), data].concat(),
            false,
        ),
        ("cut", message[..message.len() - 1].to_vec(), false),
        ("nothing", Vec::new(), false),
        ("no snappy at all", b"PUB t\n\0\0\0\x02hi".to_vec(), false),
    ];
    for (name, bytes, ok) in cases {
        let [theirs, ours] = raw(&both, SNAPPY, Compression::Snappy, &bytes).await;
        assert_eq!(ours, theirs, "{name}");
        assert_eq!(
            ours.iter().filter(|frame| *frame == "OK").count() > 1,
            ok,
            "{name}: {ours:?}"
        );
    }
}

#[tokio::test]
async fn a_bad_chunk_in_the_middle_of_a_message_is_told_as_by_nsqd() {
    let both = Both::open(ALL).await;
    for begun in [
        "PUB t\n\0\0",
        "PUB t\n\0\0\0\x09abc",
        "MPUB t\n\0\0\0\x20\0\0\0\x02\0\0",
    ] {
        let bytes = [&snappy(begun.as_bytes()), chunk(0x02, b"").as_slice()].concat();
        let [theirs, ours] = raw(&both, SNAPPY, Compression::Snappy, &bytes).await;
        assert_eq!(ours, theirs, "{begun:?}");
        assert!(ours[1].contains("failed to read"), "{ours:?}");
    }
}

#[tokio::test]
async fn deflate_streams_end_and_break_as_with_nsqd() {
    let both = Both::open(ALL).await;
    let level = Compression::Deflate(6);
    let message = [b"PUB t\n", HI].concat();
    let whole = |bytes: &[u8]| {
        let mut writer = DeflateEncoder::new(Vec::new(), flate2::Compression::new(9));
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    };
    let garbage = b"\xff\xff\xff\xff\xff".to_vec();
    for (name, bytes) in [
        ("a stream with an end", whole(&message)),
        (
            "more behind the end",
            [whole(&message), whole(&message)].concat(),
        ),
        ("cut", whole(&message)[..8].to_vec()),
        ("garbage", garbage.clone()),
        ("garbage behind", [whole(&message), garbage].concat()),
        ("nothing", Vec::new()),
        ("plain", message.clone()),
        ("an end in the middle", whole(b"PUB t\n\0\0\0\x09abc")),
    ] {
        let [theirs, ours] = raw(&both, DEFLATE, level, &bytes).await;
        assert_eq!(ours, theirs, "{name}");
    }
}

#[tokio::test]
async fn a_stalled_handshake_ends_after_nsqds_five_seconds() {
    let both = Both::open(ALL).await;
    let json = r#"{"feature_negotiation":true,"tls_v1":true}"#;
    let stalled = |address: std::net::SocketAddr| async move {
        let mut client = super::Client::connect(address).await;
        client.send(&v2(&[&identify(json)])).await;
        client.next().await.unwrap();
        let own = client.stream.local_addr().unwrap();
        let told = client.next().await.unwrap();
        client.expect_closed().await;
        (told, format!("read tcp {address}->{own}: i/o timeout"))
    };
    let (theirs, ours) = tokio::join!(
        stalled(both.nsqd.tcp.parse().unwrap()),
        stalled(both.door.address)
    );
    for (told, why) in [theirs, ours] {
        assert_eq!(told, format!("!E_IDENTIFY_FAILED IDENTIFY failed {why}"));
    }
}

/// Of two intervals only the first can end with a heartbeat, unless the second comes first.
#[tokio::test]
async fn a_silent_client_is_closed_after_two_intervals_as_by_nsqd() {
    let both = Both::open(ALL).await;
    let silent = |address: std::net::SocketAddr, more: &'static [u8]| async move {
        let json = r#"{"heartbeat_interval":1000}"#;
        let sends = v2(&[&identify(json), more]);
        super::transcript(address, &sends, super::Then::Waits).await
    };
    let [nsqd, ours] = [both.nsqd.tcp.parse().unwrap(), both.door.address];
    let cut = b"PUB t\n\0\0\0\x09half";
    let (idle_there, idle, cut_there, cut) = tokio::join!(
        silent(nsqd, b""),
        silent(ours, b""),
        silent(nsqd, cut),
        silent(ours, cut)
    );
    for mut seen in [idle_there, idle] {
        assert!(seen.len() <= 3, "{seen:?}");
        seen.truncate(2);
        assert_eq!(seen, ["OK", "_heartbeat_"]);
    }
    for seen in [cut_there, cut] {
        assert!(seen.len() <= 4, "{seen:?}");
        let last = "!E_BAD_MESSAGE PUB failed to read message body";
        assert_eq!(seen.last().unwrap(), last);
    }
}

/// 256 MiB of commands in less than one, and 76 MB that are skipped: neither is kept.
#[test]
fn a_bomb_costs_no_memory() {
    const GROWTH_KIB_MAX: u64 = 64 * 1024;
    const LINES: usize = 16 * 1024;
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let before = app.memory_peak_kib();
    let mut bomb = DeflateEncoder::new(Vec::new(), flate2::Compression::new(9));
    let line = [b"NOP ".as_slice(), &[b'x'; 16_379], b"\n"].concat();
    for _ in 0..LINES {
        bomb.write_all(&line).unwrap();
    }
    bomb.write_all(&[b"PUB t\n", HI].concat()).unwrap();
    let bomb = bomb.finish().unwrap();
    let mut skipped = IDENTIFIER.to_vec();
    for _ in 0..1000 {
        skipped.extend(chunk(0xfe, &vec![0; 76_000]));
    }
    skipped.extend(snappy(&[b"PUB t\n", HI].concat()));
    for (json, sends) in [(DEFLATE, bomb), (SNAPPY, skipped)] {
        let mut client = app.producer();
        assert!(client.ask(&identify(json)).text().contains("true"));
        let socket = client.socket().unwrap();
        (&socket).write_all(&sends).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        (&socket).read_to_end(&mut answers).unwrap();
        assert!(!answers.is_empty());
    }
    wait::until("both to be published", || nsqd.message_count("t") == 2);
    let growth = app.memory_peak_kib() - before;
    assert!(growth < GROWTH_KIB_MAX, "{growth} KiB");
}
