//! Producers over all three doors, and racers, which cancel and move. Each is a thread with one connection at a
//! time; who meets a broken one goes to another instance. Everything asked and answered is written down.

mod http;
pub(crate) use http::draft;
mod racer;
mod tcp;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;

use crate::event::{Asked, Event, Number, Op, Outcome};
use crate::recorder::Recorder;
use crate::support::wait;

/// Topics; the second is the one that an nsqd refuses.
pub(crate) const TOPICS: [&str; 2] = ["chaos-plain", "chaos-refused"];
/// The longest delay of what is to be delivered within a phase.
pub(crate) const DELAY_MS_MAX: u64 = 6_000;
/// Delays that do not end within a run.
const FAR_MS: u64 = 3 * 3_600_000;
const PAUSED: Duration = Duration::from_millis(20);
const RECONNECT_PAUSE: Duration = Duration::from_millis(120);

/// What all producers share.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) recorder: Arc<Recorder>,
    /// The doors of each instance: TCP, HTTP.
    pub(crate) doors: Vec<(String, String)>,
    pub(crate) numbers: AtomicU64,
    /// Messages under an instance's own load are bounded by this pace: a pause after each request.
    pub(crate) pace: Duration,
    pub(crate) paused: AtomicBool,
    pub(crate) stop: AtomicBool,
    /// Producers that are between two requests, or waiting.
    pub(crate) resting: AtomicUsize,
}

/// Who produces.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Tcp,
    Http,
    Json,
    Racer,
}

/// One producer.
#[derive(Debug)]
pub(crate) struct Producer<'a> {
    field: &'a Field,
    kind: Kind,
    number: usize,
    instance: usize,
    random: Rng,
}

/// What a request came to, to be written down.
struct Came {
    op: Asked,
    ids: Vec<Number>,
    topic: &'static str,
    delay_ms: u64,
    t_start: u64,
    outcome: Outcome,
    words: String,
}

impl Field {
    /// A new message's number; text can go through every door.
    fn next(&self, text: bool) -> Number {
        2 * self.numbers.fetch_add(1, Ordering::SeqCst) + u64::from(!text)
    }
}

impl<'a> Producer<'a> {
    /// The `number`th producer; what it does follows from `seed`.
    pub(crate) fn new(field: &'a Field, kind: Kind, number: usize, seed: u64) -> Self {
        let seed = seed.wrapping_mul(0x9e37_79b9).wrapping_add(number as u64);
        Self {
            field,
            kind,
            number,
            instance: number % field.doors.len(),
            random: Rng::with_seed(seed),
        }
    }

    /// Produces until told to stop.
    pub(crate) fn run(mut self) {
        match self.kind {
            Kind::Tcp => self.run_tcp(),
            Kind::Http | Kind::Json => self.run_http(),
            Kind::Racer => self.run_racer(),
        }
    }

    /// Rests between two requests; `false`: the end.
    fn rest(&mut self) -> bool {
        self.field.resting.fetch_add(1, Ordering::SeqCst);
        let jitter = self.random.u32(50..150);
        wait::pause(self.field.pace * jitter / 100);
        while self.field.paused.load(Ordering::SeqCst) && !self.stopped() {
            wait::pause(PAUSED);
        }
        self.field.resting.fetch_sub(1, Ordering::SeqCst);
        !self.stopped()
    }

    fn stopped(&self) -> bool {
        self.field.stop.load(Ordering::SeqCst)
    }

    /// Goes to the next instance.
    fn move_on(&mut self) {
        self.instance = (self.instance + 1) % self.field.doors.len();
        wait::pause(RECONNECT_PAUSE);
    }

    fn topic(&mut self) -> &'static str {
        TOPICS[usize::from(self.random.u32(0..8) == 0)]
    }

    fn delay_ms(&mut self) -> u64 {
        match self.random.u32(0..100) {
            0..65 => self.random.u64(0..1_500),
            65..92 => self.random.u64(1_500..4_000),
            _ => self.random.u64(4_000..DELAY_MS_MAX),
        }
    }

    fn now(&self) -> u64 {
        self.field.recorder.now()
    }

    fn record(&self, came: Vec<Came>) {
        let t_end = self.now();
        let door = match self.kind {
            Kind::Tcp => "tcp",
            Kind::Http => "http",
            Kind::Json | Kind::Racer => "json",
        };
        let events = came.into_iter().map(|came| {
            Event::Op(Op {
                asked: came.op,
                ids: came.ids,
                topic: came.topic.to_owned(),
                delay_ms: came.delay_ms,
                t_start: came.t_start,
                t_end,
                outcome: came.outcome,
                door,
                instance: self.instance,
                connection: self.number,
                words: came.words,
            })
        });
        let events: Vec<Event> = events.collect();
        self.field.recorder.add_all(&events);
    }
}
