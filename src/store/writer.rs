//! Gathers what the doors accept into inserts: what came in while the last write was under way goes
//! into the next one. How long an insert waits for more: `linger`; which shard it goes to: `rotation`.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::id::MessageId;
use crate::message::{Due, Message, UnixMs};
use crate::shard::ShardId;
use crate::store::connect::{Connected, is_broken, was_refused};
use crate::store::core::{AHEAD_MS, Core};
use crate::store::entry::{Entry, Kind};
use crate::store::linger::Linger;
use crate::store::packing::{self, Packed, Stamped, digest_of};
use crate::store::rotation::Rotation;
use crate::store::script::{self, InsertReply, Verdict};
use crate::store::{Error, ErrorKind, Receipt};
use crate::timer::{Timer, Timers};

/// Most inserts of messages with minted ids that are under way at once. Two: while Redis works on
/// one, the next gathers and is sent.
const INSERTS_MAX: usize = 2;
/// How often one insert is stamped or placed anew before it is given up.
const ATTEMPTS_MAX: u32 = 30;
/// What a message costs the queue besides its body.
const REQUEST_OVERHEAD: usize = 200;

type Reply = oneshot::Sender<Result<Vec<Receipt>, Error>>;

/// Messages that one caller wants stored, all or none.
#[derive(Debug)]
struct Request {
    messages: Vec<Message>,
    bytes: usize,
    reply: Reply,
}

/// The way into the queue.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::UnboundedSender<Request>,
    queued_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Writer {
    /// Starts the gathering; it ends when `stop` is given and the queue is empty.
    pub(super) fn start(core: &Arc<Core>, stop: CancellationToken) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let gatherer = Gatherer {
            core: Arc::clone(core),
            requests,
            queued_bytes: Arc::clone(&queued_bytes),
            rotation: Rotation::new(fastrand::u16(..), Instant::now()),
            linger: Linger::new(core.config.pack_linger, Instant::now()),
            messages_a_request: 1,
        };
        core.tracker.spawn(gatherer.run(stop));
        Self {
            queue,
            queued_bytes,
            bytes_max: core.config.queue_bytes_max,
        }
    }

    /// Stores `messages`, all or none. Refused at once when too much is queued.
    pub(super) async fn store(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, Error> {
        let bodies: usize = messages.iter().map(|m| m.body.len()).sum();
        // A batch of a million small messages takes more than the whole queue may. It is let in when
        // the queue is empty, and must not keep all others out as long as it is there.
        let share_max = self.bytes_max - self.bytes_max / 4;
        let bytes = (bodies + messages.len() * REQUEST_OVERHEAD).min(share_max);
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queued > 0 && queued + bytes > self.bytes_max {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::caused(
                ErrorKind::Overloaded,
                "too many bytes wait for redis",
            ));
        }
        let (reply, answer) = oneshot::channel();
        if self
            .queue
            .send(Request {
                messages,
                bytes,
                reply,
            })
            .is_err()
        {
            return Err(Error::caused(
                ErrorKind::Unavailable,
                "the store has stopped",
            ));
        }
        answer
            .await
            .unwrap_or_else(|_dropped| Err(Error::new(ErrorKind::Unknown)))
    }
}

struct Gatherer {
    core: Arc<Core>,
    requests: mpsc::UnboundedReceiver<Request>,
    queued_bytes: Arc<AtomicUsize>,
    rotation: Rotation,
    linger: Linger,
    /// Of the last insert: what is queued is counted in requests.
    messages_a_request: usize,
}

impl Gatherer {
    async fn run(mut self, stop: CancellationToken) {
        let mut inserts = FuturesUnordered::new();
        let mut timer = Timer::new(Timers::Kernel);
        loop {
            let look_at = self.linger.look_at();
            tokio::select! {
                biased;
                Some(done) = inserts.next(), if !inserts.is_empty() => self.inserted(&done),
                () = timer.sleep_until(look_at.unwrap_or_else(Instant::now)), if look_at.is_some() => {
                    let queued = self.requests.len() * self.messages_a_request;
                    self.linger.look(queued, Instant::now());
                }
                request = self.requests.recv(), if look_at.is_none() && inserts.len() < INSERTS_MAX => {
                    let Some(request) = request else { break };
                    for insertion in self.gather(request) {
                        inserts.push(insertion.run(Arc::clone(&self.core)));
                    }
                }
                () = stop.cancelled(), if inserts.is_empty() && self.requests.is_empty() => break,
            }
        }
    }

    fn inserted(&mut self, done: &Inserted) {
        self.queued_bytes.fetch_sub(done.bytes, Ordering::Relaxed);
        if done.was_crowded {
            self.rotation.crowded(Instant::now());
        }
    }

    /// Takes what is ready, up to `insert_bytes_max`, and sorts it by shard.
    fn gather(&mut self, first: Request) -> Vec<Insertion> {
        let bytes_max = self.core.config.insert_bytes_max;
        let topology = self.core.topology;
        let next = self.rotation.next(topology.shards, Instant::now());
        let rotating = topology.shard(next);
        let mut insertions: Vec<Insertion> = Vec::new();
        let (mut bytes, mut messages, mut requests) = (0, 0, 0);
        let mut next = Some(first);
        while let Some(request) = next.take() {
            bytes += request.bytes;
            messages += request.messages.len();
            requests += 1;
            let id = request.messages.first().and_then(|m| m.id.as_ref());
            let shard = id.map_or(rotating, |id| topology.shard_of(id));
            match insertions.iter_mut().find(|i| i.shard == shard) {
                Some(insertion) => insertion.requests.push(request),
                None => insertions.push(Insertion {
                    shard,
                    requests: vec![request],
                    was_crowded: false,
                }),
            }
            if bytes < bytes_max {
                next = self.requests.try_recv().ok();
            }
        }
        self.messages_a_request = messages / requests.max(1);
        let fill_pack = (self.core.pack_limits.bytes * messages / bytes.max(1)).max(1);
        self.rotation.wrote(messages, fill_pack);
        self.linger.begun(messages, fill_pack, Instant::now());
        insertions
    }
}

/// One insert: requests for one shard.
struct Insertion {
    shard: ShardId,
    requests: Vec<Request>,
    /// Hardly a place was free.
    was_crowded: bool,
}

/// What an insert came to.
struct Inserted {
    bytes: usize,
    was_crowded: bool,
}

impl Insertion {
    /// Stores the requests and answers them.
    async fn run(mut self, core: Arc<Core>) -> Inserted {
        let bytes = self.requests.iter().map(|r| r.bytes).sum();
        while !self.requests.is_empty() {
            let later = self.split_repeated_ids();
            self.store(&core).await;
            self.requests = later;
        }
        Inserted {
            bytes,
            was_crowded: self.was_crowded,
        }
    }

    /// The same id twice in one insert would leave one of them without an entry: the second waits
    /// for the first one's answer.
    fn split_repeated_ids(&mut self) -> Vec<Request> {
        let mut seen = HashSet::new();
        let id_of = |r: &Request| r.messages.first().and_then(|m| m.id.clone());
        let (now, later) = std::mem::take(&mut self.requests)
            .into_iter()
            .partition(|r| id_of(r).is_none_or(|id| seen.insert(id)));
        self.requests = now;
        later
    }

    async fn store(&mut self, core: &Core) {
        let mut floor = UnixMs(0);
        for attempt in 0..ATTEMPTS_MAX {
            if self.requests.is_empty() {
                return;
            }
            let Some(mut link) = core.hot.current() else {
                return self.fail(|| Error::new(ErrorKind::Unavailable));
            };
            let now = core.clock.upper();
            if now == UnixMs(0) {
                return self.fail(|| Error::new(ErrorKind::Unavailable));
            }
            // Once may be chance.
            self.was_crowded |= attempt == 2;
            let packed = self.pack(core, now, floor, attempt);
            let sent = core.clock.monotonic();
            let keys = core.keys.shard(self.shard);
            let result = script::insert(&mut link.connection, &keys, &packed.packs).await;
            match result {
                Err(error) => return self.failed(core, &link, &error),
                Ok((now_us, reply)) => {
                    core.clock.learn(now_us, sent);
                    match reply {
                        InsertReply::Ok => {
                            core.metrics
                                .inserted(packed.packs.len(), packed.minted.len());
                            return self.succeed(&packed);
                        }
                        InsertReply::Closed => {
                            return self.fail(|| {
                                Error::caused(
                                    ErrorKind::Refused,
                                    "the shard's generation is closed",
                                )
                            });
                        }
                        InsertReply::Refused { limit, verdicts } => {
                            if verdicts.contains(&Verdict::Late) {
                                floor = floor.max(limit.plus_ms(AHEAD_MS));
                            }
                            self.answer_taken(verdicts);
                        }
                    }
                }
            }
        }
        error!(shard = %self.shard, "no place found for an insert");
        self.fail(|| Error::caused(ErrorKind::Refused, "no free place"));
    }

    /// Stamps and packs. Every attempt has new scores and nonces; after a few, also later times, in
    /// case the ms is crowded.
    fn pack(&self, core: &Core, now: UnixMs, floor: UnixMs, attempt: u32) -> Packed {
        let crowded = u64::from(attempt.saturating_sub(3));
        let earliest = now.plus_ms(AHEAD_MS).max(floor);
        let stamp = |message: &Message| {
            let due = match message.due {
                Due::After(delay) => now.after(delay).max(earliest),
                Due::At(at) => at.max(earliest),
            };
            Stamped {
                due: due.plus_ms(crowded),
                message: message.clone(),
            }
        };
        let stamped: Vec<Stamped> = self
            .requests
            .iter()
            .flat_map(|r| &r.messages)
            .map(stamp)
            .collect();
        packing::pack(
            self.shard,
            &stamped,
            core.pack_limits,
            &mut core.scores(self.shard),
        )
    }

    fn succeed(&mut self, packed: &Packed) {
        let mut minted = packed.minted.iter();
        for request in std::mem::take(&mut self.requests) {
            let receipt = |(message, at): (&Message, &crate::id::MintedId)| Receipt {
                id: message
                    .id
                    .clone()
                    .map_or(MessageId::Minted(*at), MessageId::Client),
                due: at.due,
                created: true,
            };
            let receipts = request
                .messages
                .iter()
                .zip(minted.by_ref())
                .map(receipt)
                .collect();
            answer(request.reply, Ok(receipts));
        }
    }

    /// Answers the requests whose ids have entries, from the entries; the others stay.
    fn answer_taken(&mut self, verdicts: Vec<Verdict>) {
        let taken: Vec<(String, Vec<u8>)> = verdicts
            .into_iter()
            .filter_map(|v| {
                if let Verdict::IdsTaken(ids) = v {
                    Some(ids)
                } else {
                    None
                }
            })
            .flatten()
            .collect();
        if taken.is_empty() {
            return;
        }
        for request in std::mem::take(&mut self.requests) {
            let first = request.messages.first();
            let id = first.and_then(|m| m.id.as_ref());
            let found = id.and_then(|id| taken.iter().find(|(text, _)| text == id.as_str()));
            match (first, id, found) {
                (Some(message), Some(id), Some((_, entry))) => {
                    let existing = existing(message, MessageId::Client(id.clone()), entry);
                    answer(request.reply, existing.map(|receipt| vec![receipt]));
                }
                _ => self.requests.push(request),
            }
        }
    }

    fn failed(&mut self, core: &Core, link: &Connected, error: &redis::RedisError) {
        warn!(shard = %self.shard, %error, "insert failed");
        if is_broken(error) {
            core.hot.give_up(link.number);
        }
        let kind = if was_refused(error) {
            ErrorKind::Refused
        } else {
            ErrorKind::Unknown
        };
        let text = error.to_string();
        self.fail(|| Error::caused(kind, text.clone()));
    }

    fn fail(&mut self, error: impl Fn() -> Error) {
        for request in std::mem::take(&mut self.requests) {
            answer(request.reply, Err(error()));
        }
    }
}

/// A create with an id that has an entry: the same message again, another one, or a cancelled one.
fn existing(message: &Message, id: MessageId, entry: &[u8]) -> Result<Receipt, Error> {
    let entry = Entry::parse(entry).ok_or_else(|| Error::new(ErrorKind::Corrupt))?;
    match entry.kind {
        Kind::Cancelled => Err(Error::new(ErrorKind::Cancelled)),
        Kind::Stored | Kind::Held | Kind::Dead if entry.digest == digest_of(message) => {
            Ok(Receipt {
                id,
                due: entry.due,
                created: false,
            })
        }
        Kind::Stored | Kind::Held | Kind::Dead => Err(Error::new(ErrorKind::Conflict)),
    }
}

fn answer(reply: Reply, result: Result<Vec<Receipt>, Error>) {
    // A caller that has gone away does not hear the outcome; the message is stored all the same.
    if reply.send(result).is_err() {
        tracing::trace!("nobody waits for this receipt");
    }
}
