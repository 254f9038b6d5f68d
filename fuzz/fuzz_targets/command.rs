//! What a client sends over TCP: however it is cut, the same commands come out and the same refusal,
//! and nothing is read beyond what was sent.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nsqdelayd::message::Delay;
use nsqdelayd::nsq::command::Command;
use nsqdelayd::nsq::decoder::{Decoder, Limits, Stop};
use nsqdelayd::nsq::identify::Identify;

const LIMITS: Limits = Limits {
    max_msg_size: 100,
    max_body_size: 1000,
    max_delay: Delay(3_600_000),
};

type Said = (Vec<Command>, Option<Stop>, Option<Vec<u8>>);

fn said(bytes: &[u8], piece: usize) -> Said {
    let mut decoder = Decoder::new(LIMITS);
    let mut buffer = BytesMut::new();
    let mut commands = Vec::new();
    for part in bytes.chunks(piece) {
        buffer.extend_from_slice(part);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(command)) => commands.push(command),
                Ok(None) => break,
                Err(stop) => return (commands, Some(stop), None),
            }
        }
    }
    let interrupted = decoder.interrupted().map(|refusal| {
        let mut frame = BytesMut::new();
        refusal.encode(&mut frame);
        frame.to_vec()
    });
    (commands, None, interrupted)
}

fuzz_target!(|input: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((piece, bytes)) = input.split_first() else {
        return;
    };
    let whole = said(bytes, bytes.len().max(1));
    assert_eq!(said(bytes, usize::from(*piece) + 1), whole);
    for command in whole.0 {
        match command {
            Command::Identify(json) => drop(Identify::decode(&json)),
            Command::Pub { body, .. } | Command::Dpub { body, .. } => {
                assert!((1..=LIMITS.max_msg_size).contains(&body.len()));
            }
            Command::Mpub { bodies, .. } | Command::Mdpub { bodies, .. } => {
                assert!(bodies.wire_len() <= LIMITS.max_body_size);
                assert_eq!(bodies.iter().count(), bodies.count());
            }
            Command::Ahead { .. } => panic!("nobody asked for it"),
            Command::Auth(_) | Command::Cancel(_) | Command::Nop => {}
        }
    }
});
