//! What an nsqd sends: what is taken for a frame is written as the very bytes that it was read from.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nsqdelayd::nsq::frame::Frame;

const BODY_LEN_MAX: usize = 1000;

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = BytesMut::from(bytes);
    let mut written = BytesMut::new();
    while let Ok(Some(frame)) = Frame::decode(&mut buffer, BODY_LEN_MAX) {
        assert!(frame.body.len() <= BODY_LEN_MAX);
        frame.encode(&mut written);
    }
    assert_eq!(written, bytes[..bytes.len() - buffer.len()]);
});
