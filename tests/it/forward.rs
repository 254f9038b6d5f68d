//! Forward against real nsqds, and against a scripted one for what a real one does not do on demand.
//! Each test looks at the facts that were reported and at what the nsqd got.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use nsqdelayd::forward::metrics::{Metrics, NsqdLabel, Outcome, OutcomeLabel};
use nsqdelayd::forward::{Config, Deadline, DueMessage, Error, Forward, NsqdPool};
use nsqdelayd::message::TopicName;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::support::consumer::Consumer;
use super::support::nsqd::Nsqd;
use super::support::wait;

/// A pool and what it was started with. Stops when dropped.
struct Pool {
    pool: Arc<NsqdPool>,
    metrics: Metrics,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn config(addresses: &[&str]) -> Config {
    Config {
        nsqd_tcp_addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        connections_per_nsqd: 1,
        dial_timeout: Duration::from_secs(5),
        forward_timeout: Duration::from_secs(20),
        heartbeat_interval: Duration::from_secs(30),
        unanswered_bytes_max: 4 << 20,
        mpub_messages_max: 200,
        mpub_bytes_max: 1 << 20,
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(100),
    }
}

/// Starts a pool and waits until every connection is made.
async fn start(config: Config) -> Pool {
    let pool = start_later(config.clone());
    for address in &config.nsqd_tcp_addresses {
        pool.connected(address, config.connections_per_nsqd).await;
    }
    pool
}

fn start_later(config: Config) -> Pool {
    let (metrics, tracker) = (Metrics::default(), TaskTracker::new());
    let stop = CancellationToken::new();
    let pool = NsqdPool::start(config, metrics.clone(), &tracker, stop.clone());
    tracker.close();
    Pool {
        pool,
        metrics,
        tracker,
        stop,
    }
}

impl Pool {
    async fn publish(&self, messages: Vec<DueMessage>) -> Vec<Result<(), Error>> {
        self.pool.publish(messages, far()).await
    }

    fn connections(&self, address: &str) -> i64 {
        let nsqd = address.to_owned();
        let label = NsqdLabel { nsqd };
        self.metrics.connections.get_or_create(&label).get()
    }

    async fn connected(&self, address: &str, count: usize) {
        let what = format!("{count} connections to {address}");
        wait::until_async(&what, || async {
            self.connections(address) == i64::try_from(count).unwrap()
        })
        .await;
    }

    fn counted(&self, outcome: Outcome) -> u64 {
        let label = OutcomeLabel { outcome };
        self.metrics.forwarded.get_or_create(&label).get()
    }
}

fn clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.try_into().unwrap(),
        now.tv_nsec.try_into().unwrap(),
    )
}

/// A deadline that no test reaches.
fn far() -> Deadline {
    Deadline {
        at: clock() + Duration::from_hours(1),
        clock,
    }
}

fn due(topic: &str, body: impl Into<Bytes>) -> DueMessage {
    DueMessage {
        topic: TopicName::parse(topic.as_bytes()).unwrap(),
        body: body.into(),
    }
}

fn numbered(topic: &str, count: usize) -> Vec<DueMessage> {
    (0..count)
        .map(|n| due(topic, format!("{topic} {n}")))
        .collect()
}

/// A scripted nsqd: the test reads what comes and says what is answered.
struct Fake {
    listener: TcpListener,
    address: String,
}

/// One connection to it, after IDENTIFY.
struct Peer {
    stream: BufReader<TcpStream>,
}

/// A PUB or MPUB as it came; another line without a body.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    line: String,
    bodies: Vec<Vec<u8>>,
}

fn received(line: &str, bodies: &[&str]) -> Received {
    Received {
        line: line.to_owned(),
        bodies: bodies.iter().map(|b| b.as_bytes().to_vec()).collect(),
    }
}

impl Fake {
    async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address }
    }

    async fn accept(&self) -> Peer {
        self.accept_with(r#"{"version":"1.3.0","auth_required":false}"#)
            .await
    }

    async fn accept_with(&self, identified: &str) -> Peer {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut peer = Peer {
            stream: BufReader::new(stream),
        };
        let mut magic = [0; 4];
        peer.stream.read_exact(&mut magic).await.unwrap();
        assert_eq!(&magic, b"  V2");
        assert_eq!(peer.line().await.unwrap(), "IDENTIFY");
        let identity: serde_json::Value = serde_json::from_slice(&peer.sized().await).unwrap();
        assert_eq!(identity["feature_negotiation"], true);
        peer.frame(0, identified).await;
        peer
    }
}

impl Peer {
    /// The next line; `None` when the other side has closed.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line).await.unwrap_or(0);
        (count > 0).then(|| line.trim_end().to_owned())
    }

    async fn sized(&mut self) -> Vec<u8> {
        let size = self.stream.read_u32().await.unwrap();
        let mut body = vec![0; size.try_into().unwrap()];
        self.stream.read_exact(&mut body).await.unwrap();
        body
    }

    async fn command(&mut self) -> Option<Received> {
        let line = self.line().await?;
        let mut bodies = Vec::new();
        if line.starts_with("PUB ") {
            bodies.push(self.sized().await);
        } else if line.starts_with("MPUB ") {
            let _size = self.stream.read_u32().await.unwrap();
            for _ in 0..self.stream.read_u32().await.unwrap() {
                bodies.push(self.sized().await);
            }
        }
        Some(Received { line, bodies })
    }

    async fn frame(&mut self, kind: u32, text: &str) {
        let size = u32::try_from(text.len()).unwrap() + 4;
        let mut frame = size.to_be_bytes().to_vec();
        frame.extend(kind.to_be_bytes());
        frame.extend(text.as_bytes());
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn ok(&mut self) {
        self.frame(0, "OK").await;
    }
}

/// Starts a pool on a fake and takes its connection.
async fn start_on(fake: &Fake, config: Config) -> (Pool, Peer) {
    let (pool, peer) = join(start(config), fake.accept()).await;
    (pool, peer)
}

// === a real nsqd ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_arrives_once_at_its_topic_byte_for_byte() {
    let nsqd = Nsqd::start();
    let consumers = ["a", "b"].map(|topic| Consumer::start(&nsqd.tcp, topic));
    let pool = start(config(&[&nsqd.tcp])).await;
    let mut messages = numbered("a", 1000);
    messages.push(due("a", (0..=255).collect::<Vec<u8>>()));
    messages.push(due("b", vec![0; 900_000]));
    messages.push(due("a", vec![1; 1_000_000]));
    messages.extend(numbered("b", 10));
    let facts = pool.publish(messages.clone()).await;
    assert!(facts.iter().all(|fact| *fact == Ok(())), "{facts:?}");
    for (topic, consumer) in ["a", "b"].iter().zip(&consumers) {
        let sent = messages.iter().filter(|m| m.topic.as_str() == *topic);
        let sent: Vec<_> = sent.map(|m| m.body.to_vec()).collect();
        consumer.wait_distinct(sent.len());
        assert_eq!(consumer.count(), sent.len());
        assert!(sent.iter().all(|body| consumer.copies_of(body) == 1));
    }
    assert_eq!(pool.counted(Outcome::Accepted), 1013);
    assert!(pool.metrics.commands.get() < 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_side_by_side_all_get_their_own_facts() {
    let nsqd = Nsqd::start();
    let pool = start(config(&[&nsqd.tcp])).await;
    let calls = (0..300).map(|n| pool.publish(numbered(&format!("t{}", n % 3), 1 + n % 5)));
    let facts: Vec<_> = join_all(calls).await.into_iter().flatten().collect();
    assert_eq!(facts, vec![Ok(()); 900]);
    let taken: u64 = ["t0", "t1", "t2"]
        .map(|topic| nsqd.message_count(topic))
        .iter()
        .sum();
    assert_eq!(taken, 900);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_nsqd_means_not_available_until_one_is_back() {
    let mut nsqd = Nsqd::start();
    nsqd.kill9();
    let pool = start_later(config(&[&nsqd.tcp]));
    assert!(!pool.pool.available());
    assert_eq!(
        pool.publish(numbered("t", 2)).await,
        vec![Err(Error::NotSent); 2]
    );
    nsqd.restart();
    pool.pool.wait_available().await;
    assert!(pool.pool.available());
    assert_eq!(pool.publish(numbered("t", 2)).await, vec![Ok(()); 2]);
    assert_eq!(nsqd.message_count("t"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_nsqd_takes_over_and_the_lost_one_comes_back_by_itself() {
    let (mut one, two) = (Nsqd::start(), Nsqd::start());
    let pool = start(config(&[&one.tcp, &two.tcp])).await;
    let load = async {
        let mut facts = Vec::new();
        for n in 0..400 {
            if n == 200 {
                one.kill9();
            }
            let calls = (0..4).map(|_| pool.publish(numbered("t", 5)));
            facts.extend(join_all(calls).await.into_iter().flatten());
        }
        facts
    };
    let facts = load.await;
    let accepted = facts.iter().filter(|fact| fact.is_ok()).count();
    // What was under way to the nsqd that was killed, and nothing else.
    let unknown = facts
        .iter()
        .filter(|fact| **fact == Err(Error::Unknown))
        .count();
    assert_eq!(accepted + unknown, 8000);
    assert!(unknown <= 20, "{unknown}");
    pool.connected(&one.tcp, 0).await;
    assert!(pool.pool.available());
    let before = two.message_count("t");
    assert_eq!(pool.publish(numbered("t", 50)).await, vec![Ok(()); 50]);
    assert_eq!(two.message_count("t"), before + 50);

    one.restart();
    pool.connected(&one.tcp, 1).await;
    for _ in 0..2 {
        assert_eq!(pool.publish(numbered("u", 5)).await, vec![Ok(()); 5]);
    }
    assert_eq!((one.message_count("u"), two.message_count("u")), (5, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_message_at_fault_is_refused() {
    let nsqd = Nsqd::start_with(&["--max-msg-size=1024"]);
    let pool = start(config(&[&nsqd.tcp])).await;
    for at_fault in [0, 6, 9] {
        let topic = format!("t{at_fault}");
        let mut messages = numbered(&topic, 10);
        messages[at_fault].body = Bytes::from(vec![b'x'; 1025]);
        let facts = pool.publish(messages).await;
        for (index, fact) in facts.into_iter().enumerate() {
            if index == at_fault {
                let text = "E_BAD_MESSAGE PUB message too big 1025 > 1024".to_owned();
                assert_eq!(fact, Err(Error::Refused(text)));
            } else {
                assert_eq!(fact, Ok(()), "message {index}");
            }
        }
        assert_eq!(nsqd.message_count(&topic), 9);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_message_does_not_touch_other_calls() {
    let nsqd = Nsqd::start_with(&["--max-msg-size=1024", "--max-body-size=8192"]);
    let pool = start(config(&[&nsqd.tcp])).await;
    let calls = (0..200).map(|n| {
        let body = vec![b'x'; if n % 50 == 7 { 1025 } else { 100 }];
        pool.publish(vec![due(&format!("t{}", n % 2), body)])
    });
    let facts: Vec<_> = join_all(calls).await.into_iter().flatten().collect();
    for (index, fact) in facts.iter().enumerate() {
        let refused = matches!(fact, Err(Error::Refused(text)) if text.contains("too big"));
        assert_eq!(refused, index % 50 == 7, "{index}: {fact:?}");
        assert!(refused || fact.is_ok(), "{index}: {fact:?}");
    }
    assert_eq!(nsqd.message_count("t0") + nsqd.message_count("t1"), 196);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_nsqd_finds_too_big_another_may_take() {
    let (small, large) = (Nsqd::start_with(&["--max-msg-size=1024"]), Nsqd::start());
    let pool = start(config(&[&small.tcp, &large.tcp])).await;
    for _ in 0..4 {
        let mut messages = numbered("t", 10);
        messages[3].body = Bytes::from(vec![b'x'; 2000]);
        assert_eq!(pool.publish(messages).await, vec![Ok(()); 10]);
    }
    assert_eq!(small.message_count("t") + large.message_count("t"), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_nsqd_leaves_outcomes_unknown_and_is_avoided() {
    let (one, two) = (Nsqd::start(), Nsqd::start());
    let pool = start(Config {
        forward_timeout: Duration::from_millis(200),
        dial_timeout: Duration::from_millis(200),
        ..config(&[&one.tcp, &two.tcp])
    })
    .await;
    one.pause();
    let facts: Vec<_> = join_all((0..10).map(|_| pool.publish(numbered("t", 1))))
        .await
        .concat();
    let unknown = facts
        .iter()
        .filter(|fact| **fact == Err(Error::Unknown))
        .count();
    let accepted = facts.iter().filter(|fact| fact.is_ok()).count();
    assert!(
        unknown > 0 && accepted > 0 && unknown + accepted == 10,
        "{facts:?}"
    );
    pool.connected(&one.tcp, 0).await;
    assert_eq!(pool.publish(numbered("u", 10)).await, vec![Ok(()); 10]);
    assert_eq!(two.message_count("u"), 10);
    one.cont();
    pool.connected(&one.tcp, 1).await;
}

// === a scripted nsqd ===

#[tokio::test]
async fn what_is_ready_together_shares_a_command() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    let calls = join_all((0..3).map(|n| pool.publish(vec![due("t", format!("m{n}"))])));
    let (facts, ()) = join(calls, async {
        let command = peer.command().await.unwrap();
        assert_eq!(command, received("MPUB t", &["m0", "m1", "m2"]));
        peer.ok().await;
    })
    .await;
    assert_eq!(facts.concat(), vec![Ok(()); 3]);
    let (facts, ()) = join(pool.publish(vec![due("t", "alone")]), async {
        assert_eq!(peer.command().await.unwrap(), received("PUB t", &["alone"]));
        peer.ok().await;
    })
    .await;
    assert_eq!(facts, [Ok(())]);
}

#[tokio::test]
async fn an_nsqd_that_never_answers_leaves_the_outcome_unknown() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(
        &fake,
        Config {
            forward_timeout: Duration::from_millis(50),
            ..config(&[&fake.address])
        },
    )
    .await;
    let (facts, ()) = join(pool.publish(numbered("t", 2)), async {
        assert_eq!(peer.command().await.unwrap().bodies.len(), 2);
        assert_eq!(peer.command().await, None, "the connection is closed");
    })
    .await;
    assert_eq!(facts, vec![Err(Error::Unknown); 2]);
    assert_eq!(pool.counted(Outcome::Unknown), 2);
}

#[tokio::test]
async fn a_close_before_the_ok_leaves_the_outcome_unknown() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    let (facts, ()) = join(pool.publish(numbered("t", 2)), async move {
        peer.command().await.unwrap();
        drop(peer);
    })
    .await;
    assert_eq!(facts, vec![Err(Error::Unknown); 2]);
}

#[tokio::test]
async fn a_failed_mpub_is_unknown_and_the_nsqd_proves_itself_again() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    let (facts, ()) = join(pool.publish(numbered("t", 2)), async move {
        peer.command().await.unwrap();
        peer.frame(1, "E_MPUB_FAILED MPUB failed disk full").await;
    })
    .await;
    assert_eq!(facts, vec![Err(Error::Unknown); 2]);
    let mut peer = fake.accept().await;
    let (facts, ()) = join(pool.publish(numbered("t", 2)), async {
        peer.command().await.unwrap();
        peer.ok().await;
    })
    .await;
    assert_eq!(facts, vec![Ok(()); 2]);
}

#[tokio::test]
async fn commands_behind_a_refused_one_are_sent_again_on_a_new_connection() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    let calls = join_all(["a", "b", "c"].map(|topic| pool.publish(numbered(topic, 1))));
    let (facts, ()) = join(calls, async move {
        for line in ["PUB a", "PUB b", "PUB c"] {
            assert_eq!(peer.command().await.unwrap().line, line);
        }
        peer.ok().await;
        peer.frame(1, "E_BAD_MESSAGE PUB message too big 3 > 2")
            .await;
        drop(peer);
        let mut peer = fake.accept().await;
        assert_eq!(peer.command().await.unwrap().line, "PUB c");
        peer.ok().await;
    })
    .await;
    let refused = Error::Refused("E_BAD_MESSAGE PUB message too big 3 > 2".into());
    assert_eq!(facts.concat(), [Ok(()), Err(refused), Ok(())]);
}

#[tokio::test]
async fn a_refused_topic_refuses_all_its_messages_without_a_search() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    let text = "E_BAD_TOPIC E_BAD_TOPIC MPUB topic name \"t\" is not valid";
    let (facts, ()) = join(pool.publish(numbered("t", 3)), async move {
        peer.command().await.unwrap();
        peer.frame(1, text).await;
    })
    .await;
    assert_eq!(facts, vec![Err(Error::Refused(text.into())); 3]);
}

#[tokio::test]
async fn heartbeats_are_answered_also_between_command_and_ok() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    peer.frame(0, "_heartbeat_").await;
    assert_eq!(peer.command().await.unwrap().line, "NOP");
    let (facts, ()) = join(pool.publish(numbered("t", 1)), async {
        peer.command().await.unwrap();
        peer.frame(0, "_heartbeat_").await;
        assert_eq!(peer.command().await.unwrap().line, "NOP");
        peer.ok().await;
    })
    .await;
    assert_eq!(facts, [Ok(())]);
}

#[tokio::test]
async fn a_silent_nsqd_is_dialed_again() {
    let fake = Fake::listen().await;
    let (_pool, mut peer) = start_on(
        &fake,
        Config {
            heartbeat_interval: Duration::from_millis(20),
            ..config(&[&fake.address])
        },
    )
    .await;
    assert_eq!(peer.command().await, None);
    fake.accept().await;
}

#[tokio::test]
async fn nothing_is_written_after_the_deadline() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    let passed = Deadline {
        at: Duration::ZERO,
        clock,
    };
    let facts = pool.pool.publish(numbered("late", 2), passed).await;
    assert_eq!(facts, vec![Err(Error::NotSent); 2]);
    pool.stop.cancel();
    assert_eq!(peer.command().await, None);
}

/// The second call's deadline passes while the first fills the socket: it was given to the
/// connection in time, and still must not be written.
#[tokio::test]
async fn the_deadline_is_asked_right_before_the_write() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(
        &fake,
        Config {
            unanswered_bytes_max: 128 << 20,
            ..config(&[&fake.address])
        },
    )
    .await;
    let deadline = Deadline {
        at: Duration::from_secs(1000),
        clock: || Duration::from_secs(NOW.load(Ordering::SeqCst)),
    };
    let large = pool.publish(vec![due("large", vec![0; 64 << 20])]);
    let late = pool.pool.publish(numbered("late", 1), deadline);
    let ((first, second), ()) = join(join(large, late), async {
        // Both have been given to the connection when the first bytes are here.
        assert_eq!(peer.line().await.unwrap(), "PUB large");
        NOW.store(1000, Ordering::SeqCst);
        assert_eq!(peer.sized().await.len(), 64 << 20);
        peer.ok().await;
    })
    .await;
    assert_eq!((first, second), (vec![Ok(())], vec![Err(Error::NotSent)]));
    pool.stop.cancel();
    assert_eq!(peer.command().await, None);
}

#[tokio::test]
async fn a_caller_waits_when_too_much_is_unanswered() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(
        &fake,
        Config {
            unanswered_bytes_max: 1500,
            ..config(&[&fake.address])
        },
    )
    .await;
    let bodies: Vec<_> = (0..3).map(|n| vec![b'0' + n; 1000]).collect();
    let calls = join_all(
        bodies
            .iter()
            .map(|b| pool.publish(vec![due("t", b.clone())])),
    );
    let (facts, ()) = join(calls, async {
        for body in &bodies {
            // One at a time: a second one would have shared the command.
            assert_eq!(
                peer.command().await.unwrap().bodies,
                std::slice::from_ref(body)
            );
            peer.ok().await;
        }
    })
    .await;
    assert_eq!(facts.concat(), vec![Ok(()); 3]);
}

#[tokio::test]
async fn stopping_waits_for_what_is_unanswered_and_then_closes() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    let (facts, ()) = join(pool.publish(numbered("t", 1)), async {
        peer.command().await.unwrap();
        pool.stop.cancel();
        peer.ok().await;
        assert_eq!(peer.command().await, None);
    })
    .await;
    assert_eq!(facts, [Ok(())]);
    pool.tracker.wait().await;
    assert!(!pool.pool.available());
    assert_eq!(pool.publish(numbered("t", 1)).await, [Err(Error::NotSent)]);
}

#[tokio::test]
async fn an_nsqd_that_wants_auth_is_not_available() {
    let fake = Fake::listen().await;
    let pool = start_later(config(&[&fake.address]));
    let mut peer = fake.accept_with(r#"{"auth_required":true}"#).await;
    assert_eq!(peer.command().await, None);
    assert!(!pool.pool.available());
}

#[tokio::test]
async fn a_dropped_call_is_not_written_any_more() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(&fake, config(&[&fake.address])).await;
    {
        let call = pool.publish(numbered("dropped", 1));
        tokio::pin!(call);
        assert!(futures_util::poll!(call.as_mut()).is_pending());
    }
    let (facts, ()) = join(pool.publish(numbered("t", 1)), async {
        assert_eq!(peer.command().await.unwrap().line, "PUB t");
        peer.ok().await;
    })
    .await;
    assert_eq!(facts, [Ok(())]);
}
