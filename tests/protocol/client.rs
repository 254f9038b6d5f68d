//! What producers do: insert, again after a lost reply, cancel, move, requeue. A client knows the
//! answers that it got, nothing else.

use crate::plan::{Fault, MESSAGES, PACKS, PER_MS, RECORDS, Replicas, Role};
use crate::redis::{Answer, Stored};
use crate::rules::Rule;
use crate::shard::{Insert, State, Steps, World};
use crate::step::Step;

impl World<'_> {
    pub(crate) fn stamp(&self, state: &State, pack: usize, due: u8) -> u8 {
        let plan = &self.plan.packs[pack];
        let taken = |score| (0..PACKS).any(|p| state.redis.has(p) && state.stamps[p] == score);
        // `taken` is answered by another k.
        let free = (plan.k..PER_MS)
            .map(|k| due * PER_MS + k)
            .find(|score| !taken(*score));
        match free {
            Some(score) if self.keeps(Rule::Taken) => score,
            _ => due * PER_MS + plan.k,
        }
    }

    pub(crate) fn insert_steps(&self, state: &State, out: &mut Steps) {
        for pack in self.packs(Role::Insert) {
            match state.inserts[pack] {
                Insert::Idle => {
                    for due in self.plan.packs[pack].dues {
                        self.first_insert(state, pack, *due, out);
                    }
                }
                Insert::Unanswered => {
                    let mut after = *state;
                    let answer = after.redis.insert(self, state.stamps, pack);
                    self.answered(&mut after, pack, answer, true);
                    out.push((Step::InsertAgain { pack, answer }, after));
                }
                Insert::Acknowledged | Insert::Refused | Insert::Unknown => {}
            }
            if state.inserts_late & (1 << pack) != 0 {
                let mut after = *state;
                after.inserts_late &= !(1 << pack);
                let answer = after.redis.insert(self, state.stamps, pack);
                out.push((Step::InsertArrives { pack, answer }, after));
            }
        }
    }

    fn first_insert(&self, state: &State, pack: usize, due: u8, out: &mut Steps) {
        let score = self.stamp(state, pack, due);
        let mut after = *state;
        after.stamps[pack] = score;
        let answer = after.redis.insert(self, after.stamps, pack);
        if answer == Stored::Ok {
            self.born_again(state, &mut after, pack);
        }
        self.answered(&mut after, pack, answer, false);
        out.push((
            Step::Insert {
                pack,
                score,
                answer,
            },
            after,
        ));

        if let Some(mut after) = state.strike(Fault::InsertReplyLost) {
            after.stamps[pack] = score;
            after.redis.insert(self, after.stamps, pack);
            after.inserts[pack] = Insert::Unanswered;
            out.push((Step::InsertReplyLost { pack, score }, after));
        }
        if let Some(mut after) = state.strike(Fault::InsertLate) {
            after.stamps[pack] = score;
            after.inserts[pack] = Insert::Unanswered;
            after.inserts_late |= 1 << pack;
            out.push((Step::InsertDelayed { pack, score }, after));
        }
    }

    /// An id whose entry has aged after its message was settled may be used for another message.
    fn born_again(&self, before: &State, after: &mut State, pack: usize) {
        for (message, _) in self.plan.packs[pack].records {
            let places = (0..self.plan.packs.len() * RECORDS)
                .filter(|place| before.delivered & (1 << place) != 0)
                .filter(|place| self.message(*place) == usize::from(*message))
                .filter(|place| self.due(before.stamps, *place) <= before.redis.settled);
            after.delivered &= !places.fold(0, |places, place| places | 1_u16 << place);
        }
    }

    /// The client has the answer to its insert; `again`: an earlier attempt was not answered.
    fn answered(&self, state: &mut State, pack: usize, answer: Stored, again: bool) {
        let messages = self.plan.packs[pack]
            .records
            .iter()
            .map(|(message, _)| *message);
        let messages = messages.fold(0, |bits, message| bits | 1_u8 << message);
        state.inserts[pack] = match answer {
            Stored::Ok => {
                state.acknowledged |= messages;
                if self.plan.replicas == Replicas::Awaited {
                    state.replica = state.redis;
                }
                Insert::Acknowledged
            }
            // The client is told which exist; the others it may send again, by themselves.
            Stored::Exists(_) => Insert::Unknown,
            Stored::Late | Stored::Taken if again && self.keeps(Rule::UnknownStaysUnknown) => {
                Insert::Unknown
            }
            Stored::Late | Stored::Taken => {
                state.refused |= 1 << pack;
                Insert::Refused
            }
        };
    }

    /// Where a client takes the message to be: where it was stored first, as the minted id says.
    fn minted(&self, state: &State, message: usize) -> Option<usize> {
        if self.plan.client_ids {
            return None;
        }
        self.packs(Role::Insert)
            .filter(|pack| state.inserts[*pack] == Insert::Acknowledged)
            .flat_map(|pack| pack * RECORDS..pack * RECORDS + self.plan.packs[pack].records.len())
            .find(|place| self.message(*place) == message)
    }

    pub(crate) fn cancel_steps(&self, state: &State, out: &mut Steps) {
        for message in (0..MESSAGES).filter(|message| self.plan.cancels & (1 << message) != 0) {
            let minted = self.minted(state, message);
            if minted.is_none() && !self.plan.client_ids {
                continue;
            }
            let mut after = *state;
            let answer = after.redis.cancel(self, state.stamps, message, minted);
            if answer == Answer::Ok {
                after.cancelled |= 1 << message;
                if self.was_delivered(state, message) {
                    after.broken = 5;
                }
                if self.plan.replicas == Replicas::Awaited && self.keeps(Rule::CancelWaits) {
                    after.replica = after.redis;
                }
            }
            out.push((Step::Cancel { message, answer }, after));
        }
        for (place, redis) in state.redis.tidied(self, state.stamps) {
            let after = State { redis, ..*state };
            out.push((Step::Tidy { place }, after));
        }
    }

    pub(crate) fn move_steps(&self, state: &State, out: &mut Steps) {
        for pack in self.packs(Role::Move) {
            let message = usize::from(self.plan.packs[pack].records[0].0);
            let minted = self.minted(state, message);
            if state.inserts[pack] != Insert::Idle || (minted.is_none() && !self.plan.client_ids) {
                continue;
            }
            for due in self.plan.packs[pack].dues {
                let mut after = *state;
                let score = self.stamp(state, pack, *due);
                after.stamps[pack] = score;
                let (answer, old) = after.redis.move_to(self, after.stamps, pack, minted);
                let Some(old) = old else { continue };
                after.inserts[pack] = Insert::Acknowledged;
                after.moved |= 1 << old;
                if state.delivered & (1 << old) != 0 {
                    after.broken = 6;
                }
                if self.plan.replicas == Replicas::Awaited && self.keeps(Rule::CancelWaits) {
                    after.replica = after.redis;
                }
                out.push((
                    Step::Move {
                        pack,
                        score,
                        answer,
                    },
                    after,
                ));
            }
        }
    }

    pub(crate) fn requeue_steps(&self, state: &State, out: &mut Steps) {
        for pack in self.packs(Role::Requeue) {
            for due in self.plan.packs[pack].dues {
                let mut after = *state;
                let score = self.stamp(state, pack, *due);
                after.stamps[pack] = score;
                if state.inserts[pack] == Insert::Idle
                    && after.redis.requeue(self, after.stamps, pack)
                {
                    after.inserts[pack] = Insert::Acknowledged;
                    out.push((Step::Requeue { pack, score }, after));
                }
            }
        }
    }
}
