//! What an examination of somebody else's server finds: how bad, what, why it matters, what to change.
//! Pure; knows no server.

use serde::Serialize;
use serde_json::{Map, Value};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Remark,
    /// Works, and may lose or delay messages under conditions that the finding names.
    Warning,
    /// Does not work, or loses messages.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at: a name that stays the same over versions.
    pub check: &'static str,
    /// What is so.
    pub what: String,
    /// What follows from it. Empty if nothing does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What to change. Empty if nothing has to be.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// What was measured or read, by name with its unit.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub numbers: Map<String, Value>,
}

impl Finding {
    /// A finding from which nothing follows.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            check,
            what: what.into(),
            why: String::new(),
            remedy: String::new(),
            numbers: Map::new(),
        }
    }

    /// A finding with consequences.
    pub fn new(
        level: Level,
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level,
            why: why.into(),
            remedy: remedy.into(),
            ..Self::ok(check, what)
        }
    }

    /// The same with a number.
    #[must_use]
    pub fn number(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.numbers.insert(name.to_owned(), value.into());
        self
    }
}
