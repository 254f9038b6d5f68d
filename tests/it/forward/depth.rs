//! nsqds that are asked how many messages they hold.

use nsqdelayd::forward::Config;
use nsqdelayd::forward::metrics::{Outcome, PollLabel, PollResult};

use super::{Pool, config, due, start};
use crate::support::consumer::Consumer;
use crate::support::nsqd::Nsqd;

const CALLS: usize = 20;
const MESSAGES: usize = 50;

/// `nsqd` may hold two calls' messages.
fn asking(nsqd: &Nsqd, http: &str) -> Config {
    Config {
        nsqd_http_addresses: vec![http.to_owned()],
        nsqd_depth_max: 2 * MESSAGES as u64,
        ..config(&[&nsqd.tcp])
    }
}

impl Pool {
    fn depth_polls(&self, result: PollResult) -> u64 {
        let label = PollLabel { result };
        self.metrics.depth_polls.get_or_create(&label).get()
    }

    /// Answered, or too late for it.
    fn asked(&self) -> u64 {
        self.depth_polls(PollResult::Answered) + self.depth_polls(PollResult::Failed)
    }

    /// More than the nsqd may hold arrive all the same.
    async fn publish_many(&self, nsqd: &Nsqd) {
        for call in 0..CALLS {
            let body = |n| format!("{call} {n}");
            let messages = (0..MESSAGES).map(|n| due("t", body(n))).collect();
            assert_eq!(self.publish(messages).await, vec![Ok(()); MESSAGES]);
        }
        let all = (CALLS * MESSAGES) as u64;
        assert_eq!(self.counted(Outcome::Accepted), all);
        assert_eq!(nsqd.message_count("t"), all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_consumers_all_is_delivered() {
    let nsqd = Nsqd::start();
    let consumer = Consumer::start(&nsqd.tcp, "t");
    let pool = start(asking(&nsqd, &nsqd.http)).await;
    pool.publish_many(&nsqd).await;
    consumer.wait_distinct(CALLS * MESSAGES);
    assert!(pool.asked() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_consumers_nothing_is_held_back_for_good() {
    let nsqd = Nsqd::start();
    nsqd.create_topic("t");
    nsqd.create_channel("t", "nobody");
    let pool = start(asking(&nsqd, &nsqd.http)).await;
    pool.publish_many(&nsqd).await;
    assert!(pool.asked() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_answer_is_given_all_at_once() {
    let nsqd = Nsqd::start();
    let pool = start(asking(&nsqd, "127.0.0.1:1")).await;
    pool.publish_many(&nsqd).await;
    assert_eq!(pool.depth_polls(PollResult::Answered), 0);
    assert!(pool.depth_polls(PollResult::Failed) > 0);
}
