//! The bound on what one nsqd has been given and has not answered. Knows nothing of sockets.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

use crate::forward::batch::Batch;

/// What the smallest message counts. With the default bound of 4 MiB at most 8,192 messages are
/// unanswered: under the 10,000 that nsqd holds in memory for a topic before it turns to its disk.
const MESSAGE_BYTES_MIN: usize = 512;

/// Room for unanswered bytes. Those who wait for room get it in the order in which they came.
#[derive(Debug)]
pub(super) struct Room {
    bytes_max: u32,
    left: Semaphore,
    used: Gauge,
}

impl Room {
    /// Room for `bytes_max`, which `used` shows.
    pub(super) fn new(bytes_max: usize, used: Gauge) -> Self {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        let permits = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let left = Semaphore::new(permits.min(Semaphore::MAX_PERMITS));
        Self {
            bytes_max,
            left,
            used,
        }
    }

    /// Bytes unanswered.
    pub(super) fn used(&self) -> i64 {
        self.used.get()
    }

    /// Waits until there is room for `batch`; one that is larger than all the room gets it alone.
    /// Cancel safe.
    pub(super) async fn take(self: &Arc<Self>, batch: &Batch) -> Taken {
        let bytes = batch
            .bytes
            .max(batch.len().saturating_mul(MESSAGE_BYTES_MIN));
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        let permit = self.left.acquire_many(bytes).await;
        permit.expect("the semaphore is never closed").forget();
        self.used.inc_by(i64::from(bytes));
        Taken {
            room: Arc::clone(self),
            bytes,
        }
    }
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    bytes: u32,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.used.dec_by(i64::from(self.bytes));
        let permits = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        self.room.left.add_permits(permits);
    }
}
