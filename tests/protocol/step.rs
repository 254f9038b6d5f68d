//! The steps, and how a trace prints them.

use std::fmt;

use crate::plan::{PER_MS, RECORDS};
use crate::redis::{Answer, Stored};

/// One step, as the traces print it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Tick,
    ClockForward,
    ClockBack,
    Insert {
        pack: usize,
        score: u8,
        answer: Stored,
    },
    InsertReplyLost {
        pack: usize,
        score: u8,
    },
    InsertDelayed {
        pack: usize,
        score: u8,
    },
    InsertArrives {
        pack: usize,
        answer: Stored,
    },
    InsertAgain {
        pack: usize,
        answer: Stored,
    },
    Cancel {
        message: usize,
        answer: Answer,
    },
    Move {
        pack: usize,
        score: u8,
        answer: Answer,
    },
    Requeue {
        pack: usize,
        score: u8,
    },
    Tidy {
        place: usize,
    },
    Trim,
    TurnSent {
        instance: usize,
    },
    Turn {
        instance: usize,
        hold: bool,
        release: bool,
        busy: bool,
    },
    TurnReplyLost {
        instance: usize,
    },
    TurnDelayed {
        instance: usize,
        park: bool,
    },
    TurnArrives,
    MarksRead {
        instance: usize,
    },
    Publish {
        instance: usize,
        place: usize,
    },
    PublishUnknown {
        instance: usize,
        place: usize,
    },
    PublishRefused {
        instance: usize,
        place: usize,
    },
    PublishArrives {
        place: usize,
    },
    Park {
        instance: usize,
        place: usize,
        score: u8,
    },
    ParkReplyLost {
        instance: usize,
        place: usize,
        score: u8,
    },
    Bury {
        instance: usize,
        place: usize,
    },
    Crash {
        instance: usize,
    },
    Expire,
    Replicate,
    Failover,
}

struct Score(u8);

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}/{PER_MS}", self.0 / PER_MS, self.0 % PER_MS)
    }
}

struct Owner(usize);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == 0 { "A" } else { "B" })
    }
}

struct At(usize);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "record {} of pack {}",
            self.0 % RECORDS,
            self.0 / RECORDS
        )
    }
}

impl fmt::Display for Step {
    #[expect(clippy::too_many_lines, reason = "one line a step")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Tick => write!(f, "a millisecond passes"),
            Self::ClockForward => write!(f, "Redis's clock steps forward"),
            Self::ClockBack => write!(f, "Redis's clock steps back"),
            Self::Insert {
                pack,
                score,
                answer,
            } => {
                write!(f, "insert pack {pack} at {}: {answer:?}", Score(score))
            }
            Self::InsertReplyLost { pack, score } => {
                write!(
                    f,
                    "insert pack {pack} at {}: the reply is lost",
                    Score(score)
                )
            }
            Self::InsertDelayed { pack, score } => {
                write!(f, "insert pack {pack} at {}: delayed", Score(score))
            }
            Self::InsertArrives { pack, answer } => {
                write!(f, "the delayed insert of pack {pack} arrives: {answer:?}")
            }
            Self::InsertAgain { pack, answer } => {
                write!(f, "insert pack {pack} again: {answer:?}")
            }
            Self::Cancel { message, answer } => write!(f, "cancel message {message}: {answer:?}"),
            Self::Move {
                pack,
                score,
                answer,
            } => {
                write!(f, "move to pack {pack} at {}: {answer:?}", Score(score))
            }
            Self::Requeue { pack, score } => {
                write!(f, "requeue to pack {pack} at {}", Score(score))
            }
            Self::Tidy { place } => write!(f, "{} is tidied", At(place)),
            Self::Trim => write!(f, "trim"),
            Self::TurnSent { instance } => write!(f, "{} sends a turn", Owner(instance)),
            Self::Turn {
                instance,
                hold,
                release,
                busy,
            } => {
                let hold = if hold { " that hands out nothing" } else { "" };
                let release = if release { " that releases" } else { "" };
                let answer = if busy { "busy" } else { "held" };
                write!(f, "turn of {}{hold}{release}: {answer}", Owner(instance))
            }
            Self::TurnReplyLost { instance } => {
                write!(f, "turn of {}: the reply is lost", Owner(instance))
            }
            Self::TurnDelayed { instance, park } => {
                let park = if park { ", with a park behind it" } else { "" };
                write!(f, "turn of {}: delayed{park}", Owner(instance))
            }
            Self::TurnArrives => write!(f, "the delayed turn arrives"),
            Self::MarksRead { instance } => write!(f, "{} reads the marks", Owner(instance)),
            Self::Publish { instance, place } => {
                write!(f, "{} publishes {}: OK", Owner(instance), At(place))
            }
            Self::PublishUnknown { instance, place } => {
                write!(f, "{} publishes {}: no answer", Owner(instance), At(place))
            }
            Self::PublishRefused { instance, place } => {
                write!(f, "{} publishes {}: refused", Owner(instance), At(place))
            }
            Self::PublishArrives { place } => write!(f, "nsqd gets {} after all", At(place)),
            Self::Park {
                instance,
                place,
                score,
            } => {
                write!(
                    f,
                    "{} parks {} at {}",
                    Owner(instance),
                    At(place),
                    Score(score)
                )
            }
            Self::ParkReplyLost {
                instance,
                place,
                score,
            } => write!(
                f,
                "{} parks {} at {}: the reply is lost",
                Owner(instance),
                At(place),
                Score(score)
            ),
            Self::Bury { instance, place } => {
                write!(
                    f,
                    "{} parks {} among the dead letters",
                    Owner(instance),
                    At(place)
                )
            }
            Self::Crash { instance } => write!(f, "{} crashes", Owner(instance)),
            Self::Expire => write!(f, "the claim expires"),
            Self::Replicate => write!(f, "the replica catches up"),
            Self::Failover => write!(f, "the replica takes over"),
        }
    }
}
