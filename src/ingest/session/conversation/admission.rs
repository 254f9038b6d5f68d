//! AUTH on one connection, as nsqd does it: what was granted, when it must be asked for again, and what
//! is refused without.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tracing::warn;

use super::Conversation;
use crate::ingest::access::{Access, Denied, Grants, Role, Secret, Visitor};
use crate::ingest::session::flight::Outcome;
use crate::message::TopicName;
use crate::nsq::command::Command;
use crate::nsq::error_code::{ErrorCode, Refusal};
use crate::nsq::quote::quote;

/// What is known of who speaks.
#[derive(Debug)]
pub(super) struct Admission {
    access: Option<Arc<Access>>,
    visitor: Visitor,
    secret: Option<Secret>,
    grants: Option<Arc<Grants>>,
    question: Question,
    /// A heartbeat was left out for a client that may be about to AUTH.
    beat_held: bool,
}

/// What an auth server is asked at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    None,
    /// By AUTH, whose answer is the client's.
    First,
    /// Because what was granted has expired.
    Again,
}

/// Whether a command may be carried out.
#[derive(Debug)]
pub(super) enum Permit {
    Yes,
    /// An auth server is asked first.
    Wait,
    No(Refusal),
}

impl Admission {
    pub(super) fn new(access: Option<Arc<Access>>, remote_ip: IpAddr) -> Self {
        Self {
            access,
            visitor: Visitor {
                remote_ip,
                tls: false,
                common_name: String::new(),
            },
            secret: None,
            grants: None,
            question: Question::None,
            beat_held: false,
        }
    }

    /// Whether AUTH must come before anything is published.
    pub(super) fn is_required(&self) -> bool {
        self.access.is_some()
    }

    /// Whether the client waits, or may be about to wait, for the answer to AUTH: a heartbeat would be
    /// taken for it. One who has not begun in an interval is not waited for.
    pub(super) fn holds_beat(&mut self, has_begun: bool) -> bool {
        if !self.is_required() {
            return false;
        }
        if self.question == Question::First || has_begun {
            return true;
        }
        self.grants.is_none() && !std::mem::replace(&mut self.beat_held, true)
    }

    /// The connection is in TLS from here on.
    pub(super) fn set_tls(&mut self, common_name: String) {
        self.visitor.tls = true;
        self.visitor.common_name = common_name;
    }

    /// What CANCEL is held to; `None`: to nothing.
    pub(super) fn grants(&self) -> Option<Arc<Grants>> {
        self.grants.clone()
    }

    fn granted(&self) -> Option<&Grants> {
        self.grants.as_deref().filter(|grants| grants.count > 0)
    }
}

/// What a command does to which topic; `None`: nothing that needs leave.
fn deed(command: &Command) -> Option<(&'static str, Option<&TopicName>)> {
    match command {
        Command::Pub { topic, .. } => Some(("PUB", Some(topic))),
        Command::Dpub { topic, .. } => Some(("DPUB", Some(topic))),
        Command::Ahead { name, topic } => Some((name, Some(topic))),
        Command::Cancel(_) => Some(("CANCEL", None)),
        // MPUB was looked at when its line came.
        Command::Mpub { .. }
        | Command::Mdpub { .. }
        | Command::Identify(_)
        | Command::Auth(_)
        | Command::Nop => None,
    }
}

impl Conversation {
    /// Whether `command` may be carried out; asks an auth server again when what it granted has expired.
    pub(super) fn permit(&mut self, command: &Command) -> Permit {
        let admission = &self.admission;
        if admission.question != Question::None {
            return Permit::Wait;
        }
        let Some((name, topic)) = deed(command).filter(|_| admission.is_required()) else {
            return Permit::Yes;
        };
        let Some(grants) = admission.granted() else {
            let text = format!("AUTH required before {name}");
            return Permit::No(Refusal::new(ErrorCode::AuthFirst, text));
        };
        if grants.is_expired() {
            self.ask(Question::Again);
            return Permit::Wait;
        }
        let (may, what) = match topic {
            Some(topic) => {
                let what = format!(" on {} \"\"", quote(topic.as_str().as_bytes()));
                (grants.may(Role::Publish, topic), what)
            }
            None => (grants.may_somewhere(Role::Cancel), String::new()),
        };
        if may {
            return Permit::Yes;
        }
        let text = format!("AUTH failed for {name}{what}");
        Permit::No(Refusal::new(ErrorCode::Unauthorized, text))
    }

    /// AUTH, in nsqd's order of checks.
    pub(super) fn auth(&mut self, secret: &Bytes) {
        let refused = |code, text: &str| Refusal::new(code, text.as_bytes());
        if self.admission.granted().is_some() {
            return self.refuse(refused(ErrorCode::Invalid, "AUTH already set"));
        }
        if !self.admission.is_required() {
            return self.refuse(refused(ErrorCode::AuthDisabled, "AUTH disabled"));
        }
        self.admission.secret = Some(Secret(secret.to_vec()));
        self.ask(Question::First);
    }

    fn ask(&mut self, question: Question) {
        let admission = &mut self.admission;
        if let (Some(access), Some(secret)) = (&admission.access, &admission.secret) {
            admission.question = question;
            self.flight.ask(
                Arc::clone(access),
                secret.clone(),
                admission.visitor.clone(),
            );
        }
    }

    /// An auth server has answered.
    pub(super) fn asked(&mut self, result: Result<Arc<Grants>, Denied>) {
        let question = std::mem::replace(&mut self.admission.question, Question::None);
        let grants = match result {
            Ok(grants) => grants,
            Err(why) => {
                // Who is not let in is not told what the server said.
                warn!(ip = %self.admission.visitor.remote_ip, %why, "AUTH failed");
                let text = "AUTH failed".as_bytes();
                return self.tell(Outcome::Refused(Refusal::new(ErrorCode::AuthFailed, text)));
            }
        };
        self.desk.clients.update(self.number, |stats| {
            stats.identity = Some((grants.identity.clone(), grants.identity_url.clone()));
        });
        let response = response(&grants);
        let none = grants.count == 0;
        self.admission.grants = Some(grants);
        match question {
            Question::First if none => {
                let text = "AUTH no authorizations found".as_bytes();
                self.tell(Outcome::Refused(Refusal::new(
                    ErrorCode::Unauthorized,
                    text,
                )));
            }
            Question::First => self.tell(Outcome::Response(response)),
            Question::Again | Question::None => {}
        }
    }
}

/// nsqd's answer to AUTH.
fn response(grants: &Grants) -> Bytes {
    #[derive(Debug, Serialize)]
    struct Response<'a> {
        identity: &'a str,
        identity_url: &'a str,
        permission_count: usize,
    }
    let response = Response {
        identity: &grants.identity,
        identity_url: &grants.identity_url,
        permission_count: grants.count,
    };
    let text = serde_json::to_string(&response).unwrap_or_default();
    Bytes::from(crate::ingest::nsqd_http::go_json(text))
}
