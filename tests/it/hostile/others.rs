//! Two clients who mean well, one at each port: they publish all the time, always on the same two
//! connections, while others attack.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::MAX_DELAY;
use crate::support::app::App;
use crate::support::http::Http;
use crate::support::producer::{Producer, dpub, identify};
use crate::support::wait;

/// Between two rounds.
const PACE: Duration = Duration::from_millis(20);
/// What a producer may be told when there is too much of everything, and has to say again later.
const OVERLOADED: &str = r#"{"message":"OVERLOADED"}"#;

#[derive(Debug, Default)]
struct Shown {
    rounds: AtomicU64,
    failed: AtomicBool,
    stop: AtomicBool,
}

/// The two of them, until this is dropped.
#[derive(Debug)]
pub(super) struct Others {
    shown: Arc<Shown>,
    thread: Option<JoinHandle<()>>,
}

impl Others {
    pub(super) fn start(app: &App) -> Self {
        let shown = Arc::new(Shown::default());
        let mut tcp = app.producer();
        let mut http = Http::connect(&app.http).unwrap();
        // A round may take long on a busy machine: it is not to be taken for silence.
        assert!(
            tcp.ask(&identify(r#"{"heartbeat_interval":60000}"#))
                .is_ok()
        );
        let thread = std::thread::spawn({
            let shown = Arc::clone(&shown);
            move || {
                while !shown.stop.load(Ordering::Relaxed) {
                    if let Err(what) = round(&mut tcp, &mut http) {
                        eprintln!("one who means well: {what}");
                        shown.failed.store(true, Ordering::Relaxed);
                        return;
                    }
                    shown.rounds.fetch_add(1, Ordering::Relaxed);
                    wait::pause(PACE);
                }
            }
        });
        Self {
            shown,
            thread: Some(thread),
        }
    }

    /// How often both have been served.
    pub(super) fn rounds(&self) -> u64 {
        self.shown.rounds.load(Ordering::Relaxed)
    }

    /// Whether either was not.
    pub(super) fn has_failed(&self) -> bool {
        self.shown.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.shown.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What went wrong has been said.
            drop(thread.join());
        }
    }
}

fn round(tcp: &mut Producer, http: &mut Http) -> Result<(), String> {
    let answer = tcp
        .send(&dpub("bystander", MAX_DELAY, b"tcp"))
        .and_then(|()| tcp.read());
    match answer {
        Ok(frame) if frame.is_ok() => {}
        Ok(frame) => return Err(frame.text()),
        Err(error) => return Err(error.to_string()),
    }
    let path = format!("/pub?topic=bystander&defer={MAX_DELAY}");
    loop {
        let answer = http.request("POST", &path, &[], b"http");
        match answer.map(|answer| answer.text()) {
            Ok(text) if text == "OK" => return Ok(()),
            Ok(text) if text == OVERLOADED => wait::pause(PACE),
            Ok(text) => return Err(text),
            Err(error) => return Err(error.to_string()),
        }
    }
}
