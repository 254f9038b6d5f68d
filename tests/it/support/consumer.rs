//! A consumer of one nsqd topic: records what it gets, then says FIN. Reconnects by itself.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use super::producer::{Frame, MESSAGE, Producer, identify};
use super::{unix_us, wait};

/// Messages under way to us at most; nsqd's own limit.
const READY: u32 = 2500;
/// Bytes of a message before its body: timestamp, attempts, id.
const MESSAGE_HEAD: usize = 8 + 2 + 16;
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
const CHANNEL: &str = "test";

/// One delivery.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    /// The message's body.
    pub(crate) body: Vec<u8>,
    /// When we read it, on the machine's clock.
    pub(crate) at_us: u64,
    /// When nsqd took it from us, on the same clock: what counts for being early.
    pub(crate) published_us: u64,
    /// How often nsqd has sent it; over 1 is nsqd's own repetition, not a duplicate of ours.
    pub(crate) attempts: u16,
}

#[derive(Debug, Default)]
struct Record {
    stop: bool,
    subscribed: bool,
    socket: Option<TcpStream>,
    deliveries: Vec<Delivery>,
    copies: HashMap<Vec<u8>, usize>,
}

/// A running consumer. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Consumer {
    record: Arc<Mutex<Record>>,
    thread: Option<JoinHandle<()>>,
}

impl Consumer {
    /// Subscribes to `topic` of the nsqd at `address`, without buffering on nsqd's side, and waits
    /// until that is done.
    #[track_caller]
    pub(crate) fn start(address: &str, topic: &str) -> Self {
        let consumer = Self::start_later(address, topic);
        wait::until("the consumer to be subscribed", || {
            consumer.record.lock().unwrap().subscribed
        });
        consumer
    }

    /// The same without waiting, for an nsqd that is not there yet.
    pub(crate) fn start_later(address: &str, topic: &str) -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let thread = std::thread::spawn({
            let (record, address) = (Arc::clone(&record), address.to_owned());
            let topic = topic.to_owned();
            move || {
                while !record.lock().unwrap().stop {
                    if consume(&record, &address, &topic).is_err() {
                        wait::pause(RECONNECT_PAUSE);
                    }
                }
            }
        });
        Self {
            record,
            thread: Some(thread),
        }
    }

    /// Everything received so far, in order.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.record.lock().unwrap().deliveries.clone()
    }

    /// Deliveries so far.
    pub(crate) fn count(&self) -> usize {
        self.record.lock().unwrap().deliveries.len()
    }

    /// How often each body came.
    pub(crate) fn copies(&self) -> HashMap<Vec<u8>, usize> {
        self.record.lock().unwrap().copies.clone()
    }

    /// How often this body came.
    pub(crate) fn copies_of(&self, body: &[u8]) -> usize {
        let record = self.record.lock().unwrap();
        record.copies.get(body).copied().unwrap_or(0)
    }

    /// Different bodies so far.
    pub(crate) fn distinct(&self) -> usize {
        self.record.lock().unwrap().copies.len()
    }

    /// Waits until `count` different bodies have come. The limit is on silence, so that a slow
    /// machine may take as long as it needs.
    #[track_caller]
    pub(crate) fn wait_distinct(&self, count: usize) {
        let mut last = (self.count(), Instant::now());
        while self.distinct() < count {
            wait::pause(Duration::from_millis(5));
            if self.count() > last.0 {
                last = (self.count(), Instant::now());
            }
            assert!(
                last.1.elapsed() < wait::LIMIT,
                "nothing came for {:?}; {} of {count} messages are here",
                wait::LIMIT,
                self.distinct()
            );
        }
    }

    /// Waits until nothing has come for `span`: what should not come would have come by then.
    pub(crate) fn wait_quiet(&self, span: Duration) {
        let mut last = (self.count(), Instant::now());
        while last.1.elapsed() < span {
            wait::pause(Duration::from_millis(5));
            if self.count() > last.0 {
                last = (self.count(), Instant::now());
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        {
            let mut record = self.record.lock().unwrap();
            record.stop = true;
            if let Some(socket) = record.socket.take() {
                #[expect(clippy::let_underscore_must_use, reason = "it may be closed")]
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        if let Some(thread) = self.thread.take() {
            #[expect(clippy::let_underscore_must_use, reason = "a panic has been printed")]
            let _ = thread.join();
        }
    }
}

/// Consumes until the connection ends.
fn consume(record: &Mutex<Record>, address: &str, topic: &str) -> std::io::Result<()> {
    let mut nsqd = Producer::try_connect(address)?;
    {
        let mut record = record.lock().unwrap();
        if record.stop {
            return Ok(());
        }
        record.socket = Some(nsqd.socket()?);
    }
    // Without feature_negotiation the reply is OK; -1 turns nsqd's output buffer off.
    nsqd.send(&identify(
        r#"{"output_buffer_size":-1,"output_buffer_timeout":-1,"msg_timeout":600000}"#,
    ))?;
    expect_ok(&nsqd.read()?)?;
    nsqd.send(format!("SUB {topic} {CHANNEL}\n").as_bytes())?;
    expect_ok(&nsqd.read()?)?;
    nsqd.send(format!("RDY {READY}\n").as_bytes())?;
    record.lock().unwrap().subscribed = true;
    let mut finished = Vec::new();
    loop {
        // A heartbeat may be what comes last: waiting for more after it, with nothing finished, would
        // be for ever.
        let frame = nsqd.read_any()?;
        let at_us = unix_us();
        if frame.is_heartbeat() {
            nsqd.send(b"NOP\n")?;
        } else if frame.kind == MESSAGE {
            finished.extend(b"FIN ");
            finished.extend(&frame.payload[MESSAGE_HEAD - 16..MESSAGE_HEAD]);
            finished.push(b'\n');
            let delivery = Delivery {
                body: frame.payload[MESSAGE_HEAD..].to_vec(),
                at_us,
                published_us: nsqd_timestamp_us(&frame.payload),
                attempts: u16::from_be_bytes([frame.payload[8], frame.payload[9]]),
            };
            let mut record = record.lock().unwrap();
            *record.copies.entry(delivery.body.clone()).or_default() += 1;
            record.deliveries.push(delivery);
        }
        // Together for what has come together: one write each would be the slowest part of a load.
        if nsqd.is_drained() && !finished.is_empty() {
            nsqd.send(&finished)?;
            finished.clear();
        }
    }
}

/// The first eight bytes of a message: nanoseconds, big endian.
fn nsqd_timestamp_us(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload[..8].try_into().unwrap()) / 1000
}

fn expect_ok(frame: &Frame) -> std::io::Result<()> {
    if frame.is_ok() {
        return Ok(());
    }
    Err(std::io::Error::other(frame.text()))
}
