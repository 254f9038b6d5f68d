//! Whether an nsqd's own DPUB can be trusted: publishes a bounded number of small messages to topics of
//! its own, consumes them, and measures. What it found out is put into words next door.

mod trial;
mod verdict;

use std::time::Duration;

use crate::config::Config;
use crate::doctor::http::Http;
use crate::doctor::limits;
use crate::doctor::nsqd::{memory_queue, wishes};
use crate::finding::{Finding, Level};
use crate::message::TopicName;
use crate::nsqd::{self, Fault, Wishes};

use trial::{Trial, Trials};

/// Most messages of the test for early delivery.
pub const MESSAGES_MAX: usize = 100_000;
/// Messages of that test beyond nsqd's memory queue.
const BEYOND: usize = 1_000;
/// nsqd's default of `--mem-queue-size`, when it cannot be asked.
const MEMORY_QUEUE_DEFAULT: usize = 10_000;
/// Messages of the test for lateness.
const PACED: usize = 500;
/// Time between two of them.
const PACE: Duration = Duration::from_millis(5);
/// About how long that test takes, in seconds.
const PACED_S: u64 = 11;
/// Shortest and longest delay of the test for lateness, in ms.
const PACED_DELAY_MS: std::ops::Range<u64> = 500..1_500;
/// Delay of the test for early delivery, in ms: long against publishing all of them.
const BURST_DELAY_MS: u64 = 10_000;
/// A delay that nsqd's arithmetic wraps to less than a millisecond: 585 million years, in ms.
const WRAPPING_DELAY_MS: u64 = 18_446_744_073_710;

/// What will be done to one nsqd.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its TCP address.
    pub nsqd_tcp_address: String,
    http: Option<Http>,
    wishes: Wishes,
    memory_queue: Option<u64>,
    /// Messages of the test for early delivery; `None`: it cannot go beyond the memory queue.
    burst: Option<usize>,
    paced_topic: TopicName,
    burst_topic: TopicName,
}

impl Plan {
    /// Looks at the nsqd and decides how much to publish. `messages` is the most of the test for early
    /// delivery.
    pub async fn make(
        nsqd_tcp_address: &str,
        http_address: Option<&str>,
        messages: Option<usize>,
        config: &Config,
    ) -> Result<Self, Fault> {
        let http = match http_address {
            Some(address) => Http::at(address).ok(),
            None => Http::beside(nsqd_tcp_address).await,
        };
        let memory_queue = match &http {
            Some(http) => memory_queue(http).await,
            None => None,
        };
        let size = memory_queue.map_or(MEMORY_QUEUE_DEFAULT, |size| {
            usize::try_from(size).unwrap_or(usize::MAX)
        });
        let wanted = messages.unwrap_or(size.saturating_add(BEYOND));
        // What is not known is not held against the number that was given.
        let enough = wanted > size || memory_queue.is_none();
        let burst = (enough && (1..=MESSAGES_MAX).contains(&wanted)).then_some(wanted);
        let tag = format!("{:08x}", fastrand::u32(..));
        let topic = |name: String| {
            TopicName::parse(name.as_bytes())
                .map_err(|_too_long| Fault::Unexpected("a topic of the doctor's own".to_owned()))
        };
        Ok(Self {
            nsqd_tcp_address: nsqd_tcp_address.to_owned(),
            wishes: wishes(config),
            memory_queue,
            burst,
            paced_topic: topic(format!("nsqdelayd_doctor_{tag}#ephemeral"))?,
            // Without the suffix: beyond the memory queue an ephemeral topic throws messages away.
            burst_topic: topic(format!("nsqdelayd_doctor_{tag}"))?,
            http,
        })
    }

    /// What will be done, for whoever owns that nsqd.
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = vec![format!(
            "on nsqd {}: {PACED} messages of {} bytes with delays up to {} ms to topic {}, about {} s",
            self.nsqd_tcp_address,
            trial::BODY_LEN,
            PACED_DELAY_MS.end,
            self.paced_topic,
            PACED_S,
        )];
        if let Some(burst) = self.burst {
            sentences.push(format!(
                "then {burst} messages of {} bytes with a delay of {} s to topic {}, which {}, about {} s",
                trial::BODY_LEN,
                BURST_DELAY_MS / 1_000,
                self.burst_topic,
                if self.http.is_some() {
                    "is deleted afterwards"
                } else {
                    "is left behind, empty (without --nsqd-http-address it cannot be deleted)"
                },
                BURST_DELAY_MS / 1_000 + 3,
            ));
        }
        sentences
    }

    /// Deletes the topics that do not go away by themselves; what is left to do by hand.
    pub async fn clean_up(&self) -> Option<String> {
        let burst_topic = &self.burst_topic;
        self.burst?;
        let by_hand = |address: &str| {
            format!(
                "topic {burst_topic} is left on {}; delete it: curl -X POST \
                 'http://{address}/topic/delete?topic={burst_topic}'",
                self.nsqd_tcp_address
            )
        };
        match &self.http {
            None => Some(by_hand("<its HTTP address>")),
            Some(http) => match http.delete_topic(burst_topic.as_str()).await {
                Ok(()) => None,
                Err(_still_there) => Some(by_hand(&http.address)),
            },
        }
    }
}

/// Does what `plan` says, cleans up, and puts what was measured into words.
pub(super) async fn run(plan: &Plan) -> Vec<Finding> {
    let mut findings = Vec::new();
    let stopped = measure(plan, &mut findings).await.err();
    if let Some(fault) = stopped {
        findings.push(Finding::new(
            Level::Error,
            "test",
            format!("the test stopped: {fault}"),
            "what had not been measured by then is not known",
            "read nsqd's log, and try again",
        ));
    }
    if let Some(left) = plan.clean_up().await {
        findings.push(Finding::new(
            Level::Remark,
            "clean_up",
            "a topic is left behind",
            "it is empty; nothing was found to delete it with",
            left,
        ));
    }
    findings
}

async fn measure(plan: &Plan, findings: &mut Vec<Finding>) -> Result<(), Fault> {
    let address = plan.nsqd_tcp_address.as_str();
    let limits = limits::ask(address, &plan.wishes).await?;
    let (_, _, identity) = nsqd::dial(address, &plan.wishes).await?;
    findings.extend(verdict::longest_delay(limits.delay_ms));
    let trials = Trials {
        address,
        wishes: plan.wishes.clone(),
        ready: identity.max_rdy_count.clamp(1, 2_500),
    };
    let paced = Trial {
        topic: &plan.paced_topic,
        count: PACED,
        delays_ms: PACED_DELAY_MS,
    };
    let (seen, wrapped) = trials.paced(&paced, PACE, WRAPPING_DELAY_MS).await?;
    findings.push(verdict::lateness(&seen));
    findings.push(verdict::wrapping(WRAPPING_DELAY_MS, wrapped));
    match plan.burst {
        Some(count) => {
            let burst = Trial {
                topic: &plan.burst_topic,
                count,
                delays_ms: BURST_DELAY_MS..BURST_DELAY_MS + 1,
            };
            let seen = trials.burst(&burst).await?;
            findings.extend(verdict::early(&seen, plan.memory_queue));
        }
        None => findings.push(verdict::not_tested(plan.memory_queue)),
    }
    findings.extend(verdict::by_design());
    Ok(())
}
