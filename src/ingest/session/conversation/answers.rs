//! What a client is told: the outcomes of its commands, in order, as frames, and as counts for the
//! metrics.

use futures_util::future::FutureExt as _;

use super::{Conversation, OUT_LEN_MAX};
use crate::ingest::metrics::{CancelLabel, Door, Reason, RefusedLabel};
use crate::ingest::reply;
use crate::ingest::session::flight::{Answer, Outcome};
use crate::nsq::error_code::Refusal;
use crate::nsq::frame::{self, FrameType};

impl Conversation {
    /// Tells the client this answer and all others that have come.
    pub(super) fn take_answers(&mut self, first: Answer) {
        self.tell(first.outcome);
        while !self.flight.is_empty() && self.out.len() < OUT_LEN_MAX {
            match self.flight.next().now_or_never() {
                Some(answer) => self.tell(answer.outcome),
                None => break,
            }
        }
        if self.deaf {
            self.out.clear();
        }
        if !self.published.is_empty() {
            self.desk.clients.update(self.number, |stats| {
                for (topic, count) in &self.published {
                    stats.add_published(topic, *count);
                }
            });
            self.published.clear();
        }
        // Less than before is always granted; if more was read meanwhile, it is charged when decoded.
        let _granted = self.charge(0);
        // nsqd counts the time of a client from the end of its last command.
        if self.flight.is_empty() {
            self.restart_read_deadline();
        }
    }

    pub(super) fn tell(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Accepted { commands, messages } => {
                for _ in 0..commands {
                    self.out.extend_from_slice(frame::OK);
                }
                let count = messages.iter().map(|(_, count)| count).sum();
                self.accepted.inc_by(count);
                if self.published.is_empty() {
                    self.published = messages;
                } else {
                    self.published.extend(messages);
                }
            }
            Outcome::NotAccepted {
                kind,
                messages,
                refusal,
            } => {
                self.count_refused(reply::reason(kind), messages);
                self.tell_refusal(&refusal);
            }
            Outcome::Cancel(result, refusal) => {
                if let Ok(result) = result {
                    let label = CancelLabel {
                        result: result.into(),
                    };
                    self.desk.metrics.cancelled.get_or_create(&label).inc();
                }
                match refusal {
                    None => self.out.extend_from_slice(frame::OK),
                    Some(refusal) => self.tell_refusal(&refusal),
                }
            }
            Outcome::Response(body) => {
                frame::encode(FrameType::Response, &body, &mut self.out);
            }
            Outcome::Asked(result) => self.asked(result),
            Outcome::Refused(refusal) => {
                let too_big = refusal.too_big;
                let reason = match refusal.code {
                    _ if too_big => Reason::TooBig,
                    code if code.is_of_auth() => Reason::Unauthorized,
                    _ => Reason::Invalid,
                };
                self.count_refused(reason, 1);
                self.tell_refusal(&refusal);
            }
        }
    }

    /// Nothing is answered after a fatal one.
    fn tell_refusal(&mut self, refusal: &Refusal) {
        refusal.encode(&mut self.out);
        if refusal.code.is_fatal() {
            self.flight.clear();
            self.close_input();
        }
    }

    pub(super) fn count_refused(&self, reason: Reason, messages: usize) {
        let door = Door::Tcp;
        let label = RefusedLabel { door, reason };
        let refused = self.desk.metrics.refused.get_or_create(&label);
        refused.inc_by(u64::try_from(messages).unwrap_or(u64::MAX));
    }
}
