//! The benchmarks: what each sends, when, and which spans of it are measured.

use std::sync::Mutex;
use std::time::Duration;

use crate::cli::Failure;
use crate::cli::bench::clock;
use crate::cli::bench::door::{Cancel, When};
use crate::cli::bench::figures::{share, whole};
use crate::cli::bench::flow::{Flow, Load};
use crate::cli::bench::redis_info;
use crate::cli::bench::report::Row;
use crate::cli::bench::sender::{self, Pace, Route};
use crate::cli::bench::servers::Servers;
use crate::cli::bench::wire::Speech;

/// From the account to the instant of a burst.
const BEFORE_BURST: Duration = Duration::from_millis(50);
/// What was sent settles before an idle span begins.
const IDLE_BEFORE: Duration = Duration::from_secs(5);
/// When those fall due that wait meanwhile: evenly spread.
const PENDING_MIN: Duration = Duration::from_hours(1);
const PENDING_MAX: Duration = Duration::from_hours(2);
/// Unanswered batches of one connection that fills.
const FILL_WINDOW: usize = 2;

fn us(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX / 4)
}

fn ms(length: Duration) -> u64 {
    us(length) / 1000
}

/// As fast as answers come, all with one delay; read back as it falls due.
pub(super) fn ingest(
    servers: &Servers,
    load: Load,
    delay: Duration,
    window: usize,
) -> Result<Row, Failure> {
    let mut flow = Flow::start(servers, load)?;
    let begin = flow.begin.clone();
    let when = When::After(ms(delay), ms(delay));
    let sent = flow.send(when, Pace::Closed(window), None)?;
    let seconds = clock::seconds(sent.end_us - sent.begin_us);
    flow.span("in", flow.book.acknowledged(), seconds, &begin)?;
    flow.note_memory()?;
    let stored = servers.account()?;
    if clock::now_us() > sent.begin_us + us(delay) {
        flow.refusals
            .push("some fell due before all were sent: raise --delay".to_owned());
    }
    flow.drain(sent.end_us + us(delay));
    let begin_us = sent.begin_us + us(delay);
    let seconds = clock::seconds(flow.book.last_us().saturating_sub(begin_us));
    flow.span("out", flow.book.received(), seconds, &stored)?;
    flow.end()
}

/// All due at one instant.
pub(super) fn burst(
    servers: &Servers,
    load: Load,
    until_due: Duration,
    window: usize,
) -> Result<Row, Failure> {
    let mut flow = Flow::start(servers, load)?;
    let begin = flow.begin.clone();
    let due_us = clock::now_us() + us(until_due);
    let sent = flow.send(When::At(due_us), Pace::Closed(window), None)?;
    let seconds = clock::seconds(sent.end_us - sent.begin_us);
    flow.span("in", flow.book.acknowledged(), seconds, &begin)?;
    flow.note_memory()?;
    if clock::now_us() + us(BEFORE_BURST) > due_us {
        flow.refusals
            .push("not all were sent when they fell due: raise --lead".to_owned());
    }
    clock::wait_until(due_us - us(BEFORE_BURST));
    let before = servers.account()?;
    flow.drain_watched(due_us);
    let seconds = clock::seconds(flow.book.last_us().saturating_sub(due_us));
    flow.span("out", flow.book.received(), seconds, &before)?;
    flow.end()
}

/// Messages that wait while others are measured. They are never read back: their servers end before.
pub(super) fn fill(servers: &Servers, load: Load) -> Result<(), Failure> {
    let mut flow = Flow::start(servers, load)?;
    let when = When::After(ms(PENDING_MIN), ms(PENDING_MAX));
    flow.send(when, Pace::Closed(FILL_WINDOW), None)?;
    if flow.book.acknowledged() == load.count && flow.refusals.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{} of {} messages of --pending were stored: {}",
        flow.book.acknowledged(),
        load.count,
        flow.refusals.join("; ")
    )))
}

/// At a rate, whatever is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steady {
    pub(super) per_second: f64,
    pub(super) delay_min: Duration,
    pub(super) delay_max: Duration,
    /// Rewrites of Redis's append-only file, spread over the load.
    pub(super) rewrites: u32,
}

pub(super) fn steady(servers: &Servers, load: Load, steady: Steady) -> Result<Row, Failure> {
    let mut flow = Flow::start(servers, load)?;
    let begin = flow.begin.clone();
    let when = When::After(ms(steady.delay_min), ms(steady.delay_max));
    // The senders are connected by then.
    let begin_us = clock::now_us() + 100_000;
    let pace = Pace::Open {
        per_second: steady.per_second,
        begin_us,
    };
    let sending_us = whole(f64::from(load.count) / steady.per_second * 1e6);
    let delay_us = us(steady.delay_max);
    let sent = std::thread::scope(|scope| {
        let rewriter = scope.spawn(|| rewrite(servers, steady.rewrites, begin_us, sending_us));
        let sent = flow.send(when, pace, None);
        rewriter
            .join()
            .map_err(|_panic| Failure::Failed("the rewrites have failed".to_owned()))??;
        sent
    })?;
    flow.note_memory()?;
    let seconds = clock::seconds(sent.end_us - begin_us);
    flow.figures.insert(
        "sent a second",
        f64::from(flow.book.acknowledged()) / seconds,
    );
    flow.drain(sent.end_us + delay_us);
    let out_us = flow
        .book
        .last_us()
        .saturating_sub(begin_us + us(steady.delay_min));
    flow.span(
        "in and out",
        flow.book.received(),
        clock::seconds(out_us),
        &begin,
    )?;
    if let Some(info) = servers.redis_info()? {
        if steady.rewrites > 0 {
            let fork_ms = share(info.number("latest_fork_usec"), 1000);
            let seconds = share(info.number("aof_last_rewrite_time_sec"), 1);
            flow.figures.insert("last fork, ms", fork_ms);
            flow.figures.insert("last rewrite, s", seconds);
        }
        let peak = share(info.number("used_memory_peak"), 1 << 20);
        flow.figures.insert("redis used_memory_peak, MiB", peak);
    }
    flow.end()
}

/// Asks for rewrites, evenly over the time of sending.
fn rewrite(servers: &Servers, count: u32, begin_us: u64, sending_us: u64) -> Result<(), Failure> {
    let Some(address) = &servers.redis else {
        return Ok(());
    };
    for number in 1..=u64::from(count) {
        clock::wait_until(begin_us + sending_us * number / (u64::from(count) + 1));
        redis_info::rewrite(address)?;
    }
    Ok(())
}

/// Stores messages, cancels a part of them before they are due, and sees what comes. `windows`: commands unanswered on a
/// connection that publishes, and on one that cancels.
pub(super) fn cancel(
    servers: &Servers,
    load: Load,
    until_due: Duration,
    windows: (usize, usize),
    cancelled_share: f64,
) -> Result<Row, Failure> {
    let (publishes, cancels) = windows;
    let mut flow = Flow::start(servers, load)?;
    let begin = flow.begin.clone();
    let due_us = clock::now_us() + us(until_due);
    let minted = Mutex::new(Vec::new());
    let sent = flow.send(When::At(due_us), Pace::Closed(publishes), Some(&minted))?;
    let seconds = clock::seconds(sent.end_us - sent.begin_us);
    flow.span("in", flow.book.acknowledged(), seconds, &begin)?;
    flow.note_memory()?;
    let mut ids = minted.into_inner().unwrap_or_default();
    if load.with_ids {
        let run = flow.book.run();
        ids = (0..load.count)
            .map(|number| (number, crate::cli::bench::door::id_of(run, number)))
            .collect();
    }
    ids.sort_unstable_by_key(|(number, _)| *number);
    // Which ones has no pattern, as with time-outs that mostly do not happen.
    fastrand::Rng::with_seed(u64::from(load.count)).shuffle(&mut ids);
    ids.truncate(usize::try_from(whole(f64::from(load.count) * cancelled_share)).unwrap_or(0));
    let memory = servers.redis_info()?.unwrap_or_default();
    let before = servers.account()?;
    let commands = Cancel {
        ids: &ids,
        book: &flow.book,
    };
    let route = Route {
        address: &servers.tcp,
        speech: Speech::Nsq,
        connections: load.connections,
        pace: Pace::Closed(cancels),
    };
    let mut sent = sender::send(route, &commands)?;
    flow.refusals.append(&mut sent.refusals);
    let seconds = clock::seconds(sent.end_us - sent.begin_us);
    let cancelled = load.count - flow.book.wanted().min(load.count);
    flow.span("cancel", cancelled, seconds, &before)?;
    if clock::now_us() > due_us {
        flow.refusals
            .push("not all were cancelled when they fell due: raise --lead".to_owned());
    }
    // Of the memory that the cancelled ones had, as far as it has come back by the due time.
    clock::wait_until(due_us - us(BEFORE_BURST));
    let after = servers.redis_info()?.unwrap_or_default();
    let freed = memory
        .number("used_memory")
        .saturating_sub(after.number("used_memory"));
    flow.figures
        .insert("redis MiB given back before due", share(freed, 1 << 20));
    flow.drain(due_us);
    flow.end()
}

/// Much pending, nothing due.
pub(super) fn idle(
    servers: &Servers,
    load: Load,
    span: Duration,
    window: usize,
) -> Result<Row, Failure> {
    let mut flow = Flow::start(servers, load)?;
    let begin = flow.begin.clone();
    // Sending takes a few seconds; what is left of the delay is at least the span.
    let delay = span + IDLE_BEFORE * 3;
    let when = When::After(ms(delay), ms(delay));
    let sent = flow.send(when, Pace::Closed(window), None)?;
    let seconds = clock::seconds(sent.end_us - sent.begin_us);
    flow.span("in", flow.book.acknowledged(), seconds, &begin)?;
    flow.note_memory()?;
    clock::wait(IDLE_BEFORE);
    let commands = |flow: &Flow<'_>| -> Result<u64, Failure> {
        let info = flow.servers.redis_info()?.unwrap_or_default();
        Ok(info.number("total_commands_processed"))
    };
    let (before, commands_before) = (servers.account()?, commands(&flow)?);
    clock::wait(span);
    let seconds = span.as_secs_f64();
    let processed = commands(&flow)?.saturating_sub(commands_before);
    flow.figures.insert(
        "redis commands a second, our looks included",
        share(processed, 1) / seconds,
    );
    flow.span("idle", flow.book.acknowledged(), seconds, &before)?;
    if let Some(span) = flow.spans.last() {
        let percents = span.cpu_percent.clone();
        for (name, percent) in percents {
            match name.as_str() {
                "nsqdelayd" => flow.figures.insert("nsqdelayd CPU, %", percent),
                "redis" => flow.figures.insert("redis CPU, %", percent),
                "nsqd" => flow.figures.insert("nsqd CPU, %", percent),
                _ => None,
            };
        }
    }
    if flow.book.received() > 0 {
        flow.refusals
            .push("some fell due before the span was over".to_owned());
    }
    flow.drain(sent.end_us + us(delay));
    flow.end()
}
