//! One seed: instances, clients, a plan of faults, healing, and the judgement.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nsqdelayd::dispatch::{Config, Dispatcher, Metrics};
use nsqdelayd::id::MessageId;
use nsqdelayd::message::{ClientId, Delay, Due, Message, TopicName};
use nsqdelayd::store::{ErrorKind, ScheduleStore as _};
use nsqdelayd::timer::{Clock, Timers};
use prometheus_client::registry::Registry;
use tokio::time::{advance, sleep};
use tokio_util::sync::CancellationToken;

use crate::check::{owed, replay};
use crate::model::{Bug, Link, ModelStore, Server, Settings};
use crate::world::{Event, ModelForward, What, World, clock, start_clock};

const INSTANCES: usize = 3;
const CLIENTS: usize = 4;
/// How long clients and faults are at it, in virtual seconds.
const ACTIVE_S: u64 = 20;
/// A topic that is paused now and then.
const PAUSED: &str = "sometimes";
/// How long a step of the clock is held.
const HOLD: Duration = Duration::from_secs(10);
/// How long everything may take to arrive after the last fault: beyond a sweep.
const HEAL_S: u64 = 150;

/// What came of a seed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) broken: Vec<String>,
    pub(crate) history: Vec<Event>,
    pub(crate) events: u64,
    pub(crate) hits: u64,
    pub(crate) delivered: usize,
}

pub(crate) fn settings(seed: u64, bug: Option<Bug>) -> Settings {
    Settings {
        shards: 4,
        pack_window_ms: 1_000,
        pack_bytes: 4_000,
        claim_ttl: Duration::from_secs(5),
        instance_ttl_ms: 5_000,
        dedupe_window_ms: 60_000,
        dead_letters_max: 1_000,
        tidies: !seed.is_multiple_of(3),
        bug,
    }
}

/// Whether the steps of this seed's clock are transients: they end before their hold does.
fn is_transient(seed: u64) -> bool {
    seed % 8 == 5
}

pub(crate) fn dispatch_config(hold: Duration) -> Config {
    Config {
        pollers: 8,
        claim_ttl: Duration::from_secs(5),
        heartbeat: Duration::from_millis(1_500),
        read_ahead: Duration::from_millis(50),
        sweep: Duration::from_mins(1),
        sending_bytes_max: 4_000,
        forward_rate_max: 0,
        nsqd_rate_max: 0,
        expire_if_later_than: Duration::ZERO,
        clock_step_hold: hold,
        open_bytes_max: 4_000,
        unsettled_max: 12,
        batch_messages_max: 5,
        park_after: Duration::from_secs(2),
        retry_min: Duration::from_millis(50),
        retry_max: Duration::from_secs(2),
    }
}

/// One running instance.
struct Instance {
    link: Arc<Link>,
    drain: CancellationToken,
}

struct Run {
    world: Arc<World>,
    server: Arc<Server>,
    instances: Vec<Instance>,
    links: u64,
    /// The clock has run ahead for a while.
    ran_ahead: bool,
    /// How long hand-out is held when the clock has stepped forward.
    hold: Duration,
    /// Ids by message number, of those that were taken.
    known: Arc<Mutex<Vec<(usize, MessageId)>>>,
    next: Arc<Mutex<usize>>,
}

impl Run {
    fn new(seed: u64, bug: Option<Bug>, hold: Duration) -> Self {
        let world = World::new(seed, bug);
        let time = Arc::clone(&world);
        Self {
            server: Server::new(settings(seed, bug), Arc::new(move || time.time_us())),
            world,
            instances: Vec::new(),
            links: 0,
            ran_ahead: false,
            hold,
            known: Arc::default(),
            next: Arc::default(),
        }
    }

    fn store(&mut self) -> Arc<ModelStore> {
        self.links += 1;
        let wire = Arc::clone(&self.world);
        let link = Link::new(self.links, wire, clock, &self.world.tracker);
        ModelStore::new(Arc::clone(&self.server), link)
    }

    fn start_instance(&mut self) -> Instance {
        let store = self.store();
        let (link, drain) = (Arc::clone(&store.link), CancellationToken::new());
        let world = Arc::clone(&self.world);
        let forward = Arc::new(ModelForward {
            world,
            link: Arc::clone(&link),
        });
        let metrics = Metrics::register(&mut Registry::default());
        let tracker = &self.world.tracker;
        let config = dispatch_config(self.hold);
        let task = Dispatcher::start(
            config,
            store,
            forward,
            metrics,
            Clock {
                now: clock,
                timers: Timers::Runtime,
            },
            tracker,
            drain.clone(),
        );
        drop(task);
        Instance { link, drain }
    }

    /// Until some fault has hit, waits a moment for something to hit.
    async fn wait_for_flight(&self) {
        for _ in 0..1_000 {
            let hit = self.world.hits.load(Ordering::Relaxed) > 0;
            if hit || self.world.in_flight.load(Ordering::Relaxed) > 0 {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// One fault, by the plan's dice.
    async fn fault(&mut self) {
        let world = Arc::clone(&self.world);
        let at = usize::try_from(world.below(INSTANCES as u64)).unwrap();
        if world.transient.load(Ordering::Relaxed) && !self.ran_ahead {
            // An instance that started meanwhile could not know: none does. And once only: who sees
            // nothing in between, being frozen, takes two for one that stays.
            self.ran_ahead = true;
            let size = [3_600_000, 5_000][usize::try_from(world.below(2)).unwrap()];
            world.fault(format!("clock runs ahead by {size} ms for a while"));
            world.step_ms(size);
            sleep(Duration::from_millis(world.below(9_000))).await;
            world.step_ms(-size);
            return;
        }
        let kind = if world.transient.load(Ordering::Relaxed) {
            [3, 6][usize::try_from(world.below(2)).unwrap()]
        } else {
            world.below(10)
        };
        match kind {
            0..3 => {
                world.fault(format!("crash of {at}"));
                self.instances[at].link.crash();
                sleep(Duration::from_millis(world.below(3_000))).await;
                self.instances[at] = self.start_instance();
            }
            3..5 => {
                let length = Duration::from_millis(world.below(12_000));
                world.fault(format!("{at} freezes for {length:?}"));
                self.instances[at].link.freeze(length);
            }
            5 => {
                world.fault(format!("drain of {at}"));
                self.instances[at].drain.cancel();
                self.instances[at] = self.start_instance();
            }
            6..8 => {
                world.fault("nsqd goes away".to_owned());
                world.up.store(false, Ordering::Relaxed);
                sleep(Duration::from_millis(world.below(4_000))).await;
                world.up.store(true, Ordering::Relaxed);
            }
            _ => {
                let sizes = [-3_600_000, 3_600_000, -5_000, 5_000, -40, 40];
                let size = sizes[usize::try_from(world.below(6)).unwrap()];
                world.fault(format!("clock steps by {size} ms"));
                world.step_ms(size);
                if world.below(2) == 0 {
                    sleep(Duration::from_millis(world.below(4_000))).await;
                    world.step_ms(-size);
                }
            }
        }
    }

    /// Which messages lie among the dead letters.
    fn dead(&self) -> BTreeSet<usize> {
        let contents = self.server.contents();
        let letters = contents.shards.iter().flat_map(|keys| keys.dead.values());
        letters
            .map(|d| str::from_utf8(&d.record.body).unwrap().parse().unwrap())
            .collect()
    }

    async fn play(&mut self, seed: u64) -> Outcome {
        let calm = seed.is_multiple_of(8);
        let transient = is_transient(seed);
        self.world.transient.store(transient, Ordering::Relaxed);
        for _ in 0..INSTANCES {
            let instance = self.start_instance();
            self.instances.push(instance);
        }
        // Who first sees the clock while it runs ahead cannot know.
        while transient && !self.instances.iter().all(|i| i.link.knows_time()) {
            sleep(Duration::from_millis(1)).await;
        }
        self.world.faults_on.store(!calm, Ordering::Relaxed);
        for _ in 0..CLIENTS {
            let client = Client {
                store: self.store(),
                world: Arc::clone(&self.world),
                known: Arc::clone(&self.known),
                next: Arc::clone(&self.next),
            };
            self.world.tracker.spawn(client.run());
        }
        while clock() < Duration::from_secs(ACTIVE_S) {
            let pause = Duration::from_millis(300 + self.world.below(2_500));
            sleep(pause).await;
            if !calm {
                self.wait_for_flight().await;
                self.fault().await;
            }
        }
        // What no seed may lack: a fault while something is on its way.
        while !calm && self.world.hits.load(Ordering::Relaxed) == 0 && clock().as_secs() < 200 {
            sleep(Duration::from_millis(50)).await;
            if self.world.in_flight.load(Ordering::Relaxed) > 0 {
                self.fault().await;
            }
        }
        self.world.faults_on.store(false, Ordering::Relaxed);
        if transient {
            // What was stamped by the clock that ran ahead is due an hour later.
            self.world.transient.store(false, Ordering::Relaxed);
            self.world.step_ms(3_700_000);
        }
        self.world.heal_clock();
        let healed = clock();
        loop {
            sleep(Duration::from_millis(500)).await;
            // Again and again: a late request may have paused it anew.
            self.server.contents().paused.clear();
            let settled = clock() > healed + Duration::from_secs(18);
            if !settled {
                continue;
            }
            let (fates, broken) = replay(&self.world.history.lock().unwrap(), calm);
            let late = clock() > healed + Duration::from_secs(HEAL_S);
            let owed = owed(&fates, &self.dead());
            if !broken.is_empty() || late || owed.is_empty() {
                return self.outcome(broken, if late { &owed } else { &[] });
            }
        }
    }

    /// What the shards hold, for a trace.
    fn state(&self) -> String {
        let contents = self.server.contents();
        let mut text = format!(
            "now {} members {:?}\n",
            self.world.time_us(),
            contents.members
        );
        for keys in &contents.shards {
            let records = keys.due.values().flatten().flat_map(|pack| &pack.records);
            let dues: Vec<_> = records.map(|r| (r.due.0, r.body.clone())).collect();
            let line = format!(
                "H {} S {} opened {} below {} claim {:?} {dues:?}\n",
                keys.handed, keys.settled, keys.opened, keys.below, keys.claim
            );
            text.push_str(&line);
        }
        text
    }

    fn outcome(&self, mut broken: Vec<String>, owed: &[usize]) -> Outcome {
        if !owed.is_empty() {
            broken.push(self.state());
        }
        broken.extend(
            owed.iter()
                .map(|number| format!("message {number} was lost")),
        );
        for keys in &self.server.contents().shards {
            let there = keys.recount();
            if keys.pending != there {
                broken.push(format!("counted {:?} of {there:?}", keys.pending));
            }
        }
        let history = self.world.history.lock().unwrap().clone();
        let delivered = |event: &&Event| matches!(event.what, What::Delivered { .. });
        Outcome {
            broken,
            events: self.server.contents().steps + history.len() as u64,
            hits: self.world.hits.load(Ordering::Relaxed),
            delivered: history.iter().filter(delivered).count(),
            history,
        }
    }
}

/// One client of the doors.
struct Client {
    store: Arc<ModelStore>,
    world: Arc<World>,
    known: Arc<Mutex<Vec<(usize, MessageId)>>>,
    next: Arc<Mutex<usize>>,
}

impl Client {
    async fn run(self) {
        while clock() < Duration::from_secs(ACTIVE_S) {
            sleep(Duration::from_millis(self.world.below(400))).await;
            // The clocks of the parts are not in step to the ms.
            advance(Duration::from_micros(self.world.below(1_000))).await;
            match self.world.below(20) {
                0..11 => self.send().await,
                11..15 => self.cancel().await,
                15..17 => self.shift().await,
                17 => self.pause().await,
                _ => self.dead().await,
            }
        }
    }

    async fn send(&self) {
        let world = &self.world;
        let count = if world.below(3) == 0 {
            1 + world.below(8)
        } else {
            1
        };
        let spans = [1, 60, 400, 3_000, 15_000];
        let span = spans[usize::try_from(world.below(5)).unwrap()];
        let (mut numbers, mut messages) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let number = {
                let mut next = self.next.lock().unwrap();
                *next += 1;
                *next - 1
            };
            let delay_ms = world.below(span);
            let topic = match world.below(25) {
                0 => "bad",
                1..7 => PAUSED,
                _ => "good",
            };
            let id = (count == 1 && world.below(3) == 0).then(|| format!("id-{number}"));
            messages.push(Message {
                topic: TopicName::parse(topic.as_bytes()).unwrap(),
                body: Bytes::from(number.to_string()),
                due: Due::After(Delay(delay_ms)),
                id: id.map(|id| ClientId::parse(id.as_bytes()).unwrap()),
            });
            world.record(What::Sent {
                message: number,
                delay_ms,
            });
            numbers.push(number);
        }
        match self.store.schedule(messages).await {
            Ok(receipts) => {
                for (message, receipt) in numbers.into_iter().zip(receipts) {
                    world.record(What::Taken {
                        message,
                        due: receipt.due.0,
                    });
                    self.known.lock().unwrap().push((message, receipt.id));
                }
            }
            Err(error) if error.kind == ErrorKind::Unknown => {}
            Err(_) => {
                for message in numbers {
                    world.record(What::Refused { message });
                }
            }
        }
    }

    /// A message that nobody else is busy with; mostly a recent one.
    fn take(&self) -> Option<(usize, MessageId)> {
        let mut known = self.known.lock().unwrap();
        let recent = known.len().min(12) as u64;
        if recent == 0 {
            return None;
        }
        let back = usize::try_from(1 + self.world.below(recent)).unwrap();
        let at = known.len() - back;
        Some(known.remove(at))
    }

    async fn cancel(&self) {
        let Some((message, id)) = self.take() else {
            return;
        };
        self.world.record(What::CancelAsked { message });
        let answer = self
            .store
            .cancel(vec![id.clone()])
            .await
            .ok()
            .map(|answers| answers[0]);
        self.world.record(What::Cancel { message, answer });
    }

    async fn shift(&self) {
        let Some((message, id)) = self.take() else {
            return;
        };
        self.world.record(What::MoveAsked { message });
        let span = if self.world.below(3) == 0 { 1 } else { 4_000 };
        let due = Due::After(Delay(self.world.below(span)));
        let answer = self.store.reschedule(id.clone(), due).await.ok();
        self.world.record(What::Moved { message, answer });
        self.known.lock().unwrap().push((message, id));
    }

    /// Pauses a topic, or resumes it.
    async fn pause(&self) {
        let topic = TopicName::parse(PAUSED.as_bytes()).unwrap();
        let paused = self.world.below(2) == 0;
        let answer = self.store.set_paused(topic, paused).await;
        drop(answer);
    }

    /// Gives a dead letter back, or drops it.
    async fn dead(&self) {
        let Ok(page) = self.store.dead_letters(None, 10_000).await else {
            return;
        };
        let Some(letter) = page.messages.into_iter().next() else {
            return;
        };
        let message = str::from_utf8(&letter.body).unwrap().parse().unwrap();
        if self.world.below(2) == 0 {
            let answer = self.store.requeue(letter.id).await;
            // It is due now, whatever it was.
            self.world.record(What::MoveAsked { message });
            drop(answer);
        } else {
            self.world.record(What::DropAsked { message });
            let answer = self.store.drop_dead(letter.id).await;
            drop(answer);
        }
    }
}

/// Plays one seed.
pub(crate) fn play(seed: u64, bug: Option<Bug>) -> Outcome {
    play_holding(seed, bug, HOLD)
}

/// The same; a step of the clock is held for so long.
pub(crate) fn play_holding(seed: u64, bug: Option<Bug>, hold: Duration) -> Outcome {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        start_clock();
        Run::new(seed, bug, hold).play(seed).await
    })
}
