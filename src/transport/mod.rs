//! What NSQ's protocol may be carried in: TLS, and over it or without it snappy or deflate. For both
//! sides, those who accept and those who dial. Knows bytes, not frames and commands.

mod certificate;
mod deflate;
mod halves;
mod snappy;
pub mod tls;

pub use halves::{Incoming, Outgoing, plain, tls as in_tls, unite};

/// A compression that both sides have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Snappy's framing format.
    Snappy,
    /// Raw deflate, written with this level, 1 to 9.
    Deflate(u32),
}
