//! What a run shares: virtual time, the faults that befall requests, a model nsqd, the history.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nsqdelayd::forward::{Deadline, DueMessage, Error, Forward};
use nsqdelayd::store::{Cancel, Reschedule};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use crate::model::link::{Fate, Wire};
use crate::model::{Bug, Link, Request};

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Begins a run's clock.
pub(crate) fn start_clock() {
    START.set(Some(Instant::now()));
}

/// Virtual time since the run began.
pub(crate) fn clock() -> Duration {
    START.get().map_or(Duration::ZERO, |start| start.elapsed())
}

/// Redis's clock when a run begins, in µs.
const BASE_US: i64 = 1_800_000_000_000_000;

/// Something that happened, in the order of happening. Messages go by number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    Sent {
        message: usize,
        delay_ms: u64,
    },
    Taken {
        message: usize,
        due: u64,
    },
    Refused {
        message: usize,
    },
    CancelAsked {
        message: usize,
    },
    Cancel {
        message: usize,
        answer: Option<Cancel>,
    },
    MoveAsked {
        message: usize,
    },
    Moved {
        message: usize,
        answer: Option<Reschedule>,
    },
    DropAsked {
        message: usize,
    },
    Delivered {
        message: usize,
    },
    Fault(String),
}

/// An event, Redis's clock at it, and the latest that this clock has said so far.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) at_us: u64,
    pub(crate) latest_us: u64,
    pub(crate) what: What,
}

/// What a run shares.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Mutex<fastrand::Rng>,
    pub(crate) faults_on: AtomicBool,
    /// Faults that hit something in flight.
    pub(crate) hits: AtomicU64,
    /// Publishes under way.
    pub(crate) in_flight: AtomicI64,
    offset_us: AtomicI64,
    latest_us: AtomicU64,
    /// The clock's steps are transients that nobody may follow: it counts as if there were none.
    pub(crate) transient: AtomicBool,
    /// Whether nsqd is there. Polled: what wakes several at once does so in no fixed order.
    pub(crate) up: AtomicBool,
    pub(crate) history: Mutex<Vec<Event>>,
    pub(crate) tracker: TaskTracker,
    pub(crate) bug: Option<Bug>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Arc<Self> {
        Arc::new(Self {
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            faults_on: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            in_flight: AtomicI64::new(0),
            offset_us: AtomicI64::new(0),
            latest_us: AtomicU64::new(0),
            transient: AtomicBool::new(false),
            up: AtomicBool::new(true),
            history: Mutex::new(Vec::new()),
            tracker: TaskTracker::new(),
            bug,
        })
    }

    pub(crate) fn below(&self, end: u64) -> u64 {
        self.rng.lock().unwrap().u64(0..end.max(1))
    }

    /// Redis's clock.
    pub(crate) fn time_us(&self) -> u64 {
        let elapsed = i64::try_from(clock().as_micros()).unwrap();
        let now = BASE_US + elapsed + self.offset_us.load(Ordering::Relaxed);
        let now = u64::try_from(now).unwrap();
        let counts = if self.transient.load(Ordering::Relaxed) {
            u64::try_from(BASE_US + elapsed).unwrap()
        } else {
            now
        };
        self.latest_us.fetch_max(counts, Ordering::Relaxed);
        now
    }

    /// Redis's clock steps.
    pub(crate) fn step_ms(&self, change: i64) {
        self.time_us();
        self.offset_us.fetch_add(change * 1_000, Ordering::Relaxed);
        self.time_us();
    }

    /// The steps back are taken back.
    pub(crate) fn heal_clock(&self) {
        let (now, latest) = (self.time_us(), self.latest_us.load(Ordering::Relaxed));
        let back = i64::try_from(latest - now).unwrap();
        self.offset_us.fetch_add(back, Ordering::Relaxed);
    }

    pub(crate) fn record(&self, what: What) {
        let at_us = self.time_us();
        let latest_us = self.latest_us.load(Ordering::Relaxed);
        self.history.lock().unwrap().push(Event {
            at_us,
            latest_us,
            what,
        });
    }

    /// A fault: it counts as a hit when something is under way to nsqd.
    pub(crate) fn fault(&self, text: String) {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        self.record(What::Fault(text));
    }

    fn faulty(&self, percent: u64) -> bool {
        self.faults_on.load(Ordering::Relaxed) && self.below(100) < percent
    }
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Wire for World {
    fn fate(&self, request: Request) -> Fate {
        if self.faulty(2) {
            let fate = match self.below(4) {
                0 => Fate::ReplyLost {
                    out: ms(self.below(5)),
                },
                1 => Fate::Late {
                    after: ms(self.below(8_000)),
                },
                2 => Fate::Doubled {
                    again: ms(self.below(8_000)),
                },
                _ => Fate::Lost,
            };
            self.fault(format!("{request:?} {fate:?}"));
            return fate;
        }
        let slow = if self.faulty(2) { 1_500 } else { 3 };
        Fate::Answered {
            out: ms(self.below(slow)),
            back: ms(self.below(slow)),
        }
    }

    fn reconnect(&self) -> Duration {
        ms(self.below(400))
    }

    fn loses_wake(&self) -> bool {
        let lost = self.faulty(25);
        if lost {
            self.fault("wake lost".to_owned());
        }
        lost
    }
}

/// One instance's way to the model nsqd.
#[derive(Debug)]
pub(crate) struct ModelForward {
    pub(crate) world: Arc<World>,
    pub(crate) link: Arc<Link>,
}

impl ModelForward {
    /// What nsqd does with one MPUB.
    async fn mpub(
        &self,
        messages: Vec<usize>,
        refused: bool,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let world = &self.world;
        self.link.gate().await;
        if !world.up.load(Ordering::Relaxed) || deadline.passed() {
            sleep(ms(1)).await;
            return Err(Error::NotSent);
        }
        if world.faulty(2) {
            // Stopped between the look at the clock and the write.
            world.fault("frozen before a write".to_owned());
            self.link.freeze(ms(world.below(9_000)));
            self.link.gate().await;
        }
        let fate = if world.faulty(8) { world.below(4) } else { 9 };
        if fate < 4 {
            world.fault(format!("publish {messages:?}: fate {fate}"));
        }
        let out = ms(world.below(if fate == 3 { 7_000 } else { 8 }));
        if refused {
            sleep(out).await;
            self.link.gate().await;
            return Err(Error::Refused("E_BAD_TOPIC".to_owned()));
        }
        if fate == 0 {
            return Err(Error::NotSent);
        }
        let arrived = watch::Sender::new(None);
        let mut answer = arrived.subscribe();
        if fate != 1 {
            let world = Arc::clone(world);
            self.world.tracker.spawn(async move {
                sleep(out).await;
                let up = world.up.load(Ordering::Relaxed);
                if up {
                    for message in messages {
                        world.record(What::Delivered { message });
                    }
                }
                arrived.send_replace(Some(up));
            });
        }
        if world.bug == Some(Bug::SettleBeforeOk) {
            return Ok(());
        }
        let told = if fate == 1 || fate == 2 {
            sleep(ms(2_000)).await;
            None
        } else {
            let told = answer.wait_for(Option::is_some).await.map(|told| *told);
            sleep(ms(world.below(5))).await;
            told.unwrap()
        };
        self.link.gate().await;
        if told == Some(true) {
            Ok(())
        } else {
            Err(Error::Unknown)
        }
    }
}

/// The number of a message, from its body.
fn number(message: &DueMessage) -> usize {
    str::from_utf8(&message.body).unwrap().parse().unwrap()
}

impl Forward for ModelForward {
    fn publish(
        &self,
        messages: Vec<DueMessage>,
        deadline: Deadline,
    ) -> BoxFuture<'_, Vec<Result<(), Error>>> {
        Box::pin(async move {
            let mut topics: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for message in &messages {
                let topic = message.topic.as_str().to_owned();
                topics.entry(topic).or_default().push(number(message));
            }
            let mut facts = BTreeMap::new();
            let under_way = i64::try_from(messages.len()).unwrap();
            self.world.in_flight.fetch_add(under_way, Ordering::Relaxed);
            for (topic, numbers) in topics {
                let refused = topic.starts_with("bad");
                facts.insert(topic, self.mpub(numbers, refused, deadline).await);
            }
            self.world.in_flight.fetch_sub(under_way, Ordering::Relaxed);
            messages
                .iter()
                .map(|m| facts[m.topic.as_str()].clone())
                .collect()
        })
    }

    fn available(&self) -> bool {
        self.world.up.load(Ordering::Relaxed)
    }

    fn wait_available(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while !self.available() {
                sleep(ms(20)).await;
            }
        })
    }
}
