//! The nsqds that there are at a moment, and which of their connections is the best for a batch. Does
//! not know where the list comes from, and neither dials nor closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use crate::forward::batch::Batch;
use crate::forward::link::{Circuit, Link, Nsqd};
use crate::forward::nodes::Topics;
use crate::message::TopicName;

/// One nsqd of the roster.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) nsqd: Arc<Nsqd>,
    pub(super) links: Vec<Arc<Link>>,
    /// Named by the configuration: it is never gone, and any topic may go to it.
    pub(super) named: bool,
    pub(super) topics: Topics,
    /// Closes its connections.
    pub(super) stop: CancellationToken,
}

impl Member {
    fn usable(&self) -> bool {
        self.links
            .iter()
            .any(|link| link.circuit() != Circuit::Open)
    }

    /// How well it suits a topic; the smallest is the best.
    fn distance(&self, topic: &TopicName) -> Distance {
        if self.topics.tombstoned.contains(topic.as_str()) {
            Distance::Tombstoned
        } else if self.named || self.topics.carried.contains(topic.as_str()) {
            Distance::Carries
        } else {
            Distance::Any
        }
    }
}

/// How well an nsqd suits a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    /// Consumers find the topic there already.
    Carries,
    /// They will find it there once it has come.
    Any,
    /// The topic is being taken away from it: better there than nowhere.
    Tombstoned,
}

/// All nsqds. Never changes: another one takes its place.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pub(super) members: Vec<Member>,
}

impl Roster {
    /// Whether there is no nsqd at all.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The best usable link for `batch`: of an nsqd that suits its topic, and of those the one with the
    /// fewest bytes unanswered. One that has to prove itself gets one batch at a time, unless there is
    /// no other. One that has said that such messages are too long for it gets them only when every
    /// nsqd has: what another would take waits for that. Equals take turns by `turn`.
    pub(super) fn choose(&self, batch: &Batch, turn: &AtomicUsize) -> Option<Arc<Link>> {
        let count = self.members.len();
        let first = turn.fetch_add(1, Ordering::Relaxed).checked_rem(count)?;
        let in_turn = self.members.iter().cycle().skip(first).take(count);
        let elsewhere = self.members.iter().any(|member| member.nsqd.fits(batch));
        in_turn
            .filter(|member| !elsewhere || member.nsqd.fits(batch))
            .flat_map(|member| {
                let distance = member.distance(&batch.topic);
                member.links.iter().map(move |link| (distance, link))
            })
            .filter_map(|(distance, link)| {
                let used = link.nsqd.room.used();
                match link.circuit() {
                    Circuit::Open => None,
                    Circuit::HalfOpen => Some((used > 0, distance, used, link)),
                    Circuit::Closed => Some((false, distance, used, link)),
                }
            })
            .min_by_key(|(on_trial, distance, used, _)| (*on_trial, *distance, *used))
            .map(|(.., link)| Arc::clone(link))
    }

    /// The nsqds beside `nsqd` that can be reached, and whether those are all.
    pub(super) fn others(&self, nsqd: &Nsqd) -> (Vec<Arc<Nsqd>>, bool) {
        let others = self
            .members
            .iter()
            .filter(|member| !std::ptr::eq(nsqd, member.nsqd.as_ref()));
        let (usable, away): (Vec<&Member>, Vec<&Member>) =
            others.partition(|member| member.usable());
        let usable = usable.into_iter().map(|member| Arc::clone(&member.nsqd));
        (usable.collect(), away.is_empty())
    }
}
