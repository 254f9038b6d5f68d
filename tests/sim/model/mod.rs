//! A model of Redis with our scripts, of one instance's connection to it, and of what can befall the
//! connection. Shares no code with `store` but its types: what both do alike, both do for themselves.

mod cancels;
mod claims;
mod doors;
mod holding;
pub(crate) mod link;
mod packing;
pub(crate) mod shard;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nsqdelayd::id::IdKey;
use nsqdelayd::message::{TopicName, UnixMs};
use nsqdelayd::shard::{Generation, InstanceId, ShardId, Topology};
use nsqdelayd::store::Wake;
use tokio::sync::mpsc;

pub(crate) use link::{Link, Request};
use shard::Shard;

/// A defect planted into the model, to see that the checker finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// An insert is acknowledged before it is written, and the write is sometimes lost.
    ReplyBeforeWrite,
    /// A turn does not ask whose claim it is.
    ClaimWithoutToken,
    /// A cancel looks neither at H nor at `maybe`.
    CancelIgnoresHanded,
    /// An insert at or below `opened` is published, but not counted.
    BelowNotCounted,
    /// Marks are not read.
    MarksDropped,
    /// Two packs may have one score: the second replaces the first.
    SharedScores,
    /// A due time is rounded down, to 10 ms.
    DueRoundedDown,
    /// An insert may appear at or under H.
    LateInserts,
    /// A message counts as delivered before nsqd has answered.
    SettleBeforeOk,
    /// A sweep finds nothing of what was missed.
    BlindSweep,
    /// A turn does not count what was cancelled and never tidied.
    UntidyNotCounted,
}

/// Redis's clock: µs since the epoch.
pub(crate) type Time = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Limits that the configuration of a store has.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) shards: u16,
    pub(crate) pack_window_ms: u64,
    pub(crate) pack_bytes: usize,
    pub(crate) claim_ttl: Duration,
    pub(crate) instance_ttl_ms: u64,
    pub(crate) dedupe_window_ms: u64,
    pub(crate) dead_letters_max: usize,
    /// What follows from a cancel is done at once, or else when its pack is removed.
    pub(crate) tidies: bool,
    pub(crate) bug: Option<Bug>,
}

/// A subscription to wakes.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) shards: BTreeSet<ShardId>,
    pub(crate) sender: mpsc::UnboundedSender<Wake>,
}

/// What Redis holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) shards: Vec<Shard>,
    pub(crate) members: BTreeMap<String, UnixMs>,
    pub(crate) listeners: BTreeMap<u64, Listener>,
    pub(crate) paused: BTreeSet<TopicName>,
    /// Scripts run so far.
    pub(crate) steps: u64,
}

/// The server.
pub(crate) struct Server {
    pub(crate) settings: Settings,
    pub(crate) id_key: IdKey,
    time: Time,
    contents: Mutex<Contents>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    pub(crate) fn new(settings: Settings, time: Time) -> Arc<Self> {
        let mut contents = Contents::default();
        contents
            .shards
            .resize_with(usize::from(settings.shards), || Shard {
                bug: settings.bug,
                ..Shard::default()
            });
        Arc::new(Self {
            settings,
            id_key: IdKey([7; 16]),
            time,
            contents: Mutex::new(contents),
        })
    }

    pub(crate) fn now_us(&self) -> u64 {
        (self.time)()
    }

    pub(crate) fn topology(&self) -> Topology {
        Topology {
            generation: Generation(1),
            shards: self.settings.shards,
        }
    }

    pub(crate) fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one script on a shard and carries what it published to the listeners.
    pub(crate) fn run<R>(&self, shard: ShardId, script: impl FnOnce(&mut Shard, UnixMs) -> R) -> R {
        let now = UnixMs(self.now_us() / 1_000);
        let mut contents = self.contents();
        contents.steps += 1;
        let keys = &mut contents.shards[usize::from(shard.index)];
        let result = script(keys, now);
        let published = std::mem::take(&mut keys.published);
        for due in published {
            for listener in contents.listeners.values() {
                if listener.shards.contains(&shard) {
                    // A crashed instance does not listen any more.
                    let _heard = listener.sender.send(Wake::Earlier(shard, due));
                }
            }
        }
        result
    }

    /// `members.lua`
    pub(crate) fn members(&self, me: &InstanceId, leave: bool) -> Vec<InstanceId> {
        let now = UnixMs(self.now_us() / 1_000);
        let ttl = self.settings.instance_ttl_ms;
        let mut contents = self.contents();
        contents.steps += 1;
        if leave {
            contents.members.remove(&me.0);
        } else {
            contents.members.insert(me.0.clone(), now);
        }
        contents.members.retain(|_, beat| *beat > now.minus_ms(ttl));
        for beat in contents.members.values_mut() {
            if *beat >= now.plus_ms(ttl) {
                *beat = now;
            }
        }
        contents.members.keys().cloned().map(InstanceId).collect()
    }
}

/// One instance's, or one client's, store: what it knows, on a [`Link`] to the [`Server`].
#[derive(Debug)]
pub(crate) struct ModelStore {
    pub(crate) server: Arc<Server>,
    pub(crate) link: Arc<Link>,
    next_shard: Mutex<u16>,
    next_k: Mutex<u64>,
}

impl ModelStore {
    pub(crate) fn new(server: Arc<Server>, link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self {
            server,
            link,
            next_shard: Mutex::new(fastrand::u16(..)),
            next_k: Mutex::new(fastrand::u64(..)),
        })
    }
}
