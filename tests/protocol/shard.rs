//! One shard: Redis, its replica, the instances, nsqd and the clients, and every step that any of
//! them can take. Also the promises, checked after each step.

use crate::owner::{Instance, Status};
use crate::plan::{END, FAULTS, Fault, MESSAGES, PACKS, PER_MS, Plan, RECORDS, Role};
use crate::redis::{NO_ENTRY, Redis, Turn, pack_of};
use crate::rules::{Off, Rule};
use crate::search::Model;
use crate::step::Step;

/// A plan and what is left out of the protocol.
#[derive(Clone, Copy)]
pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) off: Off,
}

/// What a client knows of its insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Insert {
    /// Not sent yet.
    Idle,
    /// Sent; no reply came, and only the identical request may follow.
    Unanswered,
    /// The client has its OK.
    Acknowledged,
    /// The client was told that nothing was stored.
    Refused,
    /// The client was told that nobody knows.
    Unknown,
}

/// A request whose connection is gone, and which still arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Late {
    /// Whose: as in `Redis::claim`; 4: of a session that is forgotten and holds nothing.
    pub(crate) token: u8,
    pub(crate) turn: Option<Turn>,
    /// Behind the turn, a park of this place; only where a park may be sent behind a turn.
    pub(crate) park: Option<u8>,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) now: u8,
    /// The latest that Redis's clock ever said.
    pub(crate) now_max: u8,
    pub(crate) redis: Redis,
    pub(crate) replica: Redis,
    pub(crate) instances: [Instance; 2],
    pub(crate) late: Option<Late>,
    /// The score that each pack was given, 0 before.
    pub(crate) stamps: [u8; PACKS],
    pub(crate) inserts: [Insert; PACKS],
    /// Inserts that still arrive, a bit a pack.
    pub(crate) inserts_late: u8,
    /// Records that were sent to nsqd, and may still arrive, a bit a place.
    pub(crate) limbo: u16,
    /// What is promised and what has happened: messages, a bit each...
    pub(crate) acknowledged: u8,
    pub(crate) cancelled: u8,
    /// ...packs...
    pub(crate) refused: u8,
    /// ...and places.
    pub(crate) moved: u16,
    pub(crate) delivered: u16,
    pub(crate) faults: [u8; FAULTS],
    pub(crate) broken: u8,
}

const PROMISES: [&str; 10] = [
    "",
    "an acknowledged message is gone",
    "delivered before its due time",
    "delivered, though its cancel had succeeded",
    "delivered at the old time, though its move had succeeded",
    "cancelled with success, though it was delivered",
    "moved with success, though it was delivered",
    "delivered, though its insert was refused",
    "delivered twice without a fault",
    "everybody sleeps while a message comes due",
];

pub(crate) type Steps = Vec<(Step, State)>;

impl World<'_> {
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.off.keeps(rule)
    }

    /// The message of a record.
    pub(crate) fn message(&self, place: usize) -> usize {
        usize::from(self.plan.packs[pack_of(place)].records[place % RECORDS].0)
    }

    /// When a record is due; 0 if there is none.
    pub(crate) fn due(&self, stamps: [u8; PACKS], place: usize) -> u8 {
        let pack = pack_of(place);
        match self
            .plan
            .packs
            .get(pack)
            .and_then(|plan| plan.records.get(place % RECORDS))
        {
            Some((_, after)) if stamps[pack] != 0 => stamps[pack] / PER_MS + after,
            _ => 0,
        }
    }

    /// The places of records that are due after `after` and not after `to`.
    pub(crate) fn due_in(&self, stamps: [u8; PACKS], after: u8, to: u8) -> u16 {
        (0..PACKS * RECORDS)
            .filter(|place| (after + 1..=to).contains(&self.due(stamps, *place)))
            .fold(0, |places, place| places | 1 << place)
    }

    pub(crate) fn packs(&self, role: Role) -> impl Iterator<Item = usize> {
        let packs = self.plan.packs;
        (0..packs.len()).filter(move |pack| packs[*pack].role == role)
    }

    fn start(&self) -> State {
        let mut faults = [0; FAULTS];
        for (fault, times) in self.plan.faults {
            faults[*fault as usize] = *times;
        }
        State {
            now: 1,
            now_max: 1,
            redis: Redis::default(),
            replica: Redis::default(),
            instances: [Instance::new(1); 2],
            late: None,
            stamps: [0; PACKS],
            inserts: [Insert::Idle; PACKS],
            inserts_late: 0,
            limbo: 0,
            acknowledged: 0,
            refused: 0,
            cancelled: 0,
            moved: 0,
            delivered: 0,
            faults,
            broken: 0,
        }
    }

    pub(crate) fn was_delivered(&self, state: &State, message: usize) -> bool {
        (0..self.plan.packs.len() * RECORDS)
            .filter(|place| state.delivered & (1 << place) != 0)
            .any(|place| self.message(place) == message)
    }

    /// nsqd has the message.
    pub(crate) fn deliver(&self, state: &mut State, place: usize) {
        let message = self.message(place);
        let twice = self.plan.once && self.was_delivered(state, message);
        state.delivered |= 1 << place;
        state.broken = if self.due(state.stamps, place) > state.now_max {
            2
        } else if state.cancelled & (1 << message) != 0 {
            3
        } else if state.moved & (1 << place) != 0 {
            4
        } else if state.refused & (1 << pack_of(place)) != 0 {
            7
        } else if twice {
            8
        } else {
            0
        };
    }

    /// Whether some owner would still read the message, and not skip it.
    pub(crate) fn reachable(&self, state: &State, message: usize) -> bool {
        (0..self.plan.packs.len() * RECORDS).any(|place| {
            state.redis.live & (1 << place) != 0
                && self.message(place) == message
                && !state.redis.marked(self, state.stamps, place)
                && self.due(state.stamps, place) > state.redis.settled
        })
    }

    /// Whether a message comes due before its only possible owner wakes.
    fn slept_through(&self, state: &State) -> bool {
        let until = state.instances[0].sleeps_until(&state.redis);
        (0..PACKS * RECORDS).any(|place| {
            state.redis.live & !state.redis.marks & (1 << place) != 0
                && self.due(state.stamps, place) < until
        })
    }

    /// The first promise that the state itself breaks: what was acknowledged must lie somewhere from
    /// where it can still be delivered.
    fn gone(&self, state: &State) -> bool {
        (0..MESSAGES)
            .filter(|m| state.acknowledged & !state.cancelled & (1 << m) != 0)
            .any(|message| {
                let dead = state.redis.dead & (1 << message) != 0;
                !dead && !self.reachable(state, message) && !self.was_delivered(state, message)
            })
    }
}

/// The places that a mark without a nonce would mean.
pub(crate) fn alike(stamps: [u8; PACKS], place: usize) -> u16 {
    (0..PACKS * RECORDS)
        .filter(|other| other % RECORDS == place % RECORDS)
        .filter(|other| stamps[pack_of(*other)] == stamps[pack_of(place)])
        .fold(0, |places, other| places | 1 << other)
}

pub(crate) fn token(instance: usize) -> u8 {
    instance as u8 + 1
}

impl State {
    /// Whether the fault can still come; the state after, with one less.
    pub(crate) fn strike(&self, fault: Fault) -> Option<Self> {
        let mut after = *self;
        let left = &mut after.faults[fault as usize];
        *left = left.checked_sub(1)?;
        Some(after)
    }

    pub(crate) fn pass(&mut self, ms: u8) {
        self.now += ms;
        self.now_max = self.now_max.max(self.now);
        for instance in &mut self.instances {
            if instance.clock > 0 {
                instance.clock = (instance.clock + ms).min(END - 1);
            }
        }
    }

    /// The instance's memory and token go; a claim under that token belongs to nobody.
    pub(crate) fn forget(&mut self, instance: usize) {
        let token = token(instance);
        self.instances[instance] = Instance::new(self.instances[instance].clock);
        self.redis.below &= !(1 << instance);
        self.replica.below &= !(1 << instance);
        let held = self.redis.claim == token;
        if let Some(late) = &mut self.late {
            if late.token == token {
                late.token = if held { 3 } else { 4 };
            } else if late.token == 3 && held {
                late.token = 4;
            }
        }
        if held {
            self.redis.claim = 3;
        }
        if self.replica.claim == token {
            self.replica.claim = 3;
        }
    }
}

impl Model for World<'_> {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        self.start()
    }

    fn steps(&self, state: &State, out: &mut Steps) {
        self.insert_steps(state, out);
        for instance in 0..usize::from(self.plan.instances) {
            self.turn_steps(state, instance, out);
            self.publish_steps(state, instance, out);
        }
        self.cancel_steps(state, out);
        self.move_steps(state, out);
        self.requeue_steps(state, out);
        self.clock_steps(state, out);
        self.late_steps(state, out);
        self.fault_steps(state, out);
        if self.plan.ids_age {
            let mut after = *state;
            after.redis.trim(self, state.now);
            out.push((Step::Trim, after));
        }
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let code = match state.broken {
            0 if self.gone(state) => 1,
            0 if self.slept_through(state) => 9,
            code => code,
        };
        (code != 0).then(|| PROMISES[usize::from(code)])
    }

    /// Faults end, the other instance dies, nsqd answers: all that was acknowledged must arrive.
    fn heals(&self, state: &State) -> bool {
        (0..usize::from(self.plan.instances)).all(|instance| {
            let mut state = *state;
            state.forget(1 - instance);
            state.late = None;
            if state.redis.claim != token(instance) {
                state.redis.claim = 0;
            }
            state.pass(END - 3 - state.now.min(END - 3));
            for _ in 0..8 {
                self.heal(&mut state, instance);
            }
            (0..MESSAGES).all(|message| {
                state.acknowledged & !state.cancelled & (1 << message) == 0
                    || state.redis.dead & (1 << message) != 0
                    || self.was_delivered(&state, message)
            })
        })
    }

    fn mirrored(&self, state: &State) -> Option<State> {
        if self.plan.instances < 2 {
            return None;
        }
        let mut mirrored = *state;
        mirrored.instances.swap(0, 1);
        for redis in [&mut mirrored.redis, &mut mirrored.replica] {
            redis.claim = other(redis.claim);
            redis.below = (redis.below & 1) << 1 | redis.below >> 1;
        }
        if let Some(late) = &mut mirrored.late {
            late.token = other(late.token);
        }
        Some(mirrored)
    }
}

fn other(token: u8) -> u8 {
    match token {
        1 => 2,
        2 => 1,
        token => token,
    }
}

impl World<'_> {
    /// One turn of the only instance, and all that it may publish.
    fn heal(&self, state: &mut State, instance: usize) {
        let me = state.instances[instance];
        let turn = me
            .sent
            .unwrap_or_else(|| me.turn(self, state.stamps, false, false));
        state.instances[instance].sent = None;
        self.turn(state, instance, &turn);
        if let Some(owed) = state.instances[instance].owed.take() {
            let marks = state
                .redis
                .read_marks(self, state.stamps, owed.marks_after, owed.marks_to);
            state.instances[instance].learn(self, state.stamps, marks);
        }
        for place in 0..self.plan.packs.len() * RECORDS {
            let me = state.instances[instance];
            if me.may_publish(self, state.stamps, place) {
                self.deliver(state, place);
                state.instances[instance].set(place, Status::Done);
            }
            if matches!(me.status(place), Status::Refused | Status::SentRefused) {
                state.redis.bury(self, token(instance), place, false);
                state.instances[instance].set(place, Status::Done);
            }
            // Repeated, the park finds its mark.
            if me.status(place) == Status::Parking {
                state.instances[instance].set(place, Status::Done);
            }
        }
    }
}

const _: () = assert!(NO_ENTRY == 0 && PACKS * RECORDS <= 16);
