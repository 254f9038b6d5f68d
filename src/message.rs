//! What a message is made of, checked once at the door. Pure: no clock, no I/O, no Redis, no NSQ.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A moment on Redis's clock, in Unix milliseconds. Instances' own clocks never make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The latest moment that a pack's score can express exactly in a double: May 2109.
    pub const MAX: Self = Self((1 << 42) - 1);

    /// This moment plus `delay`, at most [`Self::MAX`].
    #[must_use]
    pub fn after(self, delay: Delay) -> Self {
        Self(self.0.saturating_add(delay.0).min(Self::MAX.0))
    }

    /// Milliseconds from `earlier` to this moment; 0 if `earlier` is later.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `ms` before this one, not before the epoch.
    #[must_use]
    pub fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// The moment `ms` after this one, at most [`Self::MAX`].
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        self.after(Delay(ms))
    }
}

impl fmt::Display for UnixMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long to wait before delivery, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Delay(pub u64);

/// When a message is due, as its producer said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Due {
    /// So long after the store has taken it.
    After(Delay),
    /// At this moment; one that has passed means now.
    At(UnixMs),
}

/// An NSQ topic name, checked once at the door against nsqd's own rule, so that what we accept nsqd
/// accepts later. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

/// The name is not one that nsqd would accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topic name is 1 to 64 of [.a-zA-Z0-9_-], optionally ending in #ephemeral")]
pub struct BadTopic;

impl TopicName {
    /// Longest name nsqd accepts, `#ephemeral` included.
    pub const LEN_MAX: usize = 64;
    const EPHEMERAL: &'static str = "#ephemeral";

    /// Checks `^[.a-zA-Z0-9_-]+(#ephemeral)?$`, 1 to 64 bytes.
    pub fn parse(name: &[u8]) -> Result<Self, BadTopic> {
        if name.is_empty() || name.len() > Self::LEN_MAX {
            return Err(BadTopic);
        }
        let text = str::from_utf8(name).map_err(|_not_utf8| BadTopic)?;
        let stem = text.strip_suffix(Self::EPHEMERAL).unwrap_or(text);
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if stem.is_empty() || !stem.bytes().all(legal) {
            return Err(BadTopic);
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// An id chosen by a producer: 1 to 128 bytes of printable ASCII without space, `/` and braces, and
/// not of the shape of a minted id ([`crate::id`]). Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Arc<str>);

/// The text cannot be a client's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadClientId {
    /// Empty, too long, or a character out of the allowed set.
    #[error("an id is 1 to 128 printable ASCII characters without space, /, {{ and }}")]
    Malformed,
    /// 40 characters of the alphabet of minted ids.
    #[error("an id of 40 characters of 0-9 and A-Z without I, L, O, U is reserved for minted ids")]
    Reserved,
}

impl ClientId {
    /// Longest id, in bytes.
    pub const LEN_MAX: usize = 128;

    /// Checks length, characters and that the shape is not that of a minted id.
    pub fn parse(id: &[u8]) -> Result<Self, BadClientId> {
        let legal = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'{' | b'}');
        if id.is_empty() || id.len() > Self::LEN_MAX || !id.iter().all(|b| legal(*b)) {
            return Err(BadClientId::Malformed);
        }
        if looks_minted(id) {
            return Err(BadClientId::Reserved);
        }
        let text = str::from_utf8(id).map_err(|_not_utf8| BadClientId::Malformed)?;
        Ok(Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Length of a minted id in characters.
pub const MINTED_ID_LEN: usize = 40;

/// Whether `id` has the shape of a minted id: 40 characters of Crockford's base 32.
pub fn looks_minted(id: &[u8]) -> bool {
    let digit = |b: &u8| {
        b.is_ascii_digit() || (b.is_ascii_uppercase() && !matches!(b, b'I' | b'L' | b'O' | b'U'))
    };
    id.len() == MINTED_ID_LEN && id.iter().all(digit)
}

/// A message as a door hands it to the store. Topic, size and delay have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where nsqd is to publish it.
    pub topic: TopicName,
    /// 1 byte to `max_msg_size`.
    pub body: Bytes,
    /// When.
    pub due: Due,
    /// The producer's own id, if it gave one.
    pub id: Option<ClientId>,
}
