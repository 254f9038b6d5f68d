//! NSQ's wire, both directions: frames, commands, error codes, IDENTIFY. Pure: bytes in, values out;
//! no sockets, no clock, no tokio. The doors decode commands and encode frames; forwarding and the
//! tests encode commands and decode frames.

pub mod command;
pub mod consumption;
pub mod decoder;
mod delay;
pub mod error_code;
pub mod frame;
mod go_json;
pub mod identify;
pub mod mpub;
pub mod quote;

/// The version of nsqd whose protocol this is, and that IDENTIFY's answer names.
pub const NSQD_VERSION: &str = "1.3.0";

/// What a client sends first.
pub const MAGIC: &[u8; 4] = b"  V2";
