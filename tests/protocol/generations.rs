//! Two generations, each of one shard, and one message: R10. Two producers create it with the same
//! client id, or one producer without an id, while the number of shards changes. What an owner does within one shard is the other
//! model's: here, a generation that is alive delivers what it has, sometime.

use std::fmt;

use crate::rules::{Off, Rule};
use crate::search::Model;

/// The old generation and the new one.
const GENERATIONS: usize = 2;
const OLD: usize = 0;
const NEW: usize = 1;

/// What a generation has under the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Entry {
    Nothing,
    Scheduled,
    Cancelled,
    Delivered,
}

/// One shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shard {
    entry: Entry,
    closed: bool,
    /// Found empty and taken off the topology: no owner looks at it any more.
    retired: bool,
}

/// A producer that creates the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Producer {
    /// Whether its instance has heard of the new generation.
    knows_new: bool,
    /// An attempt in the old generation that nobody answered.
    unanswered: bool,
    /// That attempt has not arrived yet.
    under_way: bool,
    at: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Creating,
    /// The old generation has been asked, and did not have the id.
    LookedUp,
    /// Of a minted id: the generation that the id names.
    Acknowledged(usize),
    /// Told: cancelled, or nobody knows.
    Ended,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    shards: [Shard; GENERATIONS],
    producers: [Producer; 2],
    published: bool,
    cancelled: bool,
    broken: Option<&'static str>,
    delays: u8,
}

/// One step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Publish,
    Close,
    Retire,
    Learn {
        producer: usize,
    },
    Insert {
        producer: usize,
        generation: usize,
        answer: Answer,
    },
    InsertReplyLost {
        producer: usize,
    },
    InsertDelayed {
        producer: usize,
    },
    InsertArrives {
        producer: usize,
        answer: Answer,
    },
    LookUp {
        producer: usize,
        answer: Answer,
    },
    Cancel {
        generation: usize,
    },
    Deliver {
        generation: usize,
    },
}

/// The answer to an insert or a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    Exists,
    Cancelled,
    Closed,
    Absent,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |generation| if generation == OLD { "old" } else { "new" };
        match *self {
            Self::Publish => f.write_str("the new topology is published"),
            Self::Close => f.write_str("the old generation is closed"),
            Self::Retire => f.write_str("the old generation is empty, and retired"),
            Self::Learn { producer } => write!(f, "{producer} hears of the new topology"),
            Self::Insert {
                producer,
                generation,
                answer,
            } => {
                write!(
                    f,
                    "{producer} inserts in the {} generation: {answer:?}",
                    name(generation)
                )
            }
            Self::InsertReplyLost { producer } => {
                write!(
                    f,
                    "{producer} inserts in the old generation: the reply is lost"
                )
            }
            Self::InsertDelayed { producer } => {
                write!(f, "{producer} inserts in the old generation: delayed")
            }
            Self::InsertArrives { producer, answer } => {
                write!(f, "the delayed insert of {producer} arrives: {answer:?}")
            }
            Self::LookUp { producer, answer } => {
                write!(
                    f,
                    "{producer} looks the id up in the old generation: {answer:?}"
                )
            }
            Self::Cancel { generation } => {
                write!(
                    f,
                    "cancel in the {} generation: cancelled",
                    name(generation)
                )
            }
            Self::Deliver { generation } => {
                write!(f, "the {} generation delivers", name(generation))
            }
        }
    }
}

/// The model, and what is left out of it.
#[derive(Clone, Copy)]
pub(crate) struct Generations {
    /// The id is minted: nothing is looked up, and the same request in another generation is another
    /// message.
    pub(crate) minted: bool,
    pub(crate) off: Off,
}

type Steps = Vec<(Step, State)>;

impl Shard {
    /// insert.lua with a client id, for what concerns generations.
    fn insert(&mut self) -> Answer {
        if self.closed {
            return Answer::Closed;
        }
        match self.entry {
            Entry::Nothing => {
                self.entry = Entry::Scheduled;
                Answer::Ok
            }
            Entry::Scheduled | Entry::Delivered => Answer::Exists,
            Entry::Cancelled => Answer::Cancelled,
        }
    }

    /// The look-up of an id in an older generation, which closes it there.
    fn look_up(&mut self, closes: bool) -> Answer {
        self.closed |= closes;
        match self.entry {
            Entry::Nothing => Answer::Absent,
            Entry::Scheduled | Entry::Delivered => Answer::Exists,
            Entry::Cancelled => Answer::Cancelled,
        }
    }
}

impl Generations {
    fn topology_steps(self, state: &State, out: &mut Steps) {
        if !state.published {
            let mut after = *state;
            after.published = true;
            out.push((Step::Publish, after));
        }
        if state.published && !state.shards[OLD].closed && !state.shards[OLD].retired {
            let mut after = *state;
            after.shards[OLD].closed = true;
            out.push((Step::Close, after));
        }
        let tombstones = self.off.keeps(Rule::TombstonesCount);
        let empty = match state.shards[OLD].entry {
            Entry::Nothing => true,
            // Ids are remembered for longer than this model lasts.
            Entry::Cancelled => !tombstones,
            Entry::Delivered | Entry::Scheduled => false,
        };
        if state.shards[OLD].closed && !state.shards[OLD].retired && empty {
            let mut after = *state;
            let closed = self.off.keeps(Rule::ClosedForEver);
            after.shards[OLD] = Shard {
                entry: Entry::Nothing,
                closed,
                retired: true,
            };
            out.push((Step::Retire, after));
        }
    }

    fn producer_steps(self, state: &State, producer: usize, out: &mut Steps) {
        let me = state.producers[producer];
        if state.published && !me.knows_new {
            let mut after = *state;
            after.producers[producer].knows_new = true;
            out.push((Step::Learn { producer }, after));
        }
        if me.under_way {
            let mut after = *state;
            after.producers[producer].under_way = false;
            let answer = after.shards[OLD].insert();
            out.push((Step::InsertArrives { producer, answer }, after));
        }
        match me.at {
            Stage::Creating if !me.knows_new => self.old_insert(state, producer, out),
            Stage::Creating if self.minted => {
                let mut after = *state;
                let redo = !me.unanswered || !self.off.keeps(Rule::RedoOnlyAnswered);
                after.producers[producer].at = if redo { Stage::LookedUp } else { Stage::Ended };
                out.push((
                    Step::LookUp {
                        producer,
                        answer: Answer::Absent,
                    },
                    after,
                ));
            }
            Stage::Creating => {
                let mut after = *state;
                // What is retired has nothing, and is not asked.
                let answer = if state.shards[OLD].retired {
                    Answer::Absent
                } else {
                    after.shards[OLD].look_up(self.off.keeps(Rule::LookUpCloses))
                };
                let redo = !me.unanswered || !self.off.keeps(Rule::RedoOnlyAnswered);
                after.producers[producer].at = match answer {
                    Answer::Absent if redo => Stage::LookedUp,
                    answer => stage(answer, OLD),
                };
                out.push((Step::LookUp { producer, answer }, after));
            }
            Stage::LookedUp => {
                let mut after = *state;
                let answer = after.shards[NEW].insert();
                after.producers[producer].at = stage(answer, NEW);
                out.push((
                    Step::Insert {
                        producer,
                        generation: NEW,
                        answer,
                    },
                    after,
                ));
            }
            Stage::Acknowledged(_) | Stage::Ended => {}
        }
    }

    fn old_insert(self, state: &State, producer: usize, out: &mut Steps) {
        let mut after = *state;
        let answer = after.shards[OLD].insert();
        let me = &mut after.producers[producer];
        match answer {
            // The reply says that there is a newer topology; the outcome of an earlier attempt,
            // if there was one, stays unknown.
            Answer::Closed if !me.unanswered || !self.off.keeps(Rule::RedoOnlyAnswered) => {
                me.knows_new = true;
            }
            answer => me.at = stage(answer, OLD),
        }
        out.push((
            Step::Insert {
                producer,
                generation: OLD,
                answer,
            },
            after,
        ));
        if state.delays > 0 && !state.producers[producer].unanswered {
            let mut lost = *state;
            lost.delays -= 1;
            lost.producers[producer].unanswered = true;
            let mut delayed = lost;
            lost.shards[OLD].insert();
            out.push((Step::InsertReplyLost { producer }, lost));
            delayed.producers[producer].under_way = true;
            out.push((Step::InsertDelayed { producer }, delayed));
        }
    }

    fn message_steps(self, state: &State, out: &mut Steps) {
        // A cancel asks the generations oldest first, and takes the first that has the id; a minted
        // id names its generation.
        let holder = (0..GENERATIONS)
            .filter(|generation| !state.shards[*generation].retired)
            .filter(|generation| {
                !self.minted || state.producers[0].at == Stage::Acknowledged(*generation)
            })
            .find(|generation| state.shards[*generation].entry != Entry::Nothing);
        if let Some(generation) = holder
            && state.shards[generation].entry == Entry::Scheduled
        {
            let mut after = *state;
            after.shards[generation].entry = Entry::Cancelled;
            after.cancelled = true;
            if state
                .shards
                .iter()
                .any(|shard| shard.entry == Entry::Delivered)
            {
                after.broken = Some("cancelled with success, though it was delivered");
            }
            out.push((Step::Cancel { generation }, after));
        }
        for generation in 0..GENERATIONS {
            let shard = state.shards[generation];
            if shard.entry != Entry::Scheduled || shard.retired {
                continue;
            }
            let mut after = *state;
            after.shards[generation].entry = Entry::Delivered;
            if state.cancelled {
                after.broken = Some("delivered, though its cancel had succeeded");
            } else if state.shards[1 - generation].entry == Entry::Delivered {
                after.broken = Some("delivered twice without a fault of delivery");
            }
            out.push((Step::Deliver { generation }, after));
        }
    }
}

fn stage(answer: Answer, generation: usize) -> Stage {
    match answer {
        Answer::Ok | Answer::Exists => Stage::Acknowledged(generation),
        Answer::Cancelled | Answer::Closed | Answer::Absent => Stage::Ended,
    }
}

impl Model for Generations {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        let shard = Shard {
            entry: Entry::Nothing,
            closed: false,
            retired: false,
        };
        let producer = Producer {
            knows_new: false,
            unanswered: false,
            under_way: false,
            at: Stage::Creating,
        };
        State {
            shards: [shard; GENERATIONS],
            producers: [producer; 2],
            published: false,
            cancelled: false,
            broken: None,
            delays: 2,
        }
    }

    fn steps(&self, state: &State, out: &mut Steps) {
        self.topology_steps(state, out);
        for producer in 0..if self.minted { 1 } else { 2 } {
            self.producer_steps(state, producer, out);
        }
        self.message_steps(state, out);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let acknowledged = state
            .producers
            .iter()
            .any(|p| matches!(p.at, Stage::Acknowledged(_)));
        let kept = state.shards.iter().any(|shard| match shard.entry {
            Entry::Scheduled => !shard.retired,
            Entry::Delivered => true,
            Entry::Nothing | Entry::Cancelled => false,
        });
        let gone = acknowledged && !state.cancelled && !kept;
        state
            .broken
            .or(gone.then_some("an acknowledged message is gone"))
    }
}
