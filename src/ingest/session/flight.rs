//! What a connection has asked and not been told yet: its commands are at the store together, their
//! answers come out in order. Knows nothing of sockets.

use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesOrdered, StreamExt as _};

use crate::id::{BadId, MessageId};
use crate::ingest::Intake;
use crate::ingest::access::{Access, Denied, Grants, Secret, Visitor, cancel_as};
use crate::ingest::budget::MESSAGE_OVERHEAD;
use crate::ingest::problem;
use crate::ingest::reply::{self, Asked};
use crate::message::{Due, Message, TopicName, looks_minted};
use crate::nsq::command::{Bodies, Command};
use crate::nsq::error_code::{ErrorCode, Refusal};
use crate::nsq::quote::quote;
use crate::store::{Cancel, Error, ErrorKind};

/// The answer to one command, or to several that went to the store together.
#[derive(Debug)]
pub(super) struct Answer {
    /// What it frees.
    load: Load,
    /// What to tell the client.
    pub(super) outcome: Outcome,
}

/// What to tell the client.
#[derive(Debug)]
pub(super) enum Outcome {
    /// `OK`, so many times; and what was stored, by topic.
    Accepted {
        commands: usize,
        messages: Vec<(TopicName, u64)>,
    },
    /// The store did not take so many messages.
    NotAccepted {
        kind: ErrorKind,
        messages: usize,
        refusal: Refusal,
    },
    /// The answer to CANCEL; a refusal unless it was cancelled.
    Cancel(Result<Cancel, ErrorKind>, Option<Refusal>),
    /// The body of a response.
    Response(Bytes),
    /// What an auth server grants.
    Asked(Result<Arc<Grants>, Denied>),
    /// What was not for the store.
    Refused(Refusal),
}

/// What commands take while they are in flight.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    commands: usize,
    bytes: usize,
    /// Publishes with the producer's own id.
    with_id: usize,
    /// CANCELs of such ids.
    cancels: usize,
}

/// Most commands of one connection in flight.
const COMMANDS_MAX: usize = 4096;
/// Most messages, and about the most bytes, that go to the store in one call, because they arrived
/// together. The store takes all or none of them; as the first error ends the connection, no client
/// can tell.
const GROUP_MESSAGES_MAX: usize = 512;
const GROUP_BYTES_MAX: usize = 256 * 1024;

/// The commands in flight.
#[derive(Debug)]
pub(super) struct Flight {
    intake: Intake,
    answers: FuturesOrdered<BoxFuture<'static, Answer>>,
    load: Load,
    /// Publishes that arrived together and have not been given to the store.
    group: Vec<Message>,
    group_load: Load,
    group_asked: Asked,
    /// Whether they go past the store. Those that do and those that do not have nothing in common.
    group_passes: bool,
}

impl Flight {
    pub(super) fn new(intake: Intake) -> Self {
        Self {
            intake,
            answers: FuturesOrdered::new(),
            load: Load::default(),
            group: Vec::new(),
            group_load: Load::default(),
            group_asked: Asked::Pub,
            group_passes: false,
        }
    }

    /// Whether all has been answered.
    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.group.is_empty()
    }

    /// Bytes of what is in flight, with what each message takes beside its body.
    pub(super) fn bytes(&self) -> usize {
        self.load.bytes
    }

    /// Whether there is room for another command, whatever its size.
    pub(super) fn admits(&self) -> bool {
        self.load.commands < COMMANDS_MAX
            && self.load.bytes < self.intake.config.connection_in_flight_bytes_max
    }

    /// Whether a CANCEL may go to the store now: not while a publish with an id is on its way there,
    /// which may be the one that it means. Who knows a minted id has had it from the store.
    pub(super) fn admits_cancel(&self, id: &[u8]) -> bool {
        self.load.with_id == 0 || looks_minted(id)
    }

    /// Whether a publish with an id may go to the store now: not while a CANCEL is on its way there,
    /// which must not take what was published after it.
    pub(super) fn admits_id(&self) -> bool {
        self.load.cancels == 0
    }

    /// One message without an id. Goes to the store with its neighbours, at the latest at
    /// [`Self::submit`].
    pub(super) fn publish_one(&mut self, asked: Asked, message: Message) {
        let passes = self.intake.passes(&message);
        if passes != self.group_passes {
            self.submit();
            self.group_passes = passes;
        }
        if self.group.is_empty() {
            self.group_asked = asked;
        }
        let load = Load {
            commands: 1,
            bytes: message.body.len() + MESSAGE_OVERHEAD,
            ..Load::default()
        };
        self.load.add(load);
        self.group_load.add(load);
        self.group.push(message);
        if self.group.len() >= GROUP_MESSAGES_MAX || self.group_load.bytes >= GROUP_BYTES_MAX {
            self.submit();
        }
    }

    /// The messages of one command, which are stored all or none.
    pub(super) fn publish_many(&mut self, asked: Asked, messages: Vec<Message>) {
        self.submit();
        let load = Load {
            commands: 1,
            bytes: messages
                .iter()
                .map(|message| message.body.len() + MESSAGE_OVERHEAD)
                .sum(),
            with_id: messages.iter().filter(|m| m.id.is_some()).count(),
            cancels: 0,
        };
        self.load.add(load);
        self.push_publish(asked, messages, load);
    }

    /// Gives the gathered publishes to the store.
    pub(super) fn submit(&mut self) {
        if self.group.is_empty() {
            return;
        }
        let messages = mem::take(&mut self.group);
        let load = mem::take(&mut self.group_load);
        self.push_publish(self.group_asked, messages, load);
    }

    /// What an auth server grants whoever knows `secret`.
    pub(super) fn ask(&mut self, access: Arc<Access>, secret: Secret, visitor: Visitor) {
        self.submit();
        let load = Load {
            commands: 1,
            ..Load::default()
        };
        self.load.add(load);
        self.answers.push_back(
            async move {
                let outcome = Outcome::Asked(access.ask(&secret, &visitor).await);
                Answer { load, outcome }
            }
            .boxed(),
        );
    }

    /// CANCEL of an id as the client gave it, as far as `grants` cover it; `None`: whatever it is.
    pub(super) fn cancel(&mut self, id: &[u8], grants: Option<Arc<Grants>>) {
        self.submit();
        let quoted = quote(id);
        let load = Load {
            commands: 1,
            // The answer repeats it, and waits here for a client that does not read.
            bytes: 2 * quoted.len() + MESSAGE_OVERHEAD,
            cancels: usize::from(!looks_minted(id)),
            with_id: 0,
        };
        self.load.add(load);
        let parsed = self.intake.store.parse_id(id);
        let intake = self.intake.clone();
        self.answers.push_back(
            async move {
                let (result, refusal) = cancel(&intake, parsed, &quoted, grants).await;
                let outcome = Outcome::Cancel(result, refusal);
                Answer { load, outcome }
            }
            .boxed(),
        );
    }

    /// What needs no store is answered in its turn.
    pub(super) fn respond(&mut self, outcome: Outcome) {
        self.submit();
        let load = Load {
            commands: 1,
            ..Load::default()
        };
        self.load.add(load);
        let answer = Answer { load, outcome };
        self.answers.push_back(async move { answer }.boxed());
    }

    /// The next answer, when it has come; never, if nothing is in flight. May be dropped at any
    /// await: the answer stays.
    pub(super) async fn next(&mut self) -> Answer {
        match self.answers.next().await {
            Some(answer) => {
                self.load.subtract(answer.load);
                answer
            }
            None => std::future::pending().await,
        }
    }

    /// Forgets all that is in flight. What was sent to the store may still take effect.
    pub(super) fn clear(&mut self) {
        self.answers = FuturesOrdered::new();
        self.group = Vec::new();
        self.load = Load::default();
        self.group_load = Load::default();
    }

    fn push_publish(&mut self, asked: Asked, messages: Vec<Message>, load: Load) {
        let intake = self.intake.clone();
        self.answers.push_back(
            async move {
                let count = messages.len();
                let stored = by_topic(&messages);
                let outcome = match intake.publish(messages).await {
                    Ok(_receipts) => Outcome::Accepted {
                        commands: load.commands,
                        messages: stored,
                    },
                    Err(error) => {
                        problem::log(&error);
                        Outcome::NotAccepted {
                            kind: error.kind,
                            messages: count,
                            refusal: reply::refusal(asked, error.kind),
                        }
                    }
                };
                Answer { load, outcome }
            }
            .boxed(),
        );
    }
}

impl Load {
    fn add(&mut self, other: Self) {
        self.commands += other.commands;
        self.bytes += other.bytes;
        self.with_id += other.with_id;
        self.cancels += other.cancels;
    }

    fn subtract(&mut self, other: Self) {
        self.commands = self.commands.saturating_sub(other.commands);
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.with_id = self.with_id.saturating_sub(other.with_id);
        self.cancels = self.cancels.saturating_sub(other.cancels);
    }
}

/// Of a publish: as what it is answered, its messages, and the bytes that they take on their way.
pub(super) fn cost(command: &Command) -> Option<(Asked, usize, usize)> {
    let (asked, messages, bytes) = match command {
        Command::Pub { body, .. } => (Asked::Pub, 1, body.len()),
        Command::Dpub { body, .. } => (Asked::Dpub, 1, body.len()),
        Command::Mpub { bodies, .. } => (Asked::Mpub, bodies.count(), bodies.wire_len()),
        Command::Mdpub { bodies, .. } => (Asked::Mdpub, bodies.count(), bodies.wire_len()),
        Command::Identify(_)
        | Command::Auth(_)
        | Command::Ahead { .. }
        | Command::Cancel(_)
        | Command::Nop => return None,
    };
    Some((asked, messages, bytes + messages * MESSAGE_OVERHEAD))
}

/// The messages of an MPUB.
pub(super) fn messages(topic: &TopicName, due: Due, bodies: &Bodies) -> Vec<Message> {
    let message = |body| Message {
        topic: topic.clone(),
        body,
        due,
        id: None,
    };
    bodies.iter().map(message).collect()
}

/// Counts neighbours of the same topic together.
fn by_topic(messages: &[Message]) -> Vec<(TopicName, u64)> {
    let mut counts: Vec<(TopicName, u64)> = Vec::new();
    for message in messages {
        match counts.last_mut() {
            Some((topic, count)) if *topic == message.topic => *count += 1,
            _ => counts.push((message.topic.clone(), 1)),
        }
    }
    counts
}

/// An id that cannot be any message's is not found, without asking the store.
async fn cancel(
    intake: &Intake,
    id: Result<MessageId, BadId>,
    quoted: &str,
    grants: Option<Arc<Grants>>,
) -> (Result<Cancel, ErrorKind>, Option<Refusal>) {
    let result = match id {
        Err(_no_messages_id) => Ok(Cancel::NotFound),
        Ok(id) => match ask_to_cancel(intake, id, grants).await {
            Ok(answers) => answers.first().copied().ok_or(ErrorKind::Corrupt),
            Err(error) => {
                problem::log(&error);
                Err(error.kind)
            }
        },
    };
    let refuse = |code, why: &str| Some(Refusal::new(code, format!("CANCEL {quoted} {why}")));
    let refusal = match result {
        Ok(Cancel::Cancelled) => None,
        Ok(Cancel::InFlight) => refuse(ErrorCode::InFlight, "is on its way to nsqd"),
        Ok(Cancel::NotFound) => refuse(ErrorCode::NotFound, "was delivered or never existed"),
        Ok(Cancel::Dead) => refuse(ErrorCode::NotFound, "is a dead letter, drop it over /v1"),
        Err(kind) => Some(reply::refusal(Asked::Cancel, kind)),
    };
    (result, refusal)
}

async fn ask_to_cancel(
    intake: &Intake,
    id: MessageId,
    grants: Option<Arc<Grants>>,
) -> Result<Vec<Cancel>, Error> {
    match grants {
        None => intake.store.cancel(vec![id]).await,
        Some(grants) => cancel_as(&*intake.store, &grants, vec![id]).await,
    }
}
