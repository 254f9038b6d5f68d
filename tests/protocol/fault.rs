//! What goes wrong, and the passing of time: clock steps, crashes, ends of claims, what arrives after
//! its sender has given it up, failover.

use crate::owner::Instance;
use crate::plan::{END, Fault, MESSAGES, PACKS, RECORDS, Replicas};
use crate::redis::Redis;
use crate::shard::{Late, State, Steps, World};
use crate::step::Step;

impl World<'_> {
    pub(crate) fn clock_steps(&self, state: &State, out: &mut Steps) {
        if state.now < self.plan.clock_end {
            let mut after = *state;
            after.pass(1);
            out.push((Step::Tick, after));
        }
        if let Some(mut after) = state.strike(Fault::Forward) {
            after.now = (after.now + 2).min(END - 2);
            after.now_max = after.now_max.max(after.now);
            out.push((Step::ClockForward, after));
        }
        if let Some(mut after) = state.strike(Fault::Back)
            && state.now > 2
        {
            after.now -= 2;
            out.push((Step::ClockBack, after));
        }
    }

    pub(crate) fn late_steps(&self, state: &State, out: &mut Steps) {
        let Some(Late { token, turn, park }) = state.late else {
            return;
        };
        let mut after = *state;
        // A forgotten session that takes the claim holds it as number 3.
        let token = if token == 4 && state.redis.claim == 0 {
            3
        } else {
            token
        };
        if let Some(turn) = turn {
            let held = after
                .redis
                .turn(self, state.stamps, state.now, token, &turn);
            let park = if held.is_some() { park } else { None };
            after.late = park.map(|_| Late {
                token,
                turn: None,
                park,
            });
        } else if let Some(place) = park {
            self.park_effect(&mut after, token, usize::from(place), false);
            after.late = None;
        }
        out.push((Step::TurnArrives, after));
    }

    pub(crate) fn fault_steps(&self, state: &State, out: &mut Steps) {
        for place in (0..PACKS * RECORDS).filter(|place| state.limbo & (1 << place) != 0) {
            let mut after = *state;
            after.limbo &= !(1 << place);
            self.deliver(&mut after, place);
            out.push((Step::PublishArrives { place }, after));
        }
        for instance in 0..usize::from(self.plan.instances) {
            let me = &state.instances[instance];
            if me.session
                && let Some(mut after) = state.strike(Fault::Crash)
            {
                after.forget(instance);
                after.instances[instance] = Instance::new(state.now);
                out.push((Step::Crash { instance }, after));
            }
        }
        if state.redis.claim != 0
            && let Some(mut after) = state.strike(Fault::Expire)
        {
            after.redis.claim = 0;
            out.push((Step::Expire, after));
        }
        if self.plan.replicas != Replicas::None && state.faults[Fault::Failover as usize] > 0 {
            let mut after = *state;
            after.replica = state.redis;
            out.push((Step::Replicate, after));
        }
        if let Some(mut after) = state.strike(Fault::Failover) {
            self.fail_over(&mut after);
            out.push((Step::Failover, after));
        }
    }

    /// The replica becomes the server. Where nobody waited for it, what it lacks is forgiven.
    fn fail_over(&self, state: &mut State) {
        state.redis = state.replica;
        state.replica = Redis::default();
        for instance in 0..2 {
            self.connection_lost(state, instance);
        }
        if self.plan.replicas == Replicas::Awaited {
            return;
        }
        for message in 0..MESSAGES {
            if self.reachable(state, message) {
                state.cancelled &= !(1 << message);
            } else {
                state.acknowledged &= !(1 << message);
            }
        }
        state.delivered = 0;
        state.moved = 0;
    }
}
