//! Loads of pipelined DPUBs over several connections.

use std::collections::HashSet;

use super::ledger::{Ledger, Stamp};
use super::producer::{Producer, dpub};

/// Size of a body, in bytes.
pub(crate) const BODY_BYTES: usize = 500;
/// Commands sent before their answers are read.
const DEPTH: usize = 500;

/// A load: its messages are numbered from 0, each connection takes an equal share.
#[derive(Debug, Clone)]
pub(crate) struct Load<'a> {
    pub(crate) topic: &'a str,
    pub(crate) count: usize,
    pub(crate) connections: usize,
    /// How a message's delay follows from its number.
    pub(crate) delay_ms: fn(usize, &Load<'_>) -> u64,
    /// A moment, in Unix ms, for the use of `delay_ms`.
    pub(crate) due_ms: u64,
}

/// Delays that make everything due at the load's one instant.
pub(crate) fn at_one_instant(_number: usize, load: &Load<'_>) -> u64 {
    load.due_ms.saturating_sub(super::unix_ms())
}

impl Load<'_> {
    /// Sends everything to the door at `address`; a connection that breaks ends its share, and what
    /// it had sent without an answer is unknown.
    pub(crate) fn send(&self, address: &str) -> Ledger {
        self.send_from(address, 0)
    }

    /// The same with numbers from `first`.
    pub(crate) fn send_from(&self, address: &str, first: usize) -> Ledger {
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..self.connections)
                .map(|connection| scope.spawn(move || self.send_share(address, first, connection)))
                .collect();
            let mut ledger = Ledger::default();
            for sender in senders {
                ledger.merge(sender.join().unwrap());
            }
            ledger
        })
    }

    fn send_share(&self, address: &str, first: usize, connection: usize) -> Ledger {
        let mut ledger = Ledger::default();
        let Ok(mut producer) = Producer::try_connect(address) else {
            return ledger;
        };
        let numbers: Vec<usize> = (first + connection..first + self.count)
            .step_by(self.connections)
            .collect();
        for window in numbers.chunks(DEPTH) {
            let commands: Vec<_> = window.iter().map(|number| self.command(*number)).collect();
            let acknowledged = producer.pipeline(&commands, DEPTH);
            ledger.acknowledged.extend(&window[..acknowledged]);
            if acknowledged < window.len() {
                ledger.unknown = window[acknowledged..]
                    .iter()
                    .copied()
                    .collect::<HashSet<_>>();
                return ledger;
            }
        }
        ledger
    }

    fn command(&self, number: usize) -> Vec<u8> {
        let delay_ms = (self.delay_ms)(number, self);
        dpub(
            self.topic,
            delay_ms,
            &Stamp::now(number, delay_ms).body(BODY_BYTES),
        )
    }
}
