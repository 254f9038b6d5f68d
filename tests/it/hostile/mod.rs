//! Hostile clients at the doors of a real instance: each gets the very answer that the contract has for
//! it, those who behave notice nothing, and memory stays under a ceiling all the while.

mod documents;
mod http;
mod http_memory;
mod ids;
mod others;
mod tcp;
mod tcp_memory;

use std::io::Read as _;
use std::net::{Shutdown, TcpStream};

use others::Others;

use crate::support::app::{App, Builder};
use crate::support::nsqd::Nsqd;
use crate::support::producer::{ERROR, Producer};
use crate::support::redis::Redis;
use crate::support::wait;

/// The defaults of the configuration, which these tests leave as they are.
const MAX_MSG_SIZE: usize = 1_048_576;
const MAX_BODY_SIZE: usize = 5_242_880;
const MAX_DELAY: u64 = 315_360_000_000;

const MIB: u64 = 1024 * 1024;
/// What all requests together may hold, and a quarter for buffers that are moved as they grow.
const IN_FLIGHT: u64 = 256 * MIB * 5 / 4;
/// What an instance needs by itself, rounded up three times.
const AT_REST: u64 = 32 * MIB;

/// An instance, and two clients who connected before anybody meant ill.
struct Siege {
    others: Others,
    app: App,
    nsqd: Nsqd,
    redis: Redis,
}

impl Siege {
    fn begin() -> Self {
        Self::begin_with(|builder| builder)
    }

    fn begin_with(change: impl FnOnce(Builder) -> Builder) -> Self {
        let (redis, nsqd) = (Redis::start(), Nsqd::start());
        // A machine that is busy with other tests is no failure of Redis.
        let builder = App::builder()
            .redis(&redis)
            .nsqd(&nsqd)
            .flag("--request-timeout", "60s");
        let app = change(builder).start();
        let siege = Self {
            others: Others::start(&app),
            app,
            nsqd,
            redis,
        };
        siege.others_are_served("at the beginning");
        siege
    }

    /// The well-behaved connections have worked all the time, and do so now.
    #[track_caller]
    fn others_are_served(&self, after: &str) {
        // One round may be under way: the next begins after this moment.
        let wanted = self.others.rounds() + 2;
        wait::until(&format!("others to be served after {after:.200}"), || {
            self.others.rounds() >= wanted || self.others.has_failed()
        });
        assert!(!self.others.has_failed(), "others failed: {after:.200}");
    }

    /// The most that the process has ever had in memory is under `ceiling`.
    #[track_caller]
    fn memory_was_under(&self, ceiling: u64) {
        let peak = self.app.child().resident_peak_bytes();
        eprintln!("peak {} MiB of {} MiB", peak / MIB, ceiling / MIB);
        assert!(peak < ceiling, "{peak} bytes; the ceiling is {ceiling}");
    }
}

/// Whether a client closes its half after sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It says that there is no more.
    Closes,
    /// It says nothing: the server closes.
    Waits,
}

/// Sends `bytes` on a connection of its own and reads until the server closes: each response as it
/// is, each error behind `!`.
fn frames(address: &str, bytes: &[u8], then: Then) -> Vec<String> {
    let mut client = Producer::try_connect_raw(address).unwrap();
    client.send(bytes).unwrap();
    if then == Then::Closes {
        client.half_close();
    }
    let mut frames = Vec::new();
    while let Ok(frame) = client.read() {
        let sign = if frame.kind == ERROR { "!" } else { "" };
        frames.push(format!("{sign}{}", show(&frame.payload)));
    }
    frames
}

/// Printable ASCII as it is, other bytes as `\xNN`.
fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.extend(std::ascii::escape_default(*byte).map(char::from)),
        }
    }
    text
}

/// All that the server says until it closes, as text.
fn everything(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(wait::LIMIT)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Ends a connection by a reset: what has come is not read.
fn reset(stream: &TcpStream) {
    // Something has to have come: only then is a close a reset.
    stream.peek(&mut [0]).unwrap();
    drop(stream.shutdown(Shutdown::Read));
}
