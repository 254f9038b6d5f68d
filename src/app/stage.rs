//! One step of a stop: what is told to end together, and waited for together.

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A part of the program that ends as one.
#[derive(Debug)]
pub(super) struct Stage {
    /// For the log.
    pub(super) name: &'static str,
    /// Everything that the part has started.
    pub(super) tracker: TaskTracker,
    /// Tells the part to end.
    pub(super) stop: CancellationToken,
}

impl Stage {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Tells the part to end and waits until it has, at most until `end`. Answers whether it has.
    pub(super) async fn end(&self, end: Instant) -> bool {
        self.stop.cancel();
        self.tracker.close();
        timeout_at(end, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stage_ends_when_all_that_it_started_has_ended() {
        let stage = Stage::new("test");
        let stop = stage.stop.clone();
        stage.tracker.spawn(async move { stop.cancelled().await });
        assert!(stage.end(Instant::now() + Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_hangs_is_given_up_at_its_end() {
        let stage = Stage::new("test");
        stage.tracker.spawn(pending::<()>());
        assert!(!stage.end(Instant::now() + Duration::from_secs(1)).await);
    }
}
