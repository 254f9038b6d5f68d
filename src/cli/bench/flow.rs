//! One load from end to end: subscribe, send, wait until everything has come back, count.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cli::Failure;
use crate::cli::bench::account::Account;
use crate::cli::bench::body::Shape;
use crate::cli::bench::book::Book;
use crate::cli::bench::clock;
use crate::cli::bench::consumer::{Buffering, Consumers};
use crate::cli::bench::door::{Door, Publish, When};
use crate::cli::bench::figures::{Percentiles, share};
use crate::cli::bench::progress::Progress;
use crate::cli::bench::report::{NSQD, OURS, Row, Span};
use crate::cli::bench::sender::{self, Pace, Route, Sent};
use crate::cli::bench::servers::Servers;

/// nsqd looks for new channels every 5 s; until then its own deferred messages wait.
const NSQD_SETTLES: Duration = Duration::from_secs(6);
/// How long nothing may come, beyond the last due time, before the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long is waited for duplicates once everything has come.
const QUIET: Duration = Duration::from_millis(500);
/// Between two looks whether everything has come.
const LOOK: Duration = Duration::from_millis(2);
/// Between two looks at nsqd's disk, in µs.
const DISK_LOOK_US: u64 = 50_000;

/// Whose door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Ours,
    /// nsqd's own `DPUB`, which keeps what is deferred in memory.
    Nsqd,
}

impl Target {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => OURS,
            Self::Nsqd => NSQD,
        }
    }
}

/// What is sent, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) target: Target,
    pub(super) door: Door,
    pub(super) count: u32,
    pub(super) shape: Shape,
    pub(super) batch: u32,
    pub(super) connections: u32,
    pub(super) consumers: u32,
    pub(super) buffering: Buffering,
    pub(super) with_ids: bool,
}

/// A load under way.
pub(super) struct Flow<'a> {
    pub(super) servers: &'a Servers,
    pub(super) load: Load,
    pub(super) book: Arc<Book>,
    topic: String,
    consumers: Consumers,
    progress: Progress,
    pub(super) begin: Account,
    used_memory: u64,
    /// Messages and packs, as nsqdelayd counted them before.
    packed: Option<(f64, f64)>,
    pub(super) refusals: Vec<String>,
    pub(super) spans: Vec<Span>,
    pub(super) figures: BTreeMap<&'static str, f64>,
    answered_ms: Option<Percentiles>,
}

impl<'a> Flow<'a> {
    /// Subscribes; nothing is sent yet.
    pub(super) fn start(servers: &'a Servers, load: Load) -> Result<Self, Failure> {
        let run = fastrand::u32(..);
        let topic = format!("bench_{run:08x}");
        let by_reception = load.target == Target::Nsqd;
        let book = Arc::new(Book::new(run, load.count, by_reception));
        let consumers = Consumers::start(
            &servers.nsqd_tcp,
            &topic,
            load.consumers,
            load.buffering,
            &book,
        )?;
        if load.target == Target::Nsqd {
            clock::wait(NSQD_SETTLES);
        }
        let info = servers.redis_info()?.unwrap_or_default();
        let name = format!("{} {}", load.target.name(), load.door.name());
        Ok(Self {
            servers,
            load,
            topic,
            consumers,
            progress: Progress::start(name, &book, servers.redis.clone()),
            book,
            begin: servers.account()?,
            used_memory: info.number("used_memory"),
            packed: servers.packed(),
            refusals: Vec::new(),
            spans: Vec::new(),
            figures: BTreeMap::new(),
            answered_ms: None,
        })
    }

    /// Sends everything, and waits for the answers.
    pub(super) fn send(
        &mut self,
        when: When,
        pace: Pace,
        minted: Option<&Mutex<Vec<(u32, String)>>>,
    ) -> Result<Sent, Failure> {
        let load = self.load;
        let publish = Publish {
            door: load.door,
            topic: &self.topic,
            shape: load.shape,
            batch: load.batch,
            when,
            with_ids: load.with_ids,
            minted,
            book: &self.book,
        };
        let address = match (load.target, load.door) {
            (Target::Nsqd, _) => &self.servers.nsqd_tcp,
            (Target::Ours, Door::Dpub | Door::Mdpub) => &self.servers.tcp,
            (Target::Ours, Door::Mpub | Door::Batch) => &self.servers.http,
        };
        let route = Route {
            address,
            speech: load.door.speech(),
            connections: load.connections,
            pace,
        };
        let mut sent = sender::send(route, &publish)?;
        self.answered_ms = Percentiles::of(&sent.answered_us);
        self.refusals.append(&mut sent.refusals);
        Ok(sent)
    }

    /// What the messages sent so far take in Redis, a message.
    pub(super) fn note_memory(&mut self) -> Result<(), Failure> {
        if self.load.target == Target::Ours
            && let Some(info) = self.servers.redis_info()?
        {
            let grown = info.number("used_memory").saturating_sub(self.used_memory);
            let each = share(grown, u64::from(self.book.acknowledged()));
            self.figures.insert("redis bytes a message", each);
        }
        Ok(())
    }

    /// Adds a span from `before` until now.
    pub(super) fn span(
        &mut self,
        what: &'static str,
        messages: u32,
        seconds: f64,
        before: &Account,
    ) -> Result<(), Failure> {
        let now = self.servers.account()?;
        self.spans
            .push(Span::new(what, messages, seconds, before, &now));
        Ok(())
    }

    /// Waits until all that must come has come, or nothing comes any more. `last_due_us`: when the last of
    /// it is due.
    pub(super) fn drain(&self, last_due_us: u64) {
        self.drain_beside(last_due_us, || {});
    }

    /// The same. Notes the most messages that nsqd had on its disk meanwhile.
    pub(super) fn drain_watched(&mut self, last_due_us: u64) {
        let (mut most, mut look_at_us) = (None, 0);
        self.drain_beside(last_due_us, || {
            if clock::now_us() >= look_at_us {
                look_at_us = clock::now_us() + DISK_LOOK_US;
                most = most.max(self.servers.nsqd_backend_depth(&self.topic));
            }
        });
        if let Some(depth) = most {
            self.figures
                .insert("nsqd backend_depth at most", share(depth, 1));
        }
    }

    fn drain_beside(&self, last_due_us: u64, mut look: impl FnMut()) {
        let mut seen = (self.book.received(), clock::now_us());
        while self.book.received() < self.book.wanted() {
            look();
            clock::wait(LOOK);
            let (received, now) = (self.book.received(), clock::now_us());
            if received > seen.0 || now < last_due_us {
                seen = (received, now);
            }
            if clock::seconds(now - seen.1) > PATIENCE.as_secs_f64() {
                return;
            }
        }
    }

    /// Ends the load and counts.
    pub(super) fn end(mut self) -> Result<Row, Failure> {
        if self.servers.redis.is_some() && self.load.target == Target::Ours {
            let most = self.progress.used_memory_max();
            if most > 0 {
                self.figures
                    .insert("redis used_memory at most, MiB", share(most, 1 << 20));
            }
        }
        if self.load.target == Target::Ours
            && let (Some(before), Some(now)) = (self.packed, self.servers.packed())
            && now.1 > before.1
        {
            let mean = (now.0 - before.0) / (now.1 - before.1);
            self.figures.insert("records a pack", mean);
        }
        clock::wait(QUIET);
        let late_us = self.consumers.end()?;
        drop(self.progress);
        let account = self.servers.account()?;
        self.servers.forget(&self.topic);
        Ok(Row {
            target: self.load.target.name(),
            door: self.load.door.name(),
            body_bytes: self.load.shape.len(),
            spans: self.spans,
            verdict: self.book.verdict(),
            lateness_ms: Percentiles::of(&late_us),
            answered_ms: self.answered_ms,
            refusals: self.refusals,
            figures: self.figures,
            account,
        })
    }
}
