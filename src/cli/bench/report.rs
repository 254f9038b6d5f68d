//! The figures of a benchmark, as a table and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::Failure;
use crate::cli::bench::account::{Account, GENERATOR, cpu_between};
use crate::cli::bench::book::Verdict;
use crate::cli::bench::figures::{Percentiles, share};
use crate::cli::output;

/// A span of a load, and what it cost.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Span {
    /// What happened in it.
    pub(super) what: &'static str,
    pub(super) messages: u32,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
    /// Processor time of each process, us a message.
    pub(super) cpu_us: BTreeMap<String, f64>,
    /// Of all servers together, without the generator.
    pub(super) servers_cpu_us: f64,
    /// Of each process, per cent of one core.
    pub(super) cpu_percent: BTreeMap<String, f64>,
}

impl Span {
    pub(super) fn new(
        what: &'static str,
        messages: u32,
        seconds: f64,
        before: &Account,
        after: &Account,
    ) -> Self {
        let spent = cpu_between(before, after);
        let each = u64::from(messages.max(1));
        let servers = spent.iter().filter(|(name, _)| *name != GENERATOR);
        let servers: u64 = servers.map(|(_, us)| us).sum();
        let named = |figure: &dyn Fn(u64) -> f64| {
            spent
                .iter()
                .map(|(name, us)| (name.clone(), figure(*us)))
                .collect::<BTreeMap<_, _>>()
        };
        Self {
            what,
            messages,
            seconds,
            per_second: f64::from(messages) / seconds.max(1e-6),
            cpu_us: named(&|us| share(us, each)),
            servers_cpu_us: share(servers, each),
            cpu_percent: named(&|us| share(us, 10_000) / seconds.max(1e-6)),
        }
    }
}

/// One load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// Whose door: nsqdelayd's or nsqd's.
    pub(super) target: &'static str,
    pub(super) door: &'static str,
    pub(super) body_bytes: usize,
    pub(super) spans: Vec<Span>,
    pub(super) verdict: Verdict,
    /// How late messages were received, by the intended time, ms.
    pub(super) lateness_ms: Option<Percentiles>,
    /// How long answers took, from the intended time, ms. Of an open loop.
    pub(super) answered_ms: Option<Percentiles>,
    /// What was refused, or went wrong.
    pub(super) refusals: Vec<String>,
    /// Other figures by name.
    pub(super) figures: BTreeMap<&'static str, f64>,
    /// What each name's processes had used at the end.
    pub(super) account: Account,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) case: &'static str,
    pub(super) nsqdelayd: &'static str,
    pub(super) redis: Option<String>,
    pub(super) cores: usize,
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// Prints it. An error if a promise was broken: a rate without it would say nothing.
    pub(super) fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            output::line(serde_json::to_string(self).map_err(Failure::because)?)?;
        } else {
            self.table()?;
        }
        let ours = self.rows.iter().filter(|row| row.target == OURS);
        let broken = ours.filter(|row| row.is_broken()).count();
        if broken > 0 {
            return Err(Failure::Failed(format!(
                "{broken} of the runs lost, doubled or refused messages, or were early"
            )));
        }
        Ok(())
    }

    fn table(&self) -> Result<(), Failure> {
        output::line(format_args!(
            "{}: nsqdelayd {}, redis {}, {} cores; CPU in us a message",
            self.case,
            self.nsqdelayd,
            self.redis.as_deref().unwrap_or("not known"),
            self.cores,
        ))?;
        for row in &self.rows {
            for span in &row.spans {
                row.print_span(span)?;
            }
            row.print_rest()?;
        }
        self.ratios()
    }

    /// Ours beside nsqd's own, where both were measured.
    fn ratios(&self) -> Result<(), Failure> {
        let Some(nsqd) = self.rows.iter().find(|row| row.target == NSQD) else {
            return Ok(());
        };
        for ours in self.rows.iter().filter(|row| row.target == OURS) {
            for (span, theirs) in ours.spans.iter().zip(&nsqd.spans) {
                output::line(format_args!(
                    "{} {} / nsqd's: rate {:.2}, time {:.2}, servers' CPU {:.2}",
                    ours.door,
                    span.what,
                    span.per_second / theirs.per_second,
                    span.seconds / theirs.seconds,
                    span.servers_cpu_us / theirs.servers_cpu_us,
                ))?;
            }
        }
        Ok(())
    }
}

/// Names of targets.
pub(super) const OURS: &str = "nsqdelayd";
pub(super) const NSQD: &str = "nsqd";

impl Row {
    fn is_broken(&self) -> bool {
        let verdict = &self.verdict;
        let faults = [
            verdict.lost,
            verdict.early,
            verdict.duplicate,
            verdict.resurrected,
            verdict.unexpected,
            verdict.sent - verdict.acknowledged,
        ];
        faults.iter().any(|count| *count > 0) || !self.refusals.is_empty()
    }

    fn print_span(&self, span: &Span) -> Result<(), Failure> {
        let cpu: Vec<_> = span
            .cpu_us
            .iter()
            .map(|(name, us)| format!("{name} {us:.1}"))
            .collect();
        output::line(format_args!(
            "{:<10} {:<9} {:<10} {:>9} in {:>7.2} s {:>9.0}/s  servers {:>6.1} us ({})",
            self.target,
            self.door,
            span.what,
            span.messages,
            span.seconds,
            span.per_second,
            span.servers_cpu_us,
            cpu.join(", "),
        ))
    }

    fn print_rest(&self) -> Result<(), Failure> {
        let v = &self.verdict;
        output::line(format_args!(
            "           acknowledged {} of {}, cancelled {}, received {}: lost {}, early {}, duplicate {}, \
             cancelled but received {}, unexpected {}",
            v.acknowledged,
            v.sent,
            v.cancelled,
            v.received,
            v.lost,
            v.early,
            v.duplicate,
            v.resurrected,
            v.unexpected
        ))?;
        for (what, ms) in [("late", self.lateness_ms), ("answered", self.answered_ms)] {
            if let Some(ms) = ms {
                output::line(format_args!(
                    "           {what}, ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
                    ms.p50, ms.p90, ms.p99, ms.p999, ms.max
                ))?;
            }
        }
        let mut figures: Vec<_> = self
            .figures
            .iter()
            .map(|(name, value)| format!("{name} {}", rounded(*value)))
            .collect();
        figures.extend(self.account.iter().map(|(name, used)| {
            let mib = |bytes| share(bytes, 1 << 20);
            format!(
                "{name} {:.0} MiB (most {:.0})",
                mib(used.resident_bytes),
                mib(used.resident_bytes_max)
            )
        }));
        output::line(format_args!("           {}", figures.join(", ")))?;
        for refusal in &self.refusals {
            output::line(format_args!("           refused: {refusal}"))?;
        }
        Ok(())
    }
}

/// As many digits as are worth reading.
fn rounded(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}
