//! Random conversations, held against a real nsqd.

use nsqdelayd::nsq::frame::{Frame, FrameType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Then::Closes;
use super::as_nsqd::an_nsqd;
use super::upgrades::{ALL, Both};
use super::{Client, Door, mpub_body, show, sized, transcript, upgraded};

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
        // A cut MPUB before a DPUB spells our own command, which nsqd does not know.
        if sends.windows(5).any(|word| word == b"MDPUB") {
            continue;
        }
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

/// The same in TLS and compressed.
#[tokio::test]
async fn random_conversations_get_nsqds_answers_in_every_upgrade() {
    const CONVERSATIONS: usize = 120;
    const WISHES: [&str; 5] = [
        r#","snappy":true"#,
        r#","deflate":true,"deflate_level":1"#,
        r#","tls_v1":true"#,
        r#","tls_v1":true,"snappy":true"#,
        r#","tls_v1":true,"deflate":true"#,
    ];
    let both = Both::open(ALL).await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 0..CONVERSATIONS {
        let sends = conversation(&mut random);
        if sends.windows(5).any(|word| word == b"MDPUB") {
            continue;
        }
        let wish = WISHES[number % WISHES.len()];
        let json = format!(r#"{{"feature_negotiation":true{wish}}}"#);
        let sends = [sends.get(4..).unwrap_or_default()];
        let client = || both.certificates.client(None);
        let nsqd = both.nsqd.tcp.parse().unwrap();
        let theirs = upgraded::conversation(nsqd, &json, client(), &sends, true).await;
        let ours = upgraded::conversation(both.door.address, &json, client(), &sends, true).await;
        // nsqd may reset after its error, which may eat frames.
        let cut = theirs.last().is_none_or(|last| !last.starts_with('!'));
        let same = ours == theirs || cut && ours.starts_with(&theirs);
        assert!(
            same,
            "seed {seed}, conversation {number}: {wish} {}\n  nsqd {theirs:?}\n  ours {ours:?}",
            sends[0].escape_ascii()
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
