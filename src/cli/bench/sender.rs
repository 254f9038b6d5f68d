//! Sends the commands of a load over its connections: a closed loop with so many unanswered, or an open
//! one at a rate that asks nobody.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hdrhistogram::Histogram;

use crate::cli::Failure;
use crate::cli::bench::clock;
use crate::cli::bench::door::{Commands, refusal};
use crate::cli::bench::figures;
use crate::cli::bench::wire::{self, Answer, Replies, Speech};

/// Bytes that an open loop that has fallen behind writes at once, at most.
const CATCH_UP_BYTES: usize = 256 * 1024;
/// The golden ratio less one: its multiples' fractions lie as evenly as those of any number.
const GOLDEN: f64 = 0.618_033_988_749_895;
/// Refusals that are kept to be shown.
const REFUSALS_KEPT: usize = 5;

/// How fast commands are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// So many unanswered on each connection.
    Closed(usize),
    /// So many messages a second from this moment on, Unix us, all connections together.
    Open { per_second: f64, begin_us: u64 },
}

/// Where and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route<'a> {
    pub(super) address: &'a str,
    pub(super) speech: Speech,
    pub(super) connections: u32,
    pub(super) pace: Pace,
}

/// What sending came to.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) begin_us: u64,
    pub(super) end_us: u64,
    /// From the intended time of a command to its answer, us. Of an open loop.
    pub(super) answered_us: Histogram<u64>,
    /// What was refused, or how a connection ended: some of it.
    pub(super) refusals: Vec<String>,
}

/// Sends all of `commands` and waits for their answers.
pub(super) fn send(route: Route<'_>, commands: &dyn Commands) -> Result<Sent, Failure> {
    let connected: io::Result<Vec<_>> = (0..route.connections)
        .map(|_| wire::connect(route.address, route.speech))
        .collect();
    let connected = connected.map_err(|error| {
        Failure::Failed(format!("nobody answers at {}: {error}", route.address))
    })?;
    let refusals = Mutex::new(Vec::new());
    let mut answered_us = figures::histogram()?;
    let begin_us = clock::now_us();
    thread::scope(|scope| {
        let shares: Vec<_> = (0..route.connections)
            .zip(connected)
            .map(|(connection, (stream, replies))| {
                let share = Share {
                    route,
                    connection,
                    commands,
                    refusals: &refusals,
                };
                scope.spawn(move || share.send(stream, replies))
            })
            .collect();
        for share in shares {
            let histogram = share
                .join()
                .map_err(|_panic| Failure::Failed("a sender has failed".to_owned()))??;
            answered_us.add(histogram).map_err(Failure::because)?;
        }
        Ok::<(), Failure>(())
    })?;
    Ok(Sent {
        begin_us,
        end_us: clock::now_us(),
        answered_us,
        refusals: refusals.into_inner().unwrap_or_default(),
    })
}

/// One connection's part: every n-th command.
struct Share<'a> {
    route: Route<'a>,
    connection: u32,
    commands: &'a dyn Commands,
    refusals: &'a Mutex<Vec<String>>,
}

impl Share<'_> {
    fn send(self, stream: TcpStream, replies: Replies) -> Result<Histogram<u64>, Failure> {
        let mut answered_us = figures::histogram()?;
        let result = match self.route.pace {
            Pace::Closed(window) => self.closed(stream, replies, window),
            Pace::Open {
                per_second,
                begin_us,
            } => self.open(stream, replies, per_second, begin_us, &mut answered_us),
        };
        if let Err(error) = result {
            self.refused(format!("connection {}: {error}", self.connection));
        }
        Ok(answered_us)
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        let step = usize::try_from(self.route.connections).unwrap_or(1).max(1);
        (self.connection..self.commands.count()).step_by(step)
    }

    fn refused(&self, text: String) {
        if let Ok(mut refusals) = self.refusals.lock()
            && refusals.len() < REFUSALS_KEPT
        {
            refusals.push(text);
        }
    }

    fn answered(&self, command: u32, answer: Answer<'_>) {
        let result = match answer {
            Answer::Done(body) => self.commands.done(command, body),
            Answer::Refused(_) => Err(refusal(answer)),
        };
        if let Err(text) = result {
            self.refused(text);
        }
    }

    fn closed(&self, mut stream: TcpStream, mut replies: Replies, window: usize) -> io::Result<()> {
        let mut commands = self.numbers();
        let mut unanswered = VecDeque::with_capacity(window);
        let mut out = Vec::new();
        loop {
            // By halves: a server that answers one by one would otherwise be asked one by one, each with
            // a write and a read of its own.
            if unanswered.len() <= window / 2 {
                while unanswered.len() < window
                    && let Some(command) = commands.next()
                {
                    self.commands.encode(command, None, &mut out);
                    unanswered.push_back(command);
                }
            }
            if unanswered.is_empty() {
                return Ok(());
            }
            if !out.is_empty() {
                stream.write_all(&out)?;
                out.clear();
            }
            replies.read(|answer| {
                if let Some(command) = unanswered.pop_front() {
                    self.answered(command, answer);
                }
            })?;
        }
    }

    fn open(
        &self,
        stream: TcpStream,
        mut replies: Replies,
        per_second: f64,
        begin_us: u64,
        answered_us: &mut Histogram<u64>,
    ) -> io::Result<()> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| self.write(stream, per_second, begin_us, &stop));
            let mut commands = self.numbers();
            let mut left = self.numbers().count();
            while left > 0 {
                let read = replies.read(|answer| {
                    let Some(command) = commands.next() else {
                        return;
                    };
                    left -= 1;
                    let intended = self.intended_us(command, per_second, begin_us);
                    let waited = clock::now_us().saturating_sub(intended);
                    answered_us.saturating_record(waited.max(1));
                    self.answered(command, answer);
                });
                if let Err(error) = read {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            writer.join().unwrap_or(Ok(()))
        })
    }

    /// Writes each command when its time has come, whatever was answered.
    fn write(
        &self,
        mut stream: TcpStream,
        per_second: f64,
        begin_us: u64,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        for command in self.numbers() {
            let intended = self.intended_us(command, per_second, begin_us);
            if intended > clock::now_us() || out.len() >= CATCH_UP_BYTES {
                stream.write_all(&out)?;
                out.clear();
                clock::wait_until(intended);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.commands.encode(command, Some(intended), &mut out);
        }
        stream.write_all(&out)
    }

    /// Each command has its own moment within its share of the time, spread evenly over all of them. In
    /// step with whole ms, all of a run would be rounded to due times alike, one run so and the next one so.
    fn intended_us(&self, command: u32, per_second: f64, begin_us: u64) -> u64 {
        let turn = f64::from(command) + (f64::from(command) * GOLDEN).fract();
        let message = turn * f64::from(self.commands.batch());
        begin_us + figures::whole(message / per_second * 1e6)
    }
}
