//! What is seen of a message from outside, and what is done to all shards of both sides.

use std::collections::BTreeSet;

use nsqdelayd::message::UnixMs;
use nsqdelayd::store::{State, Stored};

use super::{HOUR_MS, Pair};
use crate::support::unix_ms;

pub(super) fn far(due: UnixMs) -> Option<UnixMs> {
    (due.0 > unix_ms() + HOUR_MS / 2).then_some(due)
}

pub(super) fn line(stored: &Stored) -> String {
    let due = if stored.state == State::Dead {
        None
    } else {
        far(stored.due)
    };
    let Stored {
        topic,
        body,
        state,
        reason,
        ..
    } = stored;
    format!("{body:?} {topic} {due:?} {state:?} {reason:?}")
}

impl Pair {
    /// What is held goes back.
    pub(super) async fn resume(&mut self) {
        for shard in self.real.store.topology().all() {
            for side in [&self.real, &self.model] {
                let nothing = BTreeSet::new;
                while side.store.resume_held(shard, nothing()).await.unwrap() {}
            }
        }
        self.trace.push("resume".to_owned());
    }
}
