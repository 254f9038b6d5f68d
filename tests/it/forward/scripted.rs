//! Against a scripted nsqd: the test reads what comes and says what is answered, so that each kind
//! of answer, and its absence, comes exactly when it is wanted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use nsqdelayd::forward::metrics::Outcome;
use nsqdelayd::forward::{Config, Deadline, Error, Forward};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Pool, clock, config, due, numbered, start, start_later};

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

/// What waits behind commands that are answered is waited for, however long that takes.
#[tokio::test]
async fn a_slow_nsqd_is_waited_for_as_long_as_it_answers() {
    const SLOW: Duration = Duration::from_millis(1200);
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(
        &fake,
        Config {
            forward_timeout: SLOW * 2,
            ..config(&[&fake.address])
        },
    )
    .await;
    let calls = join_all(["a", "b", "c"].map(|topic| pool.publish(numbered(topic, 1))));
    let (facts, ()) = join(calls, async {
        for line in ["PUB a", "PUB b", "PUB c"] {
            assert_eq!(peer.command().await.unwrap().line, line);
        }
        for _ in 0..3 {
            tokio::time::sleep(SLOW).await;
            peer.ok().await;
        }
    })
    .await;
    assert_eq!(facts.concat(), vec![Ok(()); 3]);
}

#[tokio::test]
async fn a_command_that_is_not_answered_comes_back_as_smaller_ones() {
    let fake = Fake::listen().await;
    let (pool, mut peer) = start_on(
        &fake,
        Config {
            forward_timeout: Duration::from_secs(1),
            ..config(&[&fake.address])
        },
    )
    .await;
    let (facts, ()) = join(pool.publish(numbered("t", 160)), async {
        assert_eq!(peer.command().await.unwrap().bodies.len(), 160);
        assert_eq!(peer.command().await, None, "the connection is closed");
    })
    .await;
    assert_eq!(facts, vec![Err(Error::Unknown); 160]);
    let mut peer = fake.accept().await;
    let (facts, sizes) = join(pool.publish(numbered("t", 160)), async {
        let (mut left, mut sizes) = (160, Vec::new());
        while left > 0 {
            sizes.push(peer.command().await.unwrap().bodies.len());
            left -= sizes.last().unwrap();
            peer.ok().await;
        }
        sizes
    })
    .await;
    assert_eq!(facts, vec![Ok(()); 160]);
    assert_eq!(sizes[0], 20, "{sizes:?}");
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
    let facts = pool.forward.publish(numbered("late", 2), passed).await;
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
    let late = pool.forward.publish(numbered("late", 1), deadline);
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
    assert!(!pool.forward.available());
    assert_eq!(pool.publish(numbered("t", 1)).await, [Err(Error::NotSent)]);
}

#[tokio::test]
async fn an_nsqd_that_wants_auth_is_not_available() {
    let fake = Fake::listen().await;
    let pool = start_later(config(&[&fake.address]));
    let mut peer = fake.accept_with(r#"{"auth_required":true}"#).await;
    assert_eq!(peer.command().await, None);
    assert!(!pool.forward.available());
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
