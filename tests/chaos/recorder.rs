//! The one record of a run: appends each event to a file, and shows it to the checker. One clock for all.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use tokio::time::Instant;

use crate::checker::Checker;
use crate::event::Event;

/// A run's history. Events are in the file when [`Recorder::add`] returns, so that a consumer may say FIN.
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    checker: Checker,
    faults: usize,
}

impl Recorder {
    /// Writes to `path`, and starts the clock.
    pub(crate) fn create(path: &Path) -> Self {
        let inner = Inner {
            file: File::create(path).unwrap(),
            checker: Checker::default(),
            faults: 0,
        };
        Self {
            start: Instant::now(),
            inner: Mutex::new(inner),
        }
    }

    /// Microseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap()
    }

    /// Appends an event.
    pub(crate) fn add(&self, event: &Event) {
        self.add_all(std::slice::from_ref(event));
    }

    /// Appends events together.
    pub(crate) fn add_all(&self, events: &[Event]) {
        self.inner.lock().unwrap().add(events);
    }

    /// Notes that something is broken from now on; the answer names it for [`Self::fault_ends`].
    pub(crate) fn fault_starts(
        &self,
        kind: &'static str,
        words: String,
        kills_nsqd: Option<usize>,
    ) -> usize {
        self.starts(kind, words, kills_nsqd, self.now())
    }

    /// Notes that the machine stood still for a while.
    pub(crate) fn stalled(&self, from: u64, to: u64) {
        let words = format!("for {} ms", (to - from) / 1_000);
        let fault = self.starts("machine: stood still", words, None, from);
        self.add(&Event::FaultStop {
            fault,
            t: to,
            hits: 1,
            unavailable: None,
        });
    }

    fn starts(
        &self,
        kind: &'static str,
        words: String,
        kills_nsqd: Option<usize>,
        t: u64,
    ) -> usize {
        let mut inner = self.inner.lock().unwrap();
        let fault = inner.faults;
        inner.faults += 1;
        let event = Event::FaultStart {
            fault,
            kind,
            words,
            t,
            kills_nsqd,
        };
        inner.add(&[event]);
        fault
    }

    /// Notes that it is repaired, and what it hit.
    pub(crate) fn fault_ends(&self, fault: usize, hits: u64, unavailable: Option<String>) {
        let t = self.now();
        self.add(&Event::FaultStop {
            fault,
            t,
            hits,
            unavailable,
        });
    }

    /// Messages that are due now or within `span_us`, and were not delivered.
    pub(crate) fn owed(&self, span_us: u64) -> usize {
        let until = self.now() + span_us;
        self.inner.lock().unwrap().checker.owed(until)
    }

    /// Ends the record and hands the checker out.
    pub(crate) fn finish(self) -> Checker {
        self.inner.into_inner().unwrap().checker
    }
}

impl Inner {
    fn add(&mut self, events: &[Event]) {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event).unwrap();
            lines.push(b'\n');
        }
        self.file.write_all(&lines).unwrap();
        for event in events {
            self.checker.apply(event);
        }
    }
}
