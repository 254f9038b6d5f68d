//! PURE. Which fault befalls whom, when, and for how long: all of it follows from a seed, and is printed whole
//! before a run begins. Three lanes go on side by side, each a fault at a time: what befalls Redis, what befalls
//! the instances and their way to Redis, what befalls the nsqds and the way there.

use std::fmt;

use fastrand::Rng;

/// Lanes of faults that overlap with each other and not with themselves.
pub(crate) const LANES: usize = 3;
/// Faults go on for about this long in a long run, ms; a short run has all kinds in two phases.
const FAULTS_MS: u64 = 30_000;
/// Faults and healing of a long run together, ms.
const SLOT_MS: u64 = 60_000;
/// Calm before the first fault, ms.
pub(crate) const WARM_UP_MS: u64 = 3_000;
/// What reading everything back takes at the end, ms.
const READ_BACK_MS: u64 = 7_000;
/// Shortest gap between two faults of a lane, and how much longer it may be, ms.
const GAP_MS: (u64, u64) = (300, 1_400);

macro_rules! kinds {
    ($($lane:literal $kind:ident $name:literal $least:literal..=$most:literal;)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind { $($kind,)* }

        /// All kinds.
        pub(crate) const KINDS: &[Kind] = &[$(Kind::$kind,)*];

        impl Kind {
            /// What a report calls it.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            fn lane(self) -> usize {
                match self { $(Self::$kind => $lane,)* }
            }

            /// How long it lasts, ms: at least and at most.
            fn lasts_ms(self) -> (u64, u64) {
                match self { $(Self::$kind => ($least, $most),)* }
            }
        }
    };
}

kinds! {
    0 RedisTerm "redis: SIGTERM" 200..=1_500;
    0 RedisKillAlways "redis: kill -9, appendfsync always" 200..=1_500;
    0 RedisKillEverysec "redis: kill -9, appendfsync everysec" 200..=1_500;
    0 RedisStop "redis: SIGSTOP" 3_200..=4_500;
    0 RedisTornTail "redis: kill -9, torn end of the append-only file" 200..=1_000;
    0 RedisFull "redis: maxmemory reached" 1_500..=3_000;
    0 DiskFull "redis: disk full" 1_000..=2_500;
    0 ScriptFlush "redis: SCRIPT FLUSH" 100..=300;
    0 ClientPause "redis: CLIENT PAUSE" 500..=3_500;
    0 DebugSleep "redis: DEBUG SLEEP" 500..=3_500;
    0 MaxClients "redis: maxclients reached" 1_000..=2_500;
    1 InstanceKill "instance: kill -9" 100..=1_500;
    1 InstanceStop "instance: SIGSTOP beyond its claims, SIGCONT" 6_500..=7_500;
    1 InstanceTerm "instance: SIGTERM" 100..=1_000;
    1 InstancesKill "instances: kill -9 of all" 100..=1_000;
    1 RedisCut "way to redis: cut" 200..=400;
    1 RedisReset "way to redis: reset" 200..=400;
    1 RedisDelay "way to redis: delay" 1_000..=3_000;
    1 RedisHoldRequests "way to redis: requests do not arrive" 3_200..=4_500;
    1 RedisHoldAnswers "way to redis: answers do not arrive" 3_200..=4_500;
    1 RedisSwallow "way to redis: cut between write and answer" 1_000..=2_000;
    2 NsqdKill "nsqd: kill -9" 200..=1_500;
    2 NsqdTerm "nsqd: SIGTERM" 200..=1_500;
    2 NsqdStop "nsqd: SIGSTOP" 2_200..=3_500;
    2 NsqdSmall "nsqd: smaller --max-msg-size" 2_000..=3_000;
    2 NsqdsKill "nsqds: kill -9 of all" 500..=2_500;
    2 NsqdCut "way to nsqd: cut" 200..=400;
    2 NsqdReset "way to nsqd: reset" 200..=400;
    2 NsqdDelay "way to nsqd: delay" 1_000..=2_500;
    2 NsqdHoldRequests "way to nsqd: requests do not arrive" 2_200..=3_500;
    2 NsqdHoldAnswers "way to nsqd: answers do not arrive" 2_200..=3_500;
    2 NsqdSwallow "way to nsqd: cut between MPUB and OK" 1_000..=2_000;
    2 NsqdRefuses "nsqd: refuses with E_MPUB_FAILED" 1_000..=2_500;
    2 NsqdBadTopic "nsqds: refuse a topic with E_BAD_TOPIC" 1_500..=2_500;
}

/// One fault to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// After the fault before it in its lane was repaired.
    pub(crate) gap_ms: u64,
    pub(crate) kind: Kind,
    /// Which instance, or which nsqd.
    pub(crate) target: usize,
    pub(crate) lasts_ms: u64,
    /// For whatever else the fault has to choose.
    pub(crate) seed: u64,
}

/// Faults, then healing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cycle {
    pub(crate) lanes: [Vec<Step>; LANES],
    /// The next one begins this long after this one at the earliest.
    pub(crate) slot_ms: u64,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) minutes: u64,
    pub(crate) cycles: Vec<Cycle>,
}

impl Schedule {
    /// The schedule of a seed. Up to three minutes have two phases, which together have every kind; a longer
    /// run has a phase a minute, each kind as often as any other.
    pub(crate) fn new(seed: u64, minutes: u64, instances: usize, nsqds: usize) -> Self {
        let mut random = Rng::with_seed(seed);
        let total_ms = minutes.max(1) * 60_000 - WARM_UP_MS - READ_BACK_MS;
        let (count, slot_ms) = if minutes <= 3 {
            (2, total_ms / 2)
        } else {
            (total_ms / SLOT_MS, SLOT_MS)
        };
        let mut bags: [Vec<Kind>; LANES] = Default::default();
        let mut cycles = Vec::new();
        for number in 0..count {
            let lanes = std::array::from_fn(|lane| {
                let bag = &mut bags[lane];
                let all = KINDS.iter().filter(|kind| kind.lane() == lane).count();
                let mut steps: Vec<Step> = Vec::new();
                let mut used_ms = 0;
                loop {
                    let done = if count == 2 {
                        // The first half of the kinds, then the rest.
                        steps.len()
                            >= if number == 0 {
                                all.div_ceil(2)
                            } else {
                                all / 2
                            }
                    } else {
                        used_ms >= FAULTS_MS
                    };
                    if done {
                        break steps;
                    }
                    if bag.is_empty() {
                        bag.extend(KINDS.iter().filter(|kind| kind.lane() == lane));
                        random.shuffle(bag);
                    }
                    let kind = bag.pop().unwrap();
                    let targets = if lane == 2 { nsqds } else { instances };
                    let (least, most) = kind.lasts_ms();
                    let step = Step {
                        gap_ms: GAP_MS.0 + random.u64(0..=GAP_MS.1),
                        kind,
                        target: random.usize(0..targets),
                        lasts_ms: random.u64(least..=most),
                        seed: random.u64(..),
                    };
                    used_ms += step.gap_ms + step.lasts_ms;
                    steps.push(step);
                }
            });
            cycles.push(Cycle { lanes, slot_ms });
        }
        Self {
            seed,
            minutes,
            cycles,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} minutes", self.seed, self.minutes)?;
        for (number, cycle) in self.cycles.iter().enumerate() {
            writeln!(f, "phase {number}, every {} s:", cycle.slot_ms / 1_000)?;
            for (lane, steps) in cycle.lanes.iter().enumerate() {
                let mut at_ms = 0;
                for step in steps {
                    at_ms += step.gap_ms;
                    let (kind, target) = (step.kind.name(), step.target);
                    let (at, lasts) = (at_ms as f64 / 1e3, step.lasts_ms as f64 / 1e3);
                    writeln!(
                        f,
                        "  lane {lane} +{at:5.1} s {kind} [{target}] for {lasts:.1} s"
                    )?;
                    at_ms += step.lasts_ms;
                }
            }
        }
        Ok(())
    }
}

#[test]
fn a_seed_makes_one_schedule() {
    let of = |seed| Schedule::new(seed, 10, 3, 2);
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn a_short_run_has_every_kind_in_two_phases() {
    for seed in 0..50 {
        let schedule = Schedule::new(seed, 2, 3, 2);
        assert_eq!(schedule.cycles.len(), 2);
        let steps = schedule
            .cycles
            .iter()
            .flat_map(|c| c.lanes.iter().flatten());
        let mut kinds: Vec<Kind> = steps.map(|step| step.kind).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, KINDS, "seed {seed}");
        for lane in schedule.cycles.iter().flat_map(|cycle| &cycle.lanes) {
            let lasts: u64 = lane.iter().map(|step| step.gap_ms + step.lasts_ms).sum();
            assert!(lasts < 40_000, "seed {seed}: a lane of {lasts} ms");
        }
    }
}
