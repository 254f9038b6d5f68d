//! nsqd's error codes, and a refusal: the code and the text of one error frame. Pure.

use std::fmt;

use bytes::BytesMut;

use super::frame::{self, FrameType};

/// The first word of an error frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The first four bytes are not those of protocol V2.
    BadProtocol,
    /// A command that is unknown, or has wrong parameters, or has no place here.
    Invalid,
    /// A topic that nsqd does not accept.
    BadTopic,
    /// A message of invalid size, or cut off.
    BadMessage,
    /// The body of IDENTIFY, AUTH or MPUB is of invalid size, or cut off, or says something invalid.
    BadBody,
    /// What IDENTIFY asked for could not be done.
    IdentifyFailed,
    /// AUTH, where none is asked for.
    AuthDisabled,
    /// A command that needs AUTH first.
    AuthFirst,
    /// Who it is could not be found out.
    AuthFailed,
    /// Who it is may not do this.
    Unauthorized,
    /// The store did not take the message of a PUB.
    PubFailed,
    /// The store did not take the messages of an MPUB.
    MpubFailed,
    /// The store did not take the messages of a DPUB or MDPUB.
    DpubFailed,
    /// Ours: the id of a DPUB is taken by a message with other content, or was cancelled.
    Conflict,
    /// Ours, of CANCEL: there is no message with this id, or no longer.
    NotFound,
    /// Ours, of CANCEL: the message is, or may be, on its way to nsqd.
    InFlight,
    /// Ours, of CANCEL: the store did not do it.
    CancelFailed,
}

impl ErrorCode {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadProtocol => "E_BAD_PROTOCOL",
            Self::Invalid => "E_INVALID",
            Self::BadTopic => "E_BAD_TOPIC",
            Self::BadMessage => "E_BAD_MESSAGE",
            Self::BadBody => "E_BAD_BODY",
            Self::IdentifyFailed => "E_IDENTIFY_FAILED",
            Self::AuthDisabled => "E_AUTH_DISABLED",
            Self::AuthFirst => "E_AUTH_FIRST",
            Self::AuthFailed => "E_AUTH_FAILED",
            Self::Unauthorized => "E_UNAUTHORIZED",
            Self::PubFailed => "E_PUB_FAILED",
            Self::MpubFailed => "E_MPUB_FAILED",
            Self::DpubFailed => "E_DPUB_FAILED",
            Self::Conflict => "E_CONFLICT",
            Self::NotFound => "E_NOT_FOUND",
            Self::InFlight => "E_IN_FLIGHT",
            Self::CancelFailed => "E_CANCEL_FAILED",
        }
    }

    /// Whether it is about who may do what.
    pub fn is_of_auth(self) -> bool {
        matches!(
            self,
            Self::AuthFirst | Self::AuthFailed | Self::Unauthorized
        )
    }

    /// Whether the connection is closed after it. All that a producer can get from nsqd is fatal;
    /// the answers to CANCEL are not, as those to FIN are not.
    pub fn is_fatal(self) -> bool {
        !matches!(self, Self::NotFound | Self::InFlight | Self::CancelFailed)
    }
}

/// One error, as the client will see it.
#[derive(Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The first word.
    pub code: ErrorCode,
    /// What follows it. Bytes: nsqd repeats what the client sent, whatever it is.
    pub text: Vec<u8>,
    /// Whether it is for being over a limit on sizes. For the metrics.
    pub too_big: bool,
}

impl Refusal {
    /// A refusal with this text.
    pub fn new(code: ErrorCode, text: impl Into<Vec<u8>>) -> Self {
        Self {
            code,
            text: text.into(),
            too_big: false,
        }
    }

    /// The refusal of something over a limit on sizes.
    pub fn too_big(code: ErrorCode, text: impl Into<Vec<u8>>) -> Self {
        Self {
            too_big: true,
            ..Self::new(code, text)
        }
    }

    /// Appends the error frame to `buffer`.
    pub fn encode(&self, buffer: &mut BytesMut) {
        let mut body = self.code.as_str().as_bytes().to_vec();
        // Of the wrong magic nsqd says nothing more; after any other code there is a space, even
        // before nothing.
        if self.code != ErrorCode::BadProtocol {
            body.push(b' ');
            body.extend_from_slice(&self.text);
        }
        frame::encode(FrameType::Error, &body, buffer);
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.code.as_str(),
            String::from_utf8_lossy(&self.text)
        )
    }
}
