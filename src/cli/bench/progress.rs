//! How far a load has come, once a second, on standard error; and the most memory that Redis had meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cli::bench::book::Book;
use crate::cli::bench::clock;
use crate::cli::bench::redis_info;
use crate::cli::output;

/// Between two lines.
const PERIOD: Duration = Duration::from_secs(1);
/// Lines between two looks at Redis, which cost it some 100 us each.
const REDIS_EVERY: u32 = 5;

/// A running display.
#[derive(Debug)]
pub(super) struct Progress {
    stop: Arc<AtomicBool>,
    used_memory_max: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    pub(super) fn start(name: String, book: &Arc<Book>, redis: Option<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let used_memory_max = Arc::new(AtomicU64::new(0));
        let shown = Shown {
            name,
            book: Arc::clone(book),
            redis,
            used_memory_max: Arc::clone(&used_memory_max),
        };
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || shown.until(&stop)
        });
        Self {
            stop,
            used_memory_max,
            thread: Some(thread),
        }
    }

    /// The most bytes that Redis used while this ran; 0: not known.
    pub(super) fn used_memory_max(&self) -> u64 {
        self.used_memory_max.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                output::note("the display of progress has failed");
            }
        }
    }
}

struct Shown {
    name: String,
    book: Arc<Book>,
    redis: Option<String>,
    used_memory_max: Arc<AtomicU64>,
}

impl Shown {
    fn until(&self, stop: &AtomicBool) {
        let begin_us = clock::now_us();
        let (mut acknowledged, mut received) = (0, 0);
        for second in 1.. {
            std::thread::park_timeout(PERIOD);
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if second % REDIS_EVERY == 0
                && let Some(info) = self.redis.as_ref().and_then(|at| redis_info::info(at).ok())
            {
                let used = info.number("used_memory");
                self.used_memory_max.fetch_max(used, Ordering::Relaxed);
            }
            let now = (self.book.acknowledged(), self.book.received());
            output::note(format_args!(
                "{:>5.0} s  {}: {} in (+{}), {} out (+{})",
                clock::seconds(clock::now_us() - begin_us),
                self.name,
                now.0,
                now.0 - acknowledged,
                now.1,
                now.1 - received,
            ));
            (acknowledged, received) = now;
        }
    }
}
