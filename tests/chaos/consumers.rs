//! Consumers of every topic of every nsqd, unbuffered: write down what came, then say FIN.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::event::{self, Event};
use crate::recorder::Recorder;
use crate::support::producer::{MESSAGE, Producer, identify};
use crate::support::wait;

/// Messages under way to one consumer at most.
const READY: u32 = 200;
/// Bytes of a message before its body: timestamp, attempts, id.
const MESSAGE_HEAD: usize = 8 + 2 + 16;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// What a consumer needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Consumer {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) nsqd: usize,
    pub(crate) address: String,
    pub(crate) topic: &'static str,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Consumer {
    /// Consumes until told to stop, over as many connections as it takes.
    pub(crate) fn run(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            // Whatever ended the connection: there will be another one.
            drop(self.consume());
            wait::pause(RECONNECT_PAUSE);
        }
    }

    fn consume(&self) -> std::io::Result<()> {
        let mut nsqd = Producer::try_connect(&self.address)?;
        // Heartbeats each second wake this thread often enough to see that it is to stop. An nsqd that stood
        // still for longer than two of them ends this connection when it wakes, and keeps what it was
        // about to send here until `msg_timeout`: that must be over well before the time allowed to drain is.
        nsqd.send(&identify(
            r#"{"output_buffer_size":-1,"output_buffer_timeout":-1,"msg_timeout":10000,"heartbeat_interval":1000}"#,
        ))?;
        nsqd.read()?;
        nsqd.send(format!("SUB {} chaos\n", self.topic).as_bytes())?;
        nsqd.read()?;
        nsqd.send(format!("RDY {READY}\n").as_bytes())?;
        let mut finished = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            let frame = nsqd.read_any()?;
            if frame.kind == MESSAGE {
                let id = &frame.payload[MESSAGE_HEAD - 16..MESSAGE_HEAD];
                finished.extend(b"FIN ");
                finished.extend(id);
                finished.push(b'\n');
                self.record(&frame.payload);
            } else if frame.payload == b"_heartbeat_" {
                nsqd.send(b"NOP\n")?;
            }
            if nsqd.is_drained() && !finished.is_empty() {
                nsqd.send(&finished)?;
                finished.clear();
            }
        }
        Ok(())
    }

    fn record(&self, payload: &[u8]) {
        let (t, nsqd) = (self.recorder.now(), self.nsqd);
        let event = match event::identify(&payload[MESSAGE_HEAD..]) {
            None => Event::Alien { t, nsqd },
            Some((id, intact)) => Event::Delivered {
                id,
                t,
                nsqd,
                copy: String::from_utf8_lossy(&payload[10..MESSAGE_HEAD]).into_owned(),
                attempts: u16::from_be_bytes([payload[8], payload[9]]),
                intact,
            },
        };
        self.recorder.add(&event);
    }
}
