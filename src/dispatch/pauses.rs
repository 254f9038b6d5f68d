//! Paused topics: what is due of them is held instead of sent, and given back when they are resumed. Which
//! they are is looked up with each sweep, and at once when somebody says that it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::dispatch::poller::Poller;
use crate::dispatch::shared::Shared;
use crate::dispatch::tenure::{Ended, Tenure};
use crate::dispatch::turn::{Key, ToSend};
use crate::message::TopicName;
use crate::shard::ShardId;
use crate::store::{PARK_MAX, ParkTo};

/// Passes over the shards after a change, with different heartbeats: another poller may just be holding what it
/// found paused.
const PASSES: u32 = 2;
/// Pause after it could not be learned which topics are paused.
const LEARN_PAUSE: Duration = Duration::from_millis(100);
/// Longest span of due times that are held together, in ms.
const WINDOW_MS: u64 = 4_000;
/// Most bytes that are held together; one message may be larger.
const BYTES_MAX: usize = 256 * 1024;

/// What is known of paused topics.
#[derive(Debug)]
pub(super) struct Pauses {
    topics: Mutex<Arc<BTreeSet<TopicName>>>,
    /// One asks at a time, so that no older answer comes last.
    asking: tokio::sync::Mutex<()>,
    /// Passes over the shards that are still to be made.
    passes: AtomicU32,
    /// Whether a pass is under way.
    passing: AtomicBool,
}

/// Why it is looked which topics are paused.
#[derive(Debug)]
pub(super) enum Occasion {
    /// Somebody said that it changed. It may be said many times at once.
    News,
    /// A heartbeat that finds a pass asked for.
    Beat,
    /// A sweep, which found something held in these shards.
    Sweep(Vec<ShardId>),
}

impl Pauses {
    /// Nothing is known, and something may be held of earlier times.
    pub(super) fn new() -> Self {
        Self {
            topics: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            passes: AtomicU32::new(1),
            passing: AtomicBool::new(false),
        }
    }

    /// The topics that are paused.
    pub(super) fn topics(&self) -> Arc<BTreeSet<TopicName>> {
        Arc::clone(&self.topics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether they are others than were known.
    fn set(&self, topics: BTreeSet<TopicName>) -> bool {
        let mut known = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = **known != topics;
        if changed {
            info!(paused = topics.len(), "paused topics changed");
            *known = Arc::new(topics);
            self.look_again();
        }
        changed
    }

    /// Something may be held in our shards that belongs into the queue: shards have come to us, and somebody may
    /// have held messages there of a topic that was resumed since; or a pass was not completed.
    pub(super) fn look_again(&self) {
        self.passes.store(PASSES, Ordering::Relaxed);
    }

    /// Whether a pass is still to be made.
    pub(super) fn is_asked_for(&self) -> bool {
        self.passes.load(Ordering::Relaxed) > 0
    }

    /// One of the passes that are still to be made, if there is any.
    fn take_pass(&self) -> bool {
        let fewer = |left: u32| left.checked_sub(1);
        self.passes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer)
            .is_ok()
    }
}

/// Learns which topics are paused: before that nothing may be handed out.
pub(super) async fn learn(shared: &Shared) {
    loop {
        match shared.store.paused().await {
            Ok(topics) => {
                shared.pauses.set(topics);
                return;
            }
            Err(error) => warn!(%error, "which topics are paused is not known yet"),
        }
        sleep(LEARN_PAUSE).await;
    }
}

/// Looks which topics are paused, and gives back what is held of the others in `shards`, until `stop`.
pub(super) async fn look(
    shared: Arc<Shared>,
    shards: Vec<ShardId>,
    occasion: Occasion,
    stop: CancellationToken,
) {
    let pauses = &shared.pauses;
    let changed = {
        let _one_at_a_time = pauses.asking.lock().await;
        match shared.store.paused().await {
            Ok(topics) => pauses.set(topics),
            Err(error) => {
                pauses.look_again();
                return warn!(%error, "which topics are paused is not known anew");
            }
        }
    };
    // A pass may take long. Meanwhile it is still learned what is paused, and one is enough.
    if pauses.passing.swap(true, Ordering::Relaxed) {
        return;
    }
    match occasion {
        // Only heartbeats, which lie apart, count passes.
        Occasion::Beat if pauses.take_pass() => resume(&shared, shards, &stop).await,
        _ if changed => resume(&shared, shards, &stop).await,
        Occasion::Sweep(holding) => resume(&shared, holding, &stop).await,
        Occasion::News | Occasion::Beat => {}
    }
    pauses.passing.store(false, Ordering::Relaxed);
}

async fn resume(shared: &Shared, shards: Vec<ShardId>, stop: &CancellationToken) {
    for shard in shards {
        loop {
            if stop.is_cancelled() {
                return;
            }
            // Anew each time: a topic may be paused again meanwhile.
            let paused = BTreeSet::clone(&shared.pauses.topics());
            match shared.store.resume_held(shard, paused).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    warn!(%shard, %error, "what is held was not given back; tried again later");
                    shared.pauses.look_again();
                    break;
                }
            }
        }
    }
}

impl Poller {
    /// Puts what is due of paused topics among what is held. `Some`: the tenure is over.
    pub(super) async fn hold_paused(&self, tenure: &mut Tenure) -> Option<Ended> {
        let mut by_topic: BTreeMap<TopicName, Vec<ToSend>> = BTreeMap::new();
        for message in std::mem::take(&mut tenure.held) {
            let topic = message.record.topic.clone();
            by_topic.entry(topic).or_default().push(message);
        }
        for (topic, mut messages) in by_topic {
            messages.sort_by_key(|message| message.key);
            for keys in groups(&messages) {
                match self.park(tenure, &keys, ParkTo::Held(topic.clone())).await {
                    Ok(_) => {
                        self.shared.metrics.held.inc_by(keys.len() as u64);
                    }
                    Err(ended) => return Some(ended),
                }
            }
        }
        None
    }
}

/// Cuts messages, which are in order, into what is held together.
fn groups(messages: &[ToSend]) -> Vec<Vec<Key>> {
    let mut groups: Vec<Vec<Key>> = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let len = message.record.body.len();
        let fits = groups.last().is_some_and(|group| {
            let first = group.first().map_or(message.key.due, |key| key.due);
            group.len() < PARK_MAX
                && bytes + len <= BYTES_MAX
                && message.key.due.ms_since(first) <= WINDOW_MS
        });
        if let Some(group) = groups.last_mut().filter(|_| fits) {
            group.push(message.key);
        } else {
            groups.push(vec![message.key]);
            bytes = 0;
        }
        bytes += len;
    }
    groups
}
