//! PURE. What was measured, in plain words and numbers.

use std::time::Duration;

use crate::doctor::dpub::trial::{Seen, Wrapped};
use crate::finding::{Finding, Level};

/// A 99th percentile over this is worth a warning, in ms.
const LATE_MS_WARNED: f64 = 500.0;
/// What all of these findings come down to.
const REMEDY: &str = "publish what must hold through nsqdelayd instead: the producer's address is all \
                      that changes";

/// The longest delay.
pub(super) fn longest_delay(delay_ms_max: Option<u64>) -> Option<Finding> {
    let ms = delay_ms_max?;
    let finding = Finding::new(
        Level::Remark,
        "longest_delay",
        format!(
            "the longest delay is {ms} ms, {:.1} h",
            Duration::from_millis(ms).as_secs_f64() / 3_600.0
        ),
        "a longer one is refused with E_INVALID, and the connection is closed",
        "raise nsqd's --max-req-timeout, or publish through nsqdelayd",
    );
    Some(finding.number("delay_ms_max", ms))
}

/// The paced trial.
pub(super) fn lateness(seen: &Seen) -> Finding {
    let [p50, p99, max] = late_ms(&seen.late_us);
    let came = seen.late_us.len();
    let early = seen.late_us.iter().filter(|us| **us < 0).count();
    let lost = seen.published - came;
    let what = format!(
        "of {} messages, one at a time to a consumer that was there first: late by {p50:.0} ms \
         (median), {p99:.0} ms (99 %), {max:.0} ms (at most); {early} early, {lost} lost, {} twice",
        seen.published, seen.copies
    );
    let finding = if early > 0 || lost > 0 {
        let why = "a delay that does not hold even at its best";
        Finding::new(Level::Error, "lateness", what, why, REMEDY)
    } else if p99 > LATE_MS_WARNED {
        let why =
            "nsqd looks for due messages by sampling its channels: the more channels, the later";
        Finding::new(Level::Warning, "lateness", what, why, REMEDY)
    } else {
        Finding::ok("lateness", what)
    };
    finding
        .number("messages", seen.published)
        .number("late_p50_ms", p50)
        .number("late_p99_ms", p99)
        .number("late_max_ms", max)
        .number("early", early)
        .number("lost", lost)
}

/// The burst.
pub(super) fn early(seen: &Seen, memory_queue: Option<u64>) -> Vec<Finding> {
    let (early, due): (Vec<i64>, Vec<i64>) = seen.late_us.iter().partition(|us| **us < 0);
    let lost = seen.published - seen.late_us.len();
    let of = format!(
        "of {} messages with a delay of {} s to a topic without a channel",
        seen.published,
        super::BURST_DELAY_MS / 1_000
    );
    let queue = queue(memory_queue);
    let mut findings = Vec::new();
    if early.is_empty() {
        let what = format!("{of}: none came early");
        findings.push(if seen.unwatched_ms >= super::BURST_DELAY_MS {
            let why = format!(
                "publishing them took {} ms, so that all were due before anybody looked",
                seen.unwatched_ms
            );
            Finding::new(
                Level::Remark,
                "early",
                what,
                why,
                "test from a machine nearer to it",
            )
        } else {
            Finding::ok("early", what)
        });
    } else {
        let earliest = early.first().map_or(0.0, |us| -ms(*us));
        let latest = early.last().map_or(0.0, |us| -ms(*us));
        findings.push(
            Finding::new(
                Level::Error,
                "early",
                format!(
                    "{of}: {} came early, by {latest:.0} to {earliest:.0} ms",
                    early.len()
                ),
                format!(
                    "what waits in a topic beyond {queue} goes to nsqd's disk queue, which does not \
                     keep the delay: it is delivered as soon as it is read"
                ),
                REMEDY,
            )
            .number("early_min_ms", latest)
            .number("early_max_ms", earliest),
        );
    }
    if let Some(first) = findings.first_mut() {
        let numbers = [
            ("messages", seen.published),
            ("early", early.len()),
            ("lost", lost),
        ];
        for (name, value) in numbers {
            first.numbers.insert(name.to_owned(), value.into());
        }
    }
    if lost > 0 {
        findings.push(Finding::new(
            Level::Error,
            "lost",
            format!("{of}: {lost} did not come within 15 s of their due time"),
            "acknowledged and not delivered",
            REMEDY,
        ));
    }
    findings.extend(waited(&of, &due, seen.unwatched_ms));
    findings
}

/// Those that were not early: their delay counts from the consumer, not from the producer.
fn waited(of: &str, due: &[i64], unwatched_ms: u64) -> Option<Finding> {
    if due.is_empty() {
        return None;
    }
    let [p50, _, max] = late_ms(due);
    let finding = Finding::new(
        Level::Remark,
        "no_channel",
        format!(
            "{of}: {} came late by {p50:.0} ms (median), {max:.0} ms (at most)",
            due.len()
        ),
        format!(
            "their delay began when the channel was made, {unwatched_ms} ms after the first was \
             published: with a consumer that comes an hour later, an hour late"
        ),
        REMEDY,
    );
    Some(
        finding
            .number("messages", due.len())
            .number("late_p50_ms", p50)
            .number("late_max_ms", max)
            .number("channel_after_ms", unwatched_ms),
    )
}

fn queue(size: Option<u64>) -> String {
    match size {
        Some(size) => format!("--mem-queue-size ({size})"),
        None => "--mem-queue-size".to_owned(),
    }
}

/// There are too many messages between us and the end of the memory queue.
pub(super) fn not_tested(memory_queue: Option<u64>) -> Finding {
    Finding::new(
        Level::Remark,
        "early",
        "early delivery was not tested",
        format!("it needs more messages than {}", queue(memory_queue)),
        format!(
            "allow more with --dpub-messages, at most {}",
            super::MESSAGES_MAX
        ),
    )
}

/// A delay that overflows.
pub(super) fn wrapping(delay_ms: u64, wrapped: Wrapped) -> Finding {
    const CHECK: &str = "overflow";
    let of = format!("a delay of {delay_ms} ms, 585 million years,");
    match wrapped {
        Wrapped::Refused => Finding::ok(CHECK, format!("{of} is refused")),
        Wrapped::Kept => Finding::ok(CHECK, format!("{of} is taken, and kept")),
        Wrapped::Came(after) => {
            let after_ms = after.as_secs_f64() * 1e3;
            Finding::new(
                Level::Warning,
                CHECK,
                format!("{of} was answered OK and delivered after {after_ms:.0} ms"),
                "its arithmetic overflows: a wrong unit in a producer is delivered at once",
                "check delays in the producer, or publish through nsqdelayd, which refuses them",
            )
            .number("delivered_after_ms", after_ms)
        }
    }
}

/// What follows from nsqd's design, whatever was measured here.
pub(super) fn by_design() -> [Finding; 2] {
    let fact = |check, what: &str, why: &str| Finding::new(Level::Remark, check, what, why, REMEDY);
    [
        fact(
            "restart",
            "not tested here: deferred messages are in nsqd's memory",
            "killed, nsqd 1.3.0 loses all of them; restarted in order, it delivers all of them at once",
        ),
        fact(
            "cancel",
            "a deferred message has no name that its producer knows",
            "it cannot be listed, cancelled or moved",
        ),
    ]
}

fn ms(us: i64) -> f64 {
    let ms = Duration::from_micros(us.unsigned_abs()).as_secs_f64() * 1e3;
    if us < 0 { -ms } else { ms }
}

/// Median, 99th percentile and maximum of what is sorted, in ms.
fn late_ms(sorted_us: &[i64]) -> [f64; 3] {
    // Nearest rank: the smallest value that is not below so many percent.
    let rank = |percent: usize| (sorted_us.len() * percent).div_ceil(100).saturating_sub(1);
    [50, 99, 100].map(|percent| sorted_us.get(rank(percent)).map_or(0.0, |us| ms(*us)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(late_ms: &[i64], published: usize) -> Seen {
        Seen {
            published,
            unwatched_ms: 300,
            late_us: late_ms.iter().map(|ms| ms * 1_000).collect(),
            copies: 0,
        }
    }

    #[test]
    fn what_came_early_is_counted_with_by_how_much() {
        let findings = early(&seen(&[-9_800, -9_700, 320, 330], 4), Some(2));
        assert_eq!(findings[0].level, Level::Error);
        assert_eq!(findings[0].numbers["early"], 2);
        assert!(
            findings[0]
                .what
                .contains("2 came early, by 9700 to 9800 ms"),
            "{}",
            findings[0].what
        );
        assert_eq!((findings[1].check, findings.len()), ("no_channel", 2));
        assert_eq!(findings[1].numbers["late_p50_ms"], 320.0);
    }

    #[test]
    fn what_did_not_come_is_an_error() {
        let findings = early(&seen(&[300], 3), None);
        assert_eq!(findings[0].level, Level::Ok);
        assert!(findings[1].what.contains("2 did not come"));
        assert_eq!(lateness(&seen(&[1, 2], 3)).level, Level::Error);
    }

    #[test]
    fn lateness_is_told_by_nearest_rank() {
        let hundred: Vec<i64> = (1..=100).collect();
        let finding = lateness(&seen(&hundred, 100));
        assert_eq!(finding.level, Level::Ok);
        assert_eq!(finding.numbers["late_p50_ms"], 50.0);
        assert_eq!(finding.numbers["late_p99_ms"], 99.0);
        assert_eq!(finding.numbers["late_max_ms"], 100.0);
    }
}
