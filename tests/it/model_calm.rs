//! The wire of the model store when it is compared with a real Redis.

use nsqdelayd::message::TopicName;
use nsqdelayd::store::Pack;
use std::time::Duration;

use super::model::Request;
use super::model::link::{Fate, Wire};

/// Nothing befalls a request, and it takes no time.
#[derive(Debug)]
pub(crate) struct Calm;

impl Wire for Calm {
    fn fate(&self, _request: Request) -> Fate {
        Fate::Answered {
            out: Duration::ZERO,
            back: Duration::ZERO,
        }
    }
    fn reconnect(&self) -> Duration {
        Duration::ZERO
    }

    fn loses_wake(&self) -> bool {
        false
    }
}

/// The bytes of a pack's bodies, by topic; a topic may be there more than once.
pub(crate) fn bytes_of(pack: &Pack) -> Vec<(TopicName, u64)> {
    let records = pack.records.iter();
    records
        .map(|r| (r.topic.clone(), r.body.len() as u64))
        .collect()
}
