//! PURE. The one page that says what a run came to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::checker::Verdict;
use crate::event::Phase;
use crate::schedule::Schedule;

/// Broken promises that are told in words; the record has the rest.
const TOLD_MAX: usize = 20;
const PROMISES: [&str; 10] = [
    "lost",
    "early",
    "resurrected",
    "refused",
    "altered",
    "torn",
    "gone",
    "duplicate",
    "unexpected",
    "stuck",
];

/// The whole report.
pub(crate) fn page(schedule: &Schedule, verdict: &Verdict, dir: &Path) -> String {
    let mut page = format!(
        "chaos: seed {}, {} minutes\nrecord and logs: {}\n\n",
        schedule.seed,
        schedule.minutes,
        dir.display()
    );
    let v = verdict;
    let mut line = |name: &str, value: String| writeln!(page, "{name:<34}{value:>10}").unwrap();
    line("published", v.published.to_string());
    line("  acknowledged", v.acknowledged.to_string());
    line("  refused", v.refused.to_string());
    line("  unknown", v.unknown.to_string());
    line(
        "  unknown that took effect",
        v.unknown_took_effect.to_string(),
    );
    line("delivered", v.delivered.to_string());
    line("cancelled", v.cancelled.to_string());
    line(
        "  by a cancel without an answer",
        v.cancelled_unheard.to_string(),
    );
    line("moved", v.moved.to_string());
    line("cancelled too late, and told so", v.too_late.to_string());
    line("dead letters", v.dead.to_string());
    line("pending", v.pending.to_string());
    line(
        "lost by an nsqd that was killed",
        v.lost_by_nsqd.to_string(),
    );
    line("copies beyond the first", v.extra_copies.to_string());
    line(
        "  explained by faults at most",
        v.explained_copies.to_string(),
    );
    line("  of one message at most", v.extra_copies_most.to_string());
    let there =
        v.delivered + v.cancelled + v.cancelled_unheard + v.dead + v.pending + v.lost_by_nsqd;
    let due = v.acknowledged + v.unknown_took_effect;
    let equal = if there == due { "=" } else { "≠" };
    writeln!(
        page,
        "accounted for: {there} {equal} {due} acknowledged or took effect\n"
    )
    .unwrap();
    for promise in PROMISES {
        let kept = if promise == "duplicate" {
            "duplicates beyond the bound"
        } else {
            promise
        };
        writeln!(page, "{kept:<34}{:>10}", v.count(promise)).unwrap();
    }
    lateness(&mut page, verdict);
    faults(&mut page, verdict);
    page.push_str(&faults_found(verdict));
    page
}

fn lateness(page: &mut String, verdict: &Verdict) {
    writeln!(
        page,
        "\nlateness, ms, by when it was due     p50      p99      max  messages"
    )
    .unwrap();
    for phase in [Phase::Healthy, Phase::Faults, Phase::Healing] {
        let all = verdict
            .lateness_ms
            .get(&phase)
            .map_or(&[][..], Vec::as_slice);
        let at = |percent: usize| {
            let rank = (all.len() * percent).div_ceil(100);
            all.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        let (name, count) = (phase.to_string(), all.len());
        writeln!(
            page,
            "  {name:<30}{:>8} {:>8} {:>8}  {count:>8}",
            at(50),
            at(99),
            at(100)
        )
        .unwrap();
    }
    let drains: Vec<String> = verdict.drains_ms.iter().map(u64::to_string).collect();
    writeln!(page, "drained, ms after the repair: {}", drains.join(", ")).unwrap();
}

fn faults(page: &mut String, verdict: &Verdict) {
    writeln!(
        page,
        "\nfaults                                                   count   hit     hits"
    )
    .unwrap();
    let mut kinds: BTreeMap<&str, (usize, usize, u64, Option<&str>)> = BTreeMap::new();
    for fault in &verdict.faults {
        let kind = kinds.entry(fault.kind).or_default();
        kind.0 += 1;
        kind.1 += usize::from(fault.hits > 0 && fault.events > 0);
        kind.2 += fault.hits;
        kind.3 = kind.3.or(fault.unavailable.as_deref());
    }
    for (kind, (count, hit, hits, unavailable)) in kinds {
        let here =
            unavailable.map_or_else(String::new, |why| format!("  not available here: {why}"));
        writeln!(page, "  {kind:<54}{count:>6}{hit:>6}{hits:>9}{here}").unwrap();
    }
}

/// What was broken, and what makes the run worthless.
fn faults_found(verdict: &Verdict) -> String {
    let mut text = String::new();
    for (promise, words) in verdict.broken.iter().take(TOLD_MAX) {
        writeln!(text, "BROKEN {promise}: {words}").unwrap();
    }
    if verdict.broken.len() > TOLD_MAX {
        writeln!(text, "… and {} more", verdict.broken.len() - TOLD_MAX).unwrap();
    }
    for words in &verdict.invalid {
        writeln!(text, "INVALID: {words}").unwrap();
    }
    text
}
