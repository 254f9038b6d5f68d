//! Racers: create a message, and cancel or move it within ±150 ms of its due instant, or far ahead of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde_json::{Value, json};

use super::http::draft;
use super::{Came, FAR_MS, Producer};
use crate::answers;
use crate::event::{Asked, Number, Outcome};
use crate::read_back::identify_listed;
use crate::support::http::{Answer, Http};
use crate::support::producer as v2;

/// How near to its due instant a message is taken back, µs.
const NEAR_US: u64 = 150_000;
/// Most plans of one racer.
const PLANS_MAX: usize = 400;

/// What will be done to a message; the earliest is first.
type Plan = Reverse<(u64, Number, String, &'static str, u8)>;

impl Producer<'_> {
    pub(super) fn run_racer(&mut self) {
        let mut connection = None;
        let mut plans: BinaryHeap<Plan> = BinaryHeap::new();
        while self.rest() {
            if plans.len() < PLANS_MAX {
                self.create(&mut connection, &mut plans);
            }
            while plans
                .peek()
                .is_some_and(|Reverse((at, ..))| *at <= self.now())
            {
                let Some(Reverse((_, number, id, topic, step))) = plans.pop() else {
                    break;
                };
                self.act(&mut connection, &mut plans, (number, id, topic, step));
            }
        }
    }

    fn create(&mut self, connection: &mut Option<Http>, plans: &mut BinaryHeap<Plan>) {
        let text = self.random.bool();
        let (number, topic) = (self.field.next(text), self.topic());
        let far = self.random.u32(0..4) == 0;
        let delay_ms = if far {
            FAR_MS
        } else {
            self.random.u64(300..2_500)
        };
        let has_id = self.random.u32(0..3) == 0;
        let t_start = self.now();
        let body = draft(number, topic, delay_ms, has_id).to_string();
        let path = "/v1/messages";
        let Some(answer) = self.exchange(connection, "POST", path, true, body.as_bytes()) else {
            return;
        };
        let (outcome, words) = judged(&answer);
        self.record(vec![Came {
            op: Asked::Publish,
            ids: vec![number],
            topic,
            delay_ms,
            t_start,
            outcome,
            words,
        }]);
        let id = answer
            .ok()
            .filter(|_| outcome == Outcome::Ok)
            .and_then(|answer| answer.json()["id"].as_str().map(str::to_owned));
        let Some(id) = id else {
            *connection = None;
            return self.move_on();
        };
        // Some of what is far ahead is left where it is, to be found pending at the end.
        if far && self.random.u32(0..8) == 0 {
            return;
        }
        let at = if far {
            self.now() + self.random.u64(100_000..3_000_000)
        } else {
            self.now() + delay_ms * 1_000 - NEAR_US + self.random.u64(0..2 * NEAR_US)
        };
        plans.push(Reverse((at, number, id, topic, 0)));
    }

    /// Cancels or moves. A moved message is raced for again.
    fn act(
        &mut self,
        connection: &mut Option<Http>,
        plans: &mut BinaryHeap<Plan>,
        (number, id, topic, step): (Number, String, &'static str, u8),
    ) {
        if self.random.u32(0..4) == 0 {
            self.look(connection, number, &id, topic);
        }
        if step < 2 && self.random.u32(0..10) < 4 {
            // At once, now and then.
            let soon = self.random.u32(0..6) == 0;
            let delay_ms = if soon { 0 } else { self.random.u64(200..2_500) };
            if self.shift(connection, number, &id, topic, delay_ms) {
                let due = (self.now() + delay_ms * 1_000).saturating_sub(NEAR_US);
                let at = due + self.random.u64(0..2 * NEAR_US);
                plans.push(Reverse((at, number, id, topic, step + 1)));
            }
            return;
        }
        let t_start = self.now();
        let (outcome, words) = match self.random.u32(0..3) {
            0 => self.cancel_by_tcp(&id),
            1 => self.cancel_by_batch(connection, &id),
            _ => {
                let path = format!("/v1/messages/{id}");
                match self.exchange(connection, "DELETE", &path, false, b"") {
                    Some(answer) => judged(&answer),
                    None => return self.retry(plans, (number, id, topic, step)),
                }
            }
        };
        let again = matches!(outcome, Outcome::Unknown | Outcome::Fail);
        self.record(vec![Came {
            op: Asked::Cancel,
            ids: vec![number],
            topic,
            delay_ms: 0,
            t_start,
            outcome,
            words,
        }]);
        if again {
            *connection = None;
            self.move_on();
            if step < 6 {
                self.retry(plans, (number, id, topic, step + 3));
            }
        }
    }

    fn retry(
        &mut self,
        plans: &mut BinaryHeap<Plan>,
        (number, id, topic, step): (Number, String, &'static str, u8),
    ) {
        let at = self.now() + self.random.u64(20_000..400_000);
        plans.push(Reverse((at, number, id, topic, step)));
    }

    /// Moves; says whether it is now at the new time for certain.
    fn shift(
        &mut self,
        connection: &mut Option<Http>,
        number: Number,
        id: &str,
        topic: &'static str,
        delay_ms: u64,
    ) -> bool {
        let t_start = self.now();
        let (path, body) = (format!("/v1/messages/{id}"), json!({"delay_ms": delay_ms}));
        let body = body.to_string();
        let answer = if delay_ms == 0 {
            self.exchange(connection, "POST", &format!("{path}/deliver"), false, b"")
        } else {
            self.exchange(connection, "PATCH", &path, true, body.as_bytes())
        };
        let Some(answer) = answer else {
            return false;
        };
        let (outcome, words) = judged(&answer);
        self.record(vec![Came {
            op: Asked::Move,
            ids: vec![number],
            topic,
            delay_ms,
            t_start,
            outcome,
            words,
        }]);
        outcome == Outcome::Ok
    }

    /// Looks at a message: it is there, with its own body, unless it was delivered.
    fn look(
        &mut self,
        connection: &mut Option<Http>,
        number: Number,
        id: &str,
        topic: &'static str,
    ) {
        let t_start = self.now();
        let path = format!("/v1/messages/{id}");
        let Some(answer) = self.exchange(connection, "GET", &path, false, b"") else {
            return;
        };
        let (mut outcome, mut words) = judged(&answer);
        if let Ok(answer) = answer
            && outcome == Outcome::Ok
            && identify_listed(&answer.json()) != Some((number, true))
        {
            (outcome, words) = (Outcome::Odd, answer.text());
        }
        self.record(vec![Came {
            op: Asked::Look,
            ids: vec![number],
            topic,
            delay_ms: 0,
            t_start,
            outcome,
            words,
        }]);
    }

    fn cancel_by_tcp(&mut self, id: &str) -> (Outcome, String) {
        let address = self
            .field
            .doors
            .get(self.instance)
            .map(|doors| doors.0.clone());
        let Some(mut door) = address.and_then(|tcp| v2::Producer::try_connect(&tcp).ok()) else {
            return (Outcome::Fail, String::new());
        };
        let command = format!("CANCEL {id}\n");
        let answer = door.send(command.as_bytes()).and_then(|()| door.read());
        let unheard = |error: std::io::Error| (Outcome::Unknown, error.to_string());
        answer.map_or_else(unheard, |frame| answers::of_frame(&frame))
    }

    fn cancel_by_batch(&mut self, connection: &mut Option<Http>, id: &str) -> (Outcome, String) {
        let body = json!({"ids": [id]}).to_string();
        let path = "/v1/messages:cancel";
        let Some(answer) = self.exchange(connection, "POST", path, true, body.as_bytes()) else {
            return (Outcome::Fail, String::new());
        };
        let whole = judged(&answer);
        let Ok(answer) = answer else { return whole };
        if whole.0 != Outcome::Ok {
            return whole;
        }
        let answer: Value = answer.json();
        let result = answer["results"][0]["result"].as_str().unwrap_or_default();
        (answers::of_cancel(result), result.to_owned())
    }
}

fn judged(answer: &std::io::Result<Answer>) -> (Outcome, String) {
    match answer {
        Ok(answer) => answers::of_answer(answer),
        Err(error) => (Outcome::Unknown, error.to_string()),
    }
}
