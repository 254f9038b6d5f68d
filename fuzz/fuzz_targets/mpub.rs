//! The body of an MPUB: what is taken comes back as it was when it is written and read again.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use nsqdelayd::message::Delay;
use nsqdelayd::nsq::command::{Command, encode_mpub};
use nsqdelayd::nsq::decoder::{Decoder, Limits};

const LIMITS: Limits = Limits {
    max_msg_size: 1000,
    max_body_size: 5000,
    max_delay: Delay(3_600_000),
};

fn decode(buffer: &mut BytesMut) -> Option<Command> {
    Decoder::new(LIMITS).decode(buffer).ok().flatten()
}

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = BytesMut::from(b"MPUB t\n".as_slice());
    buffer.extend_from_slice(bytes);
    let Some(Command::Mpub { topic, bodies }) = decode(&mut buffer) else {
        return;
    };
    let read: Vec<Bytes> = bodies.iter().collect();
    assert_eq!(read.len(), bodies.count());
    assert!(read.iter().all(|body| (1..=LIMITS.max_msg_size).contains(&body.len())));
    let mut again = BytesMut::new();
    encode_mpub(&topic, &read, &mut again);
    assert_eq!(decode(&mut again), Some(Command::Mpub { topic, bodies }));
    assert!(again.is_empty());
});
