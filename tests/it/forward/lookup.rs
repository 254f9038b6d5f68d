//! nsqds found through nsqlookupd: real ones, and a scripted nsqlookupd for answers that a real one
//! gives only after minutes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nsqdelayd::forward::metrics::{PollLabel, PollResult};
use nsqdelayd::forward::{Config, Error, Forward};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{Pool, config, numbered, start_later};
use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::http;
use crate::support::nsqd::{Nsqd, Nsqlookupd};
use crate::support::producer::publish;
use crate::support::redis::Redis;
use crate::support::wait;

/// An nsqd that these nsqlookupds know when this returns.
fn registered(lookupds: &[&Nsqlookupd], topics: &[&str]) -> Nsqd {
    let addresses = lookupds
        .iter()
        .map(|lookupd| format!("--lookupd-tcp-address={}", lookupd.tcp));
    let addresses: Vec<String> = addresses.collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let nsqd = Nsqd::start_with(&addresses);
    for topic in topics {
        nsqd.create_topic(topic);
    }
    let port: u64 = nsqd.tcp.rsplit(':').next().unwrap().parse().unwrap();
    for lookupd in lookupds {
        wait::until("nsqlookupd to know the nsqd and its topics", || {
            let nodes = http::get(&lookupd.http, "/nodes").json();
            let nodes = nodes["producers"].as_array().unwrap();
            let node = nodes.iter().find(|n| n["tcp_port"] == port);
            node.is_some_and(|n| n["topics"].as_array().unwrap().len() == topics.len())
        });
    }
    nsqd
}

fn found_by(lookupds: &[&str]) -> Config {
    Config {
        lookupd_http_addresses: lookupds.iter().map(|l| (*l).to_owned()).collect(),
        ..config(&[])
    }
}

impl Pool {
    fn answers(&self) -> u64 {
        let result = PollResult::Answered;
        self.metrics
            .polls
            .get_or_create(&PollLabel { result })
            .get()
    }

    /// Waits until what nsqlookupd says at this moment has been taken in.
    async fn asked_again(&self) {
        let enough = self.answers() + 2;
        wait::until_async("two answers of nsqlookupd", || async {
            self.answers() >= enough
        })
        .await;
    }

    async fn knows(&self, count: i64) {
        wait::until_async(&format!("{count} nsqds to be known"), || async {
            self.metrics.known.get() == count
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_goes_where_it_is_and_a_new_one_anywhere() {
    let lookupd = Nsqlookupd::start();
    let (one, two) = (
        registered(&[&lookupd], &[]),
        registered(&[&lookupd], &["t"]),
    );
    let pool = start_later(found_by(&[&lookupd.http]));
    pool.connected(&one.tcp, 1).await;
    pool.connected(&two.tcp, 1).await;
    for _ in 0..6 {
        assert_eq!(pool.publish(numbered("t", 5)).await, vec![Ok(()); 5]);
    }
    assert_eq!((one.message_count("t"), two.message_count("t")), (0, 30));
    for round in 0..2 {
        let topic = format!("new{round}");
        assert_eq!(pool.publish(numbered(&topic, 1)).await, [Ok(())]);
    }
    let new = |nsqd: &Nsqd| nsqd.message_count("new0") + nsqd.message_count("new1");
    assert_eq!((new(&one), new(&two)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqd_that_carries_the_topic_is_not_waited_for_when_it_is_away() {
    let lookupd = Nsqlookupd::start();
    let (one, mut two) = (
        registered(&[&lookupd], &[]),
        registered(&[&lookupd], &["t"]),
    );
    let pool = start_later(found_by(&[&lookupd.http]));
    pool.connected(&one.tcp, 1).await;
    pool.connected(&two.tcp, 1).await;
    two.kill9();
    pool.connected(&two.tcp, 0).await;
    assert_eq!(pool.publish(numbered("t", 5)).await, vec![Ok(()); 5]);
    assert_eq!(one.message_count("t"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nsqds_come_and_go() {
    let lookupd = Nsqlookupd::start();
    let _one = registered(&[&lookupd], &[]);
    let pool = start_later(found_by(&[&lookupd.http]));
    pool.knows(1).await;
    let mut two = registered(&[&lookupd], &["t"]);
    pool.connected(&two.tcp, 1).await;
    pool.asked_again().await;
    assert_eq!(pool.publish(numbered("t", 3)).await, vec![Ok(()); 3]);
    assert_eq!(two.message_count("t"), 3);
    two.sigterm_and_wait();
    pool.knows(1).await;
    assert_eq!(pool.publish(numbered("t", 3)).await, vec![Ok(()); 3]);
    two.restart();
    pool.connected(&two.tcp, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqlookupd_that_is_away_at_the_start_is_asked_until_it_answers() {
    let mut lookupd = Nsqlookupd::start();
    lookupd.kill9();
    let pool = start_later(Config {
        // Not to be waited for: what does not answer is asked again sooner.
        lookupd_poll_interval: Duration::from_hours(1),
        ..found_by(&[&lookupd.http])
    });
    assert_eq!(
        pool.publish(numbered("t", 1)).await,
        [Err(Error::NotSent)],
        "nobody is known"
    );
    lookupd.restart();
    let nsqd = registered(&[&lookupd], &[]);
    pool.forward.wait_available().await;
    assert_eq!(pool.publish(numbered("t", 1)).await, [Ok(())]);
    assert_eq!(nsqd.message_count("t"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dead_nsqlookupds_said_last_still_counts() {
    let (mut a, mut b) = (Nsqlookupd::start(), Nsqlookupd::start());
    let (mut one, two) = (registered(&[&a], &["t"]), registered(&[&b], &["t"]));
    let pool = start_later(found_by(&[&a.http, &b.http]));
    pool.connected(&one.tcp, 1).await;
    pool.connected(&two.tcp, 1).await;
    a.kill9();
    let failed = PollLabel {
        result: PollResult::Failed,
    };
    let failures = || pool.metrics.polls.get_or_create(&failed).get();
    wait::until_async("failed questions", || async { failures() >= 2 }).await;
    b.kill9();
    let before = failures();
    wait::until_async("more of them", || async { failures() >= before + 4 }).await;
    for _ in 0..2 {
        assert_eq!(pool.publish(numbered("t", 5)).await, vec![Ok(()); 5]);
    }
    assert_eq!((one.message_count("t"), two.message_count("t")), (5, 5));
    one.kill9();
    pool.connected(&one.tcp, 0).await;
    one.restart();
    pool.connected(&one.tcp, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstoned_topic_goes_elsewhere_as_long_as_there_is_an_elsewhere() {
    let lookupd = Nsqlookupd::start();
    let (mut one, two) = (
        registered(&[&lookupd], &[]),
        registered(&[&lookupd], &["t"]),
    );
    let pool = start_later(found_by(&[&lookupd.http]));
    pool.connected(&one.tcp, 1).await;
    pool.connected(&two.tcp, 1).await;
    let tombstone = format!("/topic/tombstone?topic=t&node={}", two.http);
    assert_eq!(http::post(&lookupd.http, &tombstone, b"").status, 200);
    pool.asked_again().await;
    assert_eq!(pool.publish(numbered("t", 5)).await, vec![Ok(()); 5]);
    assert_eq!((one.message_count("t"), two.message_count("t")), (5, 0));
    one.kill9();
    pool.connected(&one.tcp, 0).await;
    assert_eq!(pool.publish(numbered("t", 5)).await, vec![Ok(()); 5]);
    assert_eq!(two.message_count("t"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_nsqd_is_used_beside_those_that_are_found() {
    let lookupd = Nsqlookupd::start();
    let (named, found) = (Nsqd::start(), registered(&[&lookupd], &["t"]));
    let pool = start_later(Config {
        nsqd_tcp_addresses: vec![named.tcp.clone()],
        ..found_by(&[&lookupd.http])
    });
    pool.connected(&named.tcp, 1).await;
    pool.connected(&found.tcp, 1).await;
    for _ in 0..4 {
        assert_eq!(pool.publish(numbered("t", 1)).await, [Ok(())]);
    }
    assert_eq!((named.message_count("t"), found.message_count("t")), (2, 2));
}

/// An nsqlookupd that says what the test wants.
struct Fake {
    address: String,
    answer: Arc<Mutex<(u16, String)>>,
    _task: AbortOnDropHandle<()>,
}

impl Fake {
    async fn start(pool: &tokio_util::task::TaskTracker) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answer = Arc::new(Mutex::new((500, String::new())));
        let task = pool.spawn({
            let answer = Arc::clone(&answer);
            async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(stream.read_u8().await.unwrap());
                    }
                    assert!(request.starts_with(b"GET /nodes HTTP/1.1\r\n"));
                    let (status, body) = answer.lock().unwrap().clone();
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
                    let text = format!("{head}Connection: close\r\n\r\n{body}");
                    stream.write_all(text.as_bytes()).await.unwrap();
                }
            }
        });
        Self {
            address,
            answer,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn says(&self, status: u16, body: impl Into<String>) {
        *self.answer.lock().unwrap() = (status, body.into());
    }
}

fn nodes(nsqds: &[&Nsqd]) -> String {
    let node = |nsqd: &&Nsqd| {
        let port: u16 = nsqd.tcp.rsplit(':').next().unwrap().parse().unwrap();
        json!({"broadcast_address": "127.0.0.1", "tcp_port": port, "topics": [], "tombstones": []})
    };
    let nodes: Vec<_> = nsqds.iter().map(node).collect();
    json!({"producers": nodes}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqd_that_lives_on_but_is_gone_from_nsqlookupd_is_closed_and_faults_change_nothing() {
    let tracker = tokio_util::task::TaskTracker::new();
    let fake = Fake::start(&tracker).await;
    let (one, two) = (Nsqd::start(), Nsqd::start());
    let pool = start_later(found_by(&[&fake.address]));
    fake.says(200, nodes(&[&one, &two]));
    pool.connected(&one.tcp, 1).await;
    pool.connected(&two.tcp, 1).await;
    let failed = PollLabel {
        result: PollResult::Failed,
    };
    for (status, body) in [(500, "{}"), (200, "<html>"), (200, "{}"), (302, "")] {
        let before = pool.metrics.polls.get_or_create(&failed).get();
        fake.says(status, body);
        wait::until_async("failed questions", || async {
            pool.metrics.polls.get_or_create(&failed).get() >= before + 2
        })
        .await;
        assert_eq!(pool.metrics.known.get(), 2, "{status} {body}");
    }
    fake.says(200, nodes(&[&two]));
    pool.knows(1).await;
    wait::until("the connection to be closed", || {
        let stats = http::get(&one.http, "/stats?format=json").json();
        stats["producers"].as_array().is_none_or(Vec::is_empty)
    });
    assert_eq!(pool.publish(numbered("t", 4)).await, vec![Ok(()); 4]);
    assert_eq!(two.message_count("t"), 4);
}

/// The whole program with nothing but an nsqlookupd to go by, which is not there yet when it starts.
#[test]
fn the_program_needs_only_an_nsqlookupd() {
    let (redis, mut lookupd) = (Redis::start(), Nsqlookupd::start());
    lookupd.kill9();
    let app = App::builder()
        .redis(&redis)
        .flag("--lookupd-http-address", &lookupd.http)
        .flag("--lookupd-poll-interval", "200ms")
        .start();
    let mut producer = app.producer();
    producer.dpub("t", 10, b"delayed");
    producer.send(&publish("t", b"at once")).unwrap();
    producer.expect_ok();
    lookupd.restart();
    let nsqd = registered(&[&lookupd], &["t"]);
    let consumer = Consumer::start(&nsqd.tcp, "t");
    consumer.wait_distinct(2);
    assert_eq!(consumer.copies_of(b"delayed"), 1);
    assert!(app.metric("nsqds", "") >= 1.0);
    assert!(app.metric("lookupd_polls_total", "failed") >= 1.0);
}
