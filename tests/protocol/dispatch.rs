//! What owners do: turns, publishes, parks. What a turn asks for is the owner's (`owner.rs`), its
//! effect the script's (`redis.rs`); here the two meet.

use crate::owner::{Instance, Status};
use crate::plan::{Fault, RECORDS, Replicas, Role};
use crate::redis::{Held, Stored, Turn, pack_of};
use crate::rules::Rule;
use crate::shard::{Late, State, Steps, World, token};
use crate::step::Step;

impl World<'_> {
    pub(crate) fn turn_steps(&self, state: &State, instance: usize, out: &mut Steps) {
        let me = &state.instances[instance];
        if let Some(owed) = me.owed {
            let mut after = *state;
            let marks = after
                .redis
                .read_marks(self, state.stamps, owed.marks_after, owed.marks_to);
            let me = &mut after.instances[instance];
            me.learn(self, state.stamps, marks);
            me.owed = None;
            out.push((Step::MarksRead { instance }, after));
            return;
        }
        if let Some(turn) = me.sent {
            let mut after = *state;
            after.instances[instance].sent = None;
            let busy = !self.turn(&mut after, instance, &turn);
            let hold = turn.hand_out_to == 0;
            let release = turn.idle_until > 0;
            out.push((
                Step::Turn {
                    instance,
                    hold,
                    release,
                    busy,
                },
                after,
            ));
            return;
        }
        if state.now + self.plan.ahead < me.sleeps_until(&state.redis) {
            return;
        }
        for (hold, release) in [(false, false), (true, false), (false, true)] {
            if (hold && !self.plan.holds) || (release && !(self.plan.releases && me.idle())) {
                continue;
            }
            let turn = me.turn(self, state.stamps, hold, release);
            let mut after = *state;
            if self.plan.turns_take_time {
                after.instances[instance].sent = Some(turn);
                out.push((Step::TurnSent { instance }, after));
            } else {
                let busy = !self.turn(&mut after, instance, &turn);
                out.push((
                    Step::Turn {
                        instance,
                        hold,
                        release,
                        busy,
                    },
                    after,
                ));
            }
            if !hold && let Some(mut after) = state.strike(Fault::ReplyLost) {
                after
                    .redis
                    .turn(self, state.stamps, state.now, token(instance), &turn);
                self.connection_lost(&mut after, instance);
                out.push((Step::TurnReplyLost { instance }, after));
            }
            if !hold && state.late.is_none() {
                self.delayed(state, instance, turn, out);
            }
        }
    }

    /// A turn is sent, and the connection lost; perhaps with a park behind the turn.
    fn delayed(&self, state: &State, instance: usize, turn: Turn, out: &mut Steps) {
        let Some(struck) = state.strike(Fault::TurnLate) else {
            return;
        };
        let me = &state.instances[instance];
        let parks = (0..self.plan.packs.len() * RECORDS)
            .filter(|place| {
                !self.keeps(Rule::ParkSentAlone) && self.may_park(state, instance, *place)
            })
            .filter(|place| !me.maybe(self, state.stamps, state.redis.maybe, *place));
        for park in parks.map(Some).chain([None]) {
            let mut after = struck;
            let park = park.map(|place| place as u8);
            after.late = Some(Late {
                token: token(instance),
                turn: Some(turn),
                park,
            });
            self.connection_lost(&mut after, instance);
            out.push((
                Step::TurnDelayed {
                    instance,
                    park: park.is_some(),
                },
                after,
            ));
        }
    }

    /// A turn takes effect and is answered. `false`: busy.
    pub(crate) fn turn(&self, state: &mut State, instance: usize, turn: &Turn) -> bool {
        let before = state.redis;
        let held = state
            .redis
            .turn(self, state.stamps, state.now, token(instance), turn);
        state.instances[instance].clock = state.now;
        let Some(held) = held else {
            state.forget(instance);
            return false;
        };
        if held.taken && !turn.first && self.keeps(Rule::LapseForgets) {
            let released = state.redis.claim == 0;
            let clock = state.now;
            state.instances[instance] = Instance::new(clock);
            if released {
                state.forget(instance);
            }
            return true;
        }
        let raised = state.redis.handed > before.handed;
        let first = turn.first && self.keeps(Rule::FirstTurnWaits);
        let waits = self.plan.replicas == Replicas::Awaited && self.keeps(Rule::TurnWaits);
        if waits && (raised || first) {
            state.replica = state.redis;
        }
        let bit = 1 << instance;
        let below = state.redis.below & bit != 0;
        state.redis.below &= !bit;
        let clock = (state.now, state.redis.handed, state.redis.settled);
        let me = &mut state.instances[instance];
        if self.keeps(Rule::OneTransaction) {
            me.held(self, state.stamps, turn, &held, clock, below);
        } else {
            let packs_only = Held { marks: 0, ..held };
            me.held(self, state.stamps, turn, &packs_only, clock, below);
            me.owed = Some(*turn);
        }
        if turn.idle_until > 0 {
            let asleep_until = state.instances[instance].asleep_until;
            state.forget(instance);
            state.instances[instance].asleep_until = asleep_until;
        }
        true
    }

    pub(crate) fn connection_lost(&self, state: &mut State, instance: usize) {
        if self.keeps(Rule::ReconnectForgets) {
            state.forget(instance);
        }
    }

    pub(crate) fn publish_steps(&self, state: &State, instance: usize, out: &mut Steps) {
        for place in 0..self.plan.packs.len() * RECORDS {
            let me = &state.instances[instance];
            if me.may_publish(self, state.stamps, place) {
                let mut after = *state;
                self.deliver(&mut after, place);
                after.instances[instance].set(place, Status::Done);
                out.push((Step::Publish { instance, place }, after));
                if let Some(mut after) = state.strike(Fault::PublishUnknown) {
                    after.limbo |= 1 << place;
                    after.instances[instance].set(place, Status::Sent);
                    out.push((Step::PublishUnknown { instance, place }, after));
                }
                if let Some(mut after) = state.strike(Fault::PublishRefused) {
                    let sent = me.status(place) == Status::Sent;
                    let status = if sent {
                        Status::SentRefused
                    } else {
                        Status::Refused
                    };
                    after.instances[instance].set(place, status);
                    out.push((Step::PublishRefused { instance, place }, after));
                }
            }
            if matches!(me.status(place), Status::Refused | Status::SentRefused) {
                let mut after = *state;
                let maybe = me.maybe(self, state.stamps, state.redis.maybe, place);
                if after.redis.bury(self, token(instance), place, maybe) {
                    after.instances[instance].set(place, Status::Done);
                } else {
                    after.forget(instance);
                }
                out.push((Step::Bury { instance, place }, after));
            }
            self.park_steps(state, instance, place, out);
        }
    }

    fn may_park(&self, state: &State, instance: usize, place: usize) -> bool {
        let me = &state.instances[instance];
        let parked = self
            .parked(place)
            .is_some_and(|pack| pack != pack_of(place));
        parked && me.may_publish(self, state.stamps, place)
    }

    /// The pack that the record is parked in.
    fn parked(&self, place: usize) -> Option<usize> {
        if place % RECORDS >= self.plan.packs[pack_of(place)].records.len() {
            return None;
        }
        let message = self.message(place);
        self.packs(Role::Park)
            .find(|pack| usize::from(self.plan.packs[*pack].records[0].0) == message)
    }

    fn park_steps(&self, state: &State, instance: usize, place: usize, out: &mut Steps) {
        let again = state.instances[instance].status(place) == Status::Parking;
        if !again && !self.may_park(state, instance, place) {
            return;
        }
        let Some(pack) = self.parked(place) else {
            return;
        };
        let struck = if again {
            Some(*state)
        } else {
            state.strike(Fault::Park)
        };
        let Some(struck) = struck else { return };
        let maybe = state.instances[instance].maybe(self, state.stamps, state.redis.maybe, place);
        for due in self.plan.packs[pack].dues {
            let mut after = struck;
            let score = self.stamp(state, pack, *due);
            let known = state.redis.marks & (1 << place) != 0;
            // What is parked already keeps the score that it has.
            if !(known && self.keeps(Rule::ParkStopsAtMark)) {
                after.stamps[pack] = score;
            }
            match after
                .redis
                .park(self, after.stamps, token(instance), place, pack, maybe)
            {
                Some(Stored::Ok) => after.instances[instance].set(place, Status::Done),
                Some(_) => continue,
                None => {
                    after = struck;
                    after.forget(instance);
                }
            }
            out.push((
                Step::Park {
                    instance,
                    place,
                    score,
                },
                after,
            ));
            if let Some(mut lost) = after.strike(Fault::ReplyLost)
                && after.instances[instance].session
            {
                let repeated = self.keeps(Rule::ParkRepeated);
                let status = if repeated {
                    Status::Parking
                } else {
                    Status::Pending
                };
                lost.instances[instance].set(place, status);
                out.push((
                    Step::ParkReplyLost {
                        instance,
                        place,
                        score,
                    },
                    lost,
                ));
            }
        }
    }

    pub(crate) fn park_effect(&self, state: &mut State, token: u8, place: usize, maybe: bool) {
        let Some(pack) = self.parked(place) else {
            return;
        };
        let due = state.redis.handed + 1;
        if state.stamps[pack] == 0 {
            state.stamps[pack] = self.stamp(state, pack, due);
            state
                .redis
                .park(self, state.stamps, token, place, pack, maybe);
        }
    }
}
