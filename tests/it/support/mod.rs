//! What the tests start and end: Redis, nsqd, nsqdelayd, and small raw clients of each. Nothing here
//! uses the library's own code: it judges the binary from outside.
//!
//! Every server belongs to the value that started it and ends with it. Servers also end when the
//! *thread* that started them ends, so start them in the test's own thread.
#![expect(
    dead_code,
    reason = "the parts are a kit: not every piece is in use at every moment"
)]

pub(crate) mod app;
pub(crate) mod auth_server;
pub(crate) mod certificates;
pub(crate) mod child;
pub(crate) mod consumer;
pub(crate) mod http;
pub(crate) mod http_door;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod memory_store;
pub(crate) mod nsqd;
pub(crate) mod producer;
pub(crate) mod redis;
pub(crate) mod wait;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// The checkout.
pub(crate) fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Finds a program under `.tools/bin` of the checkout, then in PATH.
pub(crate) fn tool(name: &str) -> PathBuf {
    find_tool(name).unwrap_or_else(|| {
        panic!("{name} is neither in .tools/bin nor in PATH: run `make tools`, which installs it")
    })
}

/// Like [`tool`], for what may be absent.
pub(crate) fn find_tool(name: &str) -> Option<PathBuf> {
    let own = checkout().join(".tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(own)
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// First of the ports that [`free_port`] tries. All lie below the range from which the kernel takes
/// the ports of outgoing connections, so that a server can come back on the port it had.
const PORT_FIRST: u32 = 10_000;
const PORT_COUNT: u32 = 20_000;

/// A port on which nobody listens at this moment. Another test can be faster: who starts a server
/// on it must be ready to try another.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // The odd stride spreads test runs that go on side by side over the range.
        let number = std::process::id()
            .wrapping_mul(7919)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORT_FIRST + number % PORT_COUNT).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The machine's clock in Unix milliseconds; Redis beside us reads the same one.
pub(crate) fn unix_ms() -> u64 {
    unix_us() / 1000
}

/// The machine's clock in Unix microseconds.
pub(crate) fn unix_us() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).unwrap()
}

/// Whether the proofs run at full size: `make prove` says so, `make test` takes smaller numbers.
pub(crate) fn is_full_size() -> bool {
    std::env::var("PROOF_SIZE").is_ok_and(|size| size == "full")
}

/// One of two numbers, by the size of the run.
pub(crate) fn sized(small: usize, full: usize) -> usize {
    if is_full_size() { full } else { small }
}
