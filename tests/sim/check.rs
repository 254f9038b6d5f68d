//! Holds a history against the promises.

use std::collections::BTreeSet;

use nsqdelayd::store::{Cancel, Reschedule};

use crate::world::{Event, What};

/// What is known of one message.
#[derive(Debug, Default, Clone)]
pub(crate) struct Fate {
    sent: Option<(u64, u64)>,
    taken: bool,
    refused: bool,
    cancelled: bool,
    /// A cancel, a move or a drop of unknown outcome, or a drop: it need not arrive.
    excused: bool,
    /// Not due before this by Redis's clock, in ms.
    earliest: u64,
    delivered: usize,
    gone: bool,
    /// Deliveries when the move that is under way was asked for, and the clock at the last one.
    delivered_then: usize,
    last_us: u64,
}

impl Fate {
    /// Whether it still has to arrive.
    fn is_owed(&self) -> bool {
        self.taken && !self.cancelled && !self.excused && self.delivered == 0
    }
}

/// What a history says of each message, and the promises that it breaks on the way.
pub(crate) fn replay(history: &[Event], calm: bool) -> (Vec<Fate>, Vec<String>) {
    let mut fates: Vec<Fate> = Vec::new();
    let mut broken = Vec::new();
    for event in history {
        let message = match &event.what {
            What::Sent { message, .. }
            | What::Taken { message, .. }
            | What::Refused { message }
            | What::CancelAsked { message }
            | What::Cancel { message, .. }
            | What::MoveAsked { message }
            | What::Moved { message, .. }
            | What::DropAsked { message }
            | What::Delivered { message } => *message,
            What::Fault(_) => continue,
        };
        if fates.len() <= message {
            fates.resize(message + 1, Fate::default());
        }
        let fate = &mut fates[message];
        let mut say = |text: &str| broken.push(format!("message {message} {text}: {event:?}"));
        match &event.what {
            What::Sent { delay_ms, .. } => fate.sent = Some((event.at_us, *delay_ms)),
            What::Taken { due, .. } => {
                fate.taken = true;
                fate.earliest = fate.earliest.max(*due);
                if fate.delivered > 0 && event.latest_us < due * 1_000 {
                    say("was early");
                }
            }
            What::Refused { .. } => {
                fate.refused = true;
                if fate.delivered > 0 {
                    say("was refused after its delivery");
                }
            }
            What::Cancel { answer, .. } => match answer {
                Some(Cancel::Cancelled) => {
                    fate.cancelled = true;
                    if fate.delivered > 0 {
                        say("was cancelled after its delivery");
                    }
                }
                Some(Cancel::NotFound) => fate.gone = true,
                None => fate.excused = true,
                _ => {}
            },
            What::Moved { answer, .. } => match answer {
                Some(Reschedule::Moved(due)) => {
                    fate.earliest = due.0;
                    if fate.delivered_then > 0 {
                        say("was moved after its delivery");
                    } else if fate.delivered > 0 && fate.last_us < due.0 * 1_000 {
                        say("was delivered at the old time");
                    }
                }
                Some(Reschedule::NotFound) => fate.gone = true,
                None => fate.earliest = 0,
                _ => {}
            },
            What::DropAsked { .. } => fate.excused = true,
            What::CancelAsked { .. } | What::Fault(_) => {}
            // While a move is under way, the old place and the new one are both right.
            What::MoveAsked { .. } => {
                (fate.earliest, fate.sent) = (0, None);
                fate.delivered_then = fate.delivered;
            }
            What::Delivered { .. } => {
                fate.delivered += 1;
                fate.last_us = event.latest_us;
                if fate.cancelled {
                    say("was delivered after its cancel");
                }
                if fate.refused {
                    say("was delivered after it was refused");
                }
                if event.latest_us < fate.earliest * 1_000 {
                    say("was early");
                }
                // Not where Redis's clock has stepped: the sender's estimate cannot know of it.
                if let Some((at_us, delay)) = fate.sent
                    && calm
                    && fate.earliest > 0
                    && event.latest_us < at_us + delay * 1_000
                {
                    say("was earlier than its delay");
                }
                if calm && fate.delivered > 1 {
                    say("was delivered twice without a fault");
                }
            }
        }
        if fate.gone && fate.taken && !fate.excused && fate.delivered == 0 && !fate.cancelled {
            say("was said to be gone before its delivery");
        }
    }
    (fates, broken)
}

/// Which messages still have to arrive.
pub(crate) fn owed(fates: &[Fate], dead: &BTreeSet<usize>) -> Vec<usize> {
    let owed = fates
        .iter()
        .enumerate()
        .filter(|(n, f)| f.is_owed() && !dead.contains(n));
    owed.map(|(number, _)| number).collect()
}
