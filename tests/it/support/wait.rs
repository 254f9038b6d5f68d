//! Waiting on a condition. The limits are generous: they end a test that hangs, they measure nothing.

use std::time::Duration;

use tokio::time::Instant;

/// How long a condition may take before the test is given up.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Blocks until `condition` holds.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(LIMIT, what, condition);
}

/// Blocks until `condition` holds, at most `limit`.
#[track_caller]
pub(crate) fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} for: {what}");
        pause(PAUSE);
    }
}

/// Like [`until`], for conditions that await.
pub(crate) async fn until_async<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Lets time pass: for the pace of a load, or for a span that is itself what is measured. Never to
/// wait for something to have happened.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests' threads have no runtime that could be blocked"
)]
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// Lets time pass until `at`.
pub(crate) fn pause_until(at: Instant) {
    pause(at.saturating_duration_since(Instant::now()));
}
