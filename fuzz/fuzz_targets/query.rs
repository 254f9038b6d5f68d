//! What a client sends to the HTTP doors, as JSON or in a query: refused with a code, or a message
//! within every limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nsqdelayd::ingest::fuzzing;
use nsqdelayd::message::{ClientId, Delay, Due, Message, TopicName};

const MAX_MSG_SIZE: usize = 1000;
const MAX_DELAY: Delay = Delay(3_600_000);

fuzz_target!(|bytes: &[u8]| {
    for message in [
        fuzzing::create_of_json(bytes, MAX_MSG_SIZE, MAX_DELAY),
        fuzzing::create_of_query(bytes, MAX_DELAY),
    ]
    .into_iter()
    .flatten()
    {
        check(&message);
    }
    fuzzing::pub_of_query(bytes);
});

fn check(message: &Message) {
    assert!(message.body.len() <= MAX_MSG_SIZE);
    assert!(TopicName::parse(message.topic.as_str().as_bytes()).is_ok());
    if let Some(id) = &message.id {
        assert!(ClientId::parse(id.as_str().as_bytes()).is_ok());
    }
    match message.due {
        Due::After(delay) => assert!(delay <= MAX_DELAY),
        Due::At(at) => assert!(at <= fuzzing::NOW.after(MAX_DELAY)),
    }
}
