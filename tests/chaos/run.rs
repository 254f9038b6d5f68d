//! One run from beginning to end: warm up; break things, repair them, drain, look whether everything lives; again;
//! read everything back; judge.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::Duration;

use tokio::time::Instant;

use crate::checker::{Bound, Verdict};
use crate::cluster::{self, Cluster, SHARDS, UNSETTLED_MAX};
use crate::consumers::Consumer;
use crate::event::{Event, Phase};
use crate::faults;
use crate::producers::{DELAY_MS_MAX, Field, Kind, Producer, TOPICS};
use crate::read_back;
use crate::recorder::Recorder;
use crate::schedule::{Cycle, Schedule, WARM_UP_MS};
use crate::support::wait;

/// How long producers go on after the repair, before the backlog must drain.
const HEALING: Duration = Duration::from_millis(1_500);
/// What is due later than this is not waited for, µs: far beyond the longest delay of what is to be delivered.
const FAR_US: u64 = 60_000_000;
const TICK: Duration = Duration::from_millis(20);
/// The machine gave the harness no time for so long: then others had none either.
const STALL: Duration = Duration::from_millis(1_200);
/// A run that acknowledges less is worthless: messages a second.
const ACKNOWLEDGED_EACH_SECOND_MIN: u64 = 20;

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) cluster: cluster::Size,
    /// Producers: TCP, HTTP, JSON, racers.
    pub(crate) producers: [usize; 4],
    pub(crate) pace: Duration,
    /// How long after the last repair everything due must be delivered.
    pub(crate) liveness: Duration,
}

impl Size {
    /// What is promised is promised of this.
    pub(crate) fn whole() -> Self {
        Self {
            cluster: cluster::Size {
                instances: 3,
                nsqds: 2,
                plant: None,
                persistent: true,
            },
            producers: [3, 2, 2, 3],
            pace: Duration::from_millis(60),
            liveness: Duration::from_secs(30),
        }
    }
}

/// An empty directory for a run's record and its servers' files.
pub(crate) fn fresh_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Drops what the servers stored; the record and the logs stay.
pub(crate) fn drop_servers_files(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

/// Everything that a run has.
struct Run<'a> {
    cluster: &'a Cluster,
    recorder: &'a Arc<Recorder>,
    field: &'a Field,
}

/// Plays a schedule and judges what came of it.
pub(crate) fn play(schedule: &Schedule, size: Size, dir: &Path) -> Verdict {
    let recorder = Arc::new(Recorder::create(&dir.join("history.jsonl")));
    let cluster = Cluster::start(size.cluster, dir, &recorder);
    let field = Field {
        recorder: Arc::clone(&recorder),
        doors: cluster
            .instances
            .iter()
            .map(|i| (i.tcp.clone(), i.http.clone()))
            .collect(),
        numbers: AtomicU64::new(0),
        pace: size.pace,
        paused: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        resting: AtomicUsize::new(0),
    };
    let stop_consumers = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let run = Run {
            cluster: &cluster,
            recorder: &recorder,
            field: &field,
        };
        consume(scope, &cluster, &recorder, &stop_consumers);
        watch_for_stalls(scope, &recorder, &stop_consumers);
        produce(scope, &field, size, schedule.seed);
        run.phase(Phase::Healthy);
        run.pass(Duration::from_millis(WARM_UP_MS));
        for cycle in &schedule.cycles {
            run.play_cycle(cycle, size);
        }
        field.stop.store(true, Ordering::SeqCst);
        run.drain(size, Instant::now());
        read_back::everything(&cluster, &recorder, dir);
        stop_consumers.store(true, Ordering::SeqCst);
    });
    drop((cluster, field));
    let recorder =
        Arc::into_inner(recorder).unwrap_or_else(|| panic!("the record is still in use"));
    recorder.finish().verdict(Bound {
        in_flight: SHARDS * UNSETTLED_MAX,
        acknowledged_min: usize::try_from(ACKNOWLEDGED_EACH_SECOND_MIN * schedule.minutes * 60)
            .unwrap(),
    })
}

fn consume<'s>(
    scope: &'s Scope<'s, '_>,
    cluster: &Cluster,
    recorder: &Arc<Recorder>,
    stop: &Arc<AtomicBool>,
) {
    for (nsqd, server) in cluster.nsqds.iter().enumerate() {
        for topic in TOPICS {
            let consumer = Consumer {
                recorder: Arc::clone(recorder),
                nsqd,
                address: server.tcp.clone(),
                topic,
                stop: Arc::clone(stop),
            };
            scope.spawn(move || consumer.run());
        }
    }
}

fn produce<'s, 'e>(scope: &'s Scope<'s, 'e>, field: &'e Field, size: Size, seed: u64) {
    let kinds = [Kind::Tcp, Kind::Http, Kind::Json, Kind::Racer];
    let all = kinds
        .into_iter()
        .zip(size.producers)
        .flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
    for (number, kind) in all.enumerate() {
        let producer = Producer::new(field, kind, number, seed);
        scope.spawn(move || producer.run());
    }
}

/// A machine that stands still is a fault that nobody planned, and has to be known.
fn watch_for_stalls<'s>(
    scope: &'s Scope<'s, '_>,
    recorder: &Arc<Recorder>,
    stop: &Arc<AtomicBool>,
) {
    let (recorder, stop) = (Arc::clone(recorder), Arc::clone(stop));
    scope.spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            let before = recorder.now();
            wait::pause(TICK);
            let now = recorder.now();
            if now - before > u64::try_from(STALL.as_micros()).unwrap() {
                recorder.stalled(before, now);
            }
        }
    });
}

impl Run<'_> {
    fn phase(&self, phase: Phase) {
        let t = self.recorder.now();
        self.recorder.add(&Event::Phase { phase, t });
    }

    /// Lets time pass, and starts again what has ended.
    fn pass(&self, span: Duration) {
        let start = Instant::now();
        self.supervise_while(|| start.elapsed() < span);
    }

    fn supervise_while(&self, goes_on: impl Fn() -> bool) {
        while goes_on() {
            self.cluster.supervise();
            wait::pause(TICK);
        }
    }

    fn play_cycle(&self, cycle: &Cycle, size: Size) {
        let began = Instant::now();
        self.phase(Phase::Faults);
        // Only this thread may start programs, so the lanes have threads of their own.
        std::thread::scope(|scope| {
            let (cluster, recorder) = (self.cluster, self.recorder);
            let lanes = cycle.lanes.iter();
            let lanes: Vec<_> = lanes
                .map(|steps| scope.spawn(move || faults::play(cluster, recorder, steps)))
                .collect();
            self.supervise_while(|| lanes.iter().any(|lane| !lane.is_finished()));
        });
        self.cluster.heal();
        let healed = Instant::now();
        self.phase(Phase::Healing);
        self.pass(HEALING);
        self.field.paused.store(true, Ordering::SeqCst);
        self.drain(size, healed);
        self.field.paused.store(false, Ordering::SeqCst);
        self.phase(Phase::Healthy);
        let slot = Duration::from_millis(cycle.slot_ms);
        self.supervise_while(|| began.elapsed() < slot);
    }

    /// Waits until everything due is delivered, then sees that every shard lives: messages to all of them.
    fn drain(&self, size: Size, healed: Instant) {
        let all: usize = size.producers.iter().sum();
        let field = self.field;
        let stopped = || field.stop.load(Ordering::SeqCst);
        self.supervise_while(|| {
            !stopped()
                && field.resting.load(Ordering::SeqCst) < all
                && healed.elapsed() < size.liveness
        });
        self.wait_delivered(size, healed);
        read_back::probe(self.field);
        self.wait_delivered(size, healed);
    }

    fn wait_delivered(&self, size: Size, healed: Instant) {
        let open = || self.recorder.owed(FAR_US);
        // What is due later than the repair is not late by then.
        let limit = size.liveness + Duration::from_millis(DELAY_MS_MAX);
        self.supervise_while(|| {
            wait::pause(TICK * 5);
            if open() > 0 {
                read_back::dead_letters(self.cluster, self.recorder, true);
            }
            open() > 0 && healed.elapsed() < limit
        });
        self.recorder.add(&Event::Drained {
            t: self.recorder.now(),
            owed: open(),
            took_ms: u64::try_from(healed.elapsed().as_millis()).unwrap(),
        });
    }
}
