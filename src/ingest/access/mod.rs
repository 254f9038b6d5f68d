//! Who may do what, for all doors: what auth servers and the tokens file grant, and whether somebody's
//! grants cover a deed on a topic. Knows nothing of sockets and requests.

mod authd;
mod go_regexp;
mod guard;
mod origin;
mod tokens;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use regex::Regex;
use tokio::time::Instant;

pub use authd::{AuthServer, Authd, BadAuthServer};
pub(super) use guard::{CALLER, Guarded, cancel_as, may_know, may_publish};
pub(super) use origin::Alien;
pub use origin::Hosts;
pub use tokens::{BadTokens, Tokens};

use crate::message::TopicName;

/// What somebody may do with the messages of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Send and schedule.
    Publish,
    /// See that there are messages, when they are due and how long they are.
    ReadMetadata,
    /// See what they say.
    ReadBodies,
    /// Take them back.
    Cancel,
    /// All of it, and give dead letters back or drop them.
    Admin,
}

impl Role {
    /// All of them, with the names that files use.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Publish, "publish"),
        (Self::ReadMetadata, "read_metadata"),
        (Self::ReadBodies, "read_bodies"),
        (Self::Cancel, "cancel"),
        (Self::Admin, "admin"),
    ];

    /// Whether who has this may do what `wanted` allows: who may read or take back may also look.
    fn covers(self, wanted: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::ReadBodies | Self::Cancel => wanted == self || wanted == Self::ReadMetadata,
            Self::Publish | Self::ReadMetadata => wanted == self,
        }
    }
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Roles on the topics that a pattern names.
#[derive(Debug, Clone)]
struct Grant {
    roles: Vec<Role>,
    /// `None`: all.
    topics: Option<Regex>,
}

/// What one client may do, and for how long that is known.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    /// Who it is.
    pub identity: String,
    /// Where more is said of it.
    pub identity_url: String,
    /// How many authorizations there are; none means that it may do nothing.
    pub count: usize,
    rules: Vec<Grant>,
    /// `None`: as long as we run.
    expires: Option<Instant>,
}

impl Grants {
    /// Whether it may do this with the messages of `topic`.
    pub fn may(&self, role: Role, topic: &TopicName) -> bool {
        self.rules.iter().any(|grant| {
            let topics = grant.topics.as_ref();
            grant.roles.iter().any(|has| has.covers(role))
                && topics.is_none_or(|topics| topics.is_match(topic.as_str()))
        })
    }

    /// Whether it may do this with some topic.
    pub fn may_somewhere(&self, role: Role) -> bool {
        let mut roles = self.rules.iter().flat_map(|grant| &grant.roles);
        roles.any(|has| has.covers(role))
    }

    /// Whether it may do this with every topic.
    pub fn may_everywhere(&self, role: Role) -> bool {
        self.rules
            .iter()
            .any(|grant| grant.topics.is_none() && grant.roles.iter().any(|has| has.covers(role)))
    }

    /// Whether it must be asked for again.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|at| at < Instant::now())
    }
}

/// From where, and how, somebody shows a secret. Auth servers are told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Visitor {
    /// Of the connection.
    pub remote_ip: IpAddr,
    /// Whether it is in TLS.
    pub tls: bool,
    /// Of its certificate; empty without one.
    pub common_name: String,
}

/// Why a secret opens nothing.
#[derive(Debug)]
pub enum Denied {
    /// It is not known, or the auth server says no.
    Refused(String),
    /// No auth server gave an answer that can be used.
    Unavailable(String),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) | Self::Unavailable(why) => f.write_str(why),
        }
    }
}

/// Most grants that are kept for HTTP, whose requests show their secret each time.
const KEPT_MAX: usize = 1024;

/// Who is asked. Without one, everybody may do everything.
#[derive(Debug)]
pub struct Access {
    authd: Option<Authd>,
    tokens: Tokens,
    /// Of HTTP requests, until they expire.
    kept: Mutex<HashMap<(Secret, Visitor), Arc<Grants>>>,
}

impl Access {
    /// `None`: neither is configured.
    pub fn new(authd: Option<Authd>, tokens: Tokens) -> Option<Self> {
        let any = authd.is_some() || !tokens.is_empty();
        any.then(|| Self {
            authd,
            tokens,
            kept: Mutex::default(),
        })
    }

    /// What a secret grants, asked anew.
    pub async fn ask(&self, secret: &Secret, visitor: &Visitor) -> Result<Arc<Grants>, Denied> {
        if let Some(grants) = self.tokens.find(secret) {
            return Ok(grants);
        }
        match &self.authd {
            Some(authd) => authd.query(secret, visitor).await.map(Arc::new),
            None => Err(Denied::Refused("no such token".to_owned())),
        }
    }

    /// The same, or what was answered before and has not expired.
    pub async fn ask_again(
        &self,
        secret: &Secret,
        visitor: &Visitor,
    ) -> Result<Arc<Grants>, Denied> {
        if let Some(grants) = self.tokens.find(secret) {
            return Ok(grants);
        }
        let key = (secret.clone(), visitor.clone());
        let known = self.kept().get(&key).filter(|g| !g.is_expired()).cloned();
        if let Some(grants) = known {
            return Ok(grants);
        }
        let grants = self.ask(secret, visitor).await?;
        let mut kept = self.kept();
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, grants| !grants.is_expired());
        }
        if kept.len() < KEPT_MAX {
            kept.insert(key, Arc::clone(&grants));
        }
        Ok(grants)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<(Secret, Visitor), Arc<Grants>>> {
        // Entries are put and taken whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
