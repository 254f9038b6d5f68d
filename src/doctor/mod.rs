//! The doctor: looks at the Redis and the nsqds of a configuration and says what it finds, each with
//! its remedy. Changes nothing, but for what `dpub` publishes to topics of its own. Starts no part of
//! the server.

mod dpub;
mod http;
mod limits;
mod lookupd;
mod nsqd;

pub use dpub::{MESSAGES_MAX, Plan};

use serde::Serialize;

use crate::config::Config;
use crate::finding::{Finding, Level};
use crate::store;

/// A finding and what it is about.
#[derive(Debug, Clone, Serialize)]
pub struct Sighting {
    /// `redis <address>`, `nsqd <address>` or `dpub <address>`.
    pub subject: String,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// All that was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// In the order of the examination.
    pub findings: Vec<Sighting>,
}

impl Report {
    fn add(&mut self, subject: &str, findings: Vec<Finding>) {
        let sighted = findings.into_iter().map(|finding| Sighting {
            subject: subject.to_owned(),
            finding,
        });
        self.findings.extend(sighted);
    }

    /// How many findings are of this level.
    pub fn count(&self, level: Level) -> usize {
        let of_level = |sighting: &&Sighting| sighting.finding.level == level;
        self.findings.iter().filter(of_level).count()
    }
}

/// Most nsqds that are only known from nsqlookupds and are looked at.
const NAMED_MAX: usize = 16;

/// Looks at Redis, at every nsqlookupd and at every nsqd.
pub async fn examine(config: &Config) -> Report {
    let mut report = Report::default();
    let (url, findings) = store::examine(&config.store).await;
    report.add(&format!("redis {url}"), findings);
    let forward = &config.forward;
    let mut named = Vec::new();
    for lookupd in &forward.lookupd_http_addresses {
        let (nodes, finding) = lookupd::examine(lookupd, forward.dial_timeout).await;
        report.add(&format!("nsqlookupd {lookupd}"), vec![finding]);
        named.extend(nodes);
    }
    for (address, http) in forward.nsqds() {
        let findings = nsqd::examine(address, http, config).await;
        report.add(&format!("nsqd {address}"), findings);
    }
    named.sort();
    named.dedup();
    named.retain(|address| !forward.nsqd_tcp_addresses.contains(address));
    for address in named.iter().take(NAMED_MAX) {
        let findings = nsqd::examine(address, None, config).await;
        report.add(&format!("nsqd {address}"), findings);
    }
    report
}

/// Tests by `plan` whether an nsqd's DPUB can be trusted, and adds what it measured to `report`.
/// Dropping it leaves the topics behind: call [`Plan::clean_up`] then.
pub async fn test_dpub(plan: &Plan, report: &mut Report) {
    let findings = dpub::run(plan).await;
    report.add(&format!("dpub {}", plan.nsqd_tcp_address), findings);
}
