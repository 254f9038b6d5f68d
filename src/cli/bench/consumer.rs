//! A consumer of a load's topic on an nsqd: reads every message back into the book, and says FIN.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::cli::Failure;
use crate::cli::bench::body::stamp_of;
use crate::cli::bench::book::{Book, Delivery};
use crate::cli::bench::clock;
use crate::cli::bench::figures;
use crate::cli::bench::wire::{self, Buffer};
use crate::nsq::MAGIC;
use crate::nsq::frame::HEARTBEAT_BODY;

const CHANNEL: &str = "bench";
/// Messages under way to one consumer at most: nsqd's own limit.
const READY: u32 = 2500;
/// How long a consumer looks at its socket before it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(200);
/// How long subscribing may take.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(10);
/// Type of a frame that is a message.
const FRAME_MESSAGE: u32 = 2;
/// Timestamp, attempts and id stand before a message's body.
const TIMESTAMP_LEN: usize = 8;
const ID_AT: usize = TIMESTAMP_LEN + 2;
const BODY_AT: usize = ID_AT + 16;

/// Whether nsqd gathers what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffering {
    /// Each message at once: for lateness.
    None,
    /// 16 KiB or 25 ms, for throughput.
    Full,
}

/// Running consumers.
#[derive(Debug)]
pub(super) struct Consumers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Histogram<u64>, Failure>>>,
}

impl Consumers {
    /// Subscribes `count` of them, and waits until that is done.
    pub(super) fn start(
        address: &str,
        topic: &str,
        count: u32,
        buffering: Buffering,
        book: &Arc<Book>,
    ) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, subscribed) = mpsc::channel();
        let start = |_| {
            let (stop, book, ready) = (Arc::clone(&stop), Arc::clone(book), ready.clone());
            let (address, topic) = (address.to_owned(), topic.to_owned());
            std::thread::spawn(move || {
                let mut late_us = figures::histogram()?;
                let mut consumer = Consumer::subscribe(&address, &topic, buffering)
                    .map_err(|error| lost(&address, &error))?;
                if ready.send(()).is_err() {
                    return Ok(late_us);
                }
                while !stop.load(Ordering::Relaxed) {
                    consumer
                        .read(&book, &mut late_us)
                        .map_err(|error| lost(&address, &error))?;
                }
                Ok(late_us)
            })
        };
        let threads = (0..count).map(start).collect();
        for _ in 0..count {
            subscribed.recv_timeout(SUBSCRIBE_MAX).map_err(|_none| {
                Failure::Failed(format!("no nsqd lets us consume {topic} at {address}"))
            })?;
        }
        Ok(Self { stop, threads })
    }

    /// Ends them; how late the messages were, us, from the time that was intended.
    pub(super) fn end(self) -> Result<Histogram<u64>, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut late_us = figures::histogram()?;
        for thread in self.threads {
            let histogram = thread
                .join()
                .map_err(|_panic| Failure::Failed("a consumer has failed".to_owned()))??;
            late_us.add(histogram).map_err(Failure::because)?;
        }
        Ok(late_us)
    }
}

fn lost(address: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!(
        "the consumer at {address} has lost its nsqd: {error}"
    ))
}

struct Consumer {
    stream: TcpStream,
    buffer: Buffer,
    /// What is to be written: FIN and NOP.
    out: Vec<u8>,
}

impl Consumer {
    fn subscribe(address: &str, topic: &str, buffering: Buffering) -> io::Result<Self> {
        let identify = match buffering {
            Buffering::None => r#"{"output_buffer_size":-1,"output_buffer_timeout":-1}"#,
            Buffering::Full => r#"{"output_buffer_size":16384,"output_buffer_timeout":25}"#,
        };
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        let mut out = MAGIC.to_vec();
        out.extend(b"IDENTIFY\n");
        out.extend(u32::try_from(identify.len()).unwrap_or(0).to_be_bytes());
        out.extend(identify.as_bytes());
        out.extend(format!("SUB {topic} {CHANNEL}\nRDY {READY}\n").into_bytes());
        stream.write_all(&out)?;
        out.clear();
        let mut consumer = Self {
            stream,
            buffer: Buffer::new(),
            out,
        };
        // Two answers: to IDENTIFY and to SUB. RDY has none.
        let mut answers = 0;
        let begin_us = clock::now_us();
        while answers < 2 {
            consumer.fill()?;
            while let Some((kind, body, len)) = wire::frame(consumer.buffer.unread())? {
                if kind != 0 {
                    let text = String::from_utf8_lossy(body).into_owned();
                    return Err(io::Error::other(text));
                }
                answers += 1;
                consumer.buffer.advance(len);
            }
            if clock::seconds(clock::now_us() - begin_us) > SUBSCRIBE_MAX.as_secs_f64() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(consumer)
    }

    /// Reads once; silence is no error.
    fn fill(&mut self) -> io::Result<()> {
        match self.buffer.read(&mut self.stream) {
            Err(error) if is_silence(&error) => Ok(()),
            result => result,
        }
    }

    /// Reads once, and confirms together what came together.
    fn read(&mut self, book: &Book, late_us: &mut Histogram<u64>) -> io::Result<()> {
        self.fill()?;
        let at_us = clock::now_us();
        while let Some((kind, body, len)) = wire::frame(self.buffer.unread())? {
            match (kind, body) {
                (FRAME_MESSAGE, body) => {
                    if let Some(late) = take(book, body, at_us) {
                        late_us.saturating_record(late.max(1));
                    }
                    self.out.extend(b"FIN ");
                    self.out
                        .extend(body.get(ID_AT..BODY_AT).unwrap_or_default());
                    self.out.push(b'\n');
                }
                (_, HEARTBEAT_BODY) => self.out.extend(b"NOP\n"),
                (_, text) => {
                    let text = String::from_utf8_lossy(text).into_owned();
                    return Err(io::Error::other(text));
                }
            }
            self.buffer.advance(len);
        }
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Enters a message into the book.
fn take(book: &Book, message: &[u8], at_us: u64) -> Option<u64> {
    let (timestamp, rest) = message.split_first_chunk::<TIMESTAMP_LEN>()?;
    let (attempts, _) = rest.split_first_chunk::<2>()?;
    book.receive(Delivery {
        stamp: message.get(BODY_AT..).and_then(stamp_of),
        published_us: u64::from_be_bytes(*timestamp) / 1000,
        at_us,
        attempts: u16::from_be_bytes(*attempts),
    })
}
