//! Asks an nsqd over HTTP how many messages of a topic it holds, while it is given many, so that a burst which its
//! consumers can follow stays in its memory. See `credit.rs` for who waits how long.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::forward::credit::{self, Credit};
use crate::forward::metrics::{Metrics, PollResult};
use crate::http_client::{Answer, Bounds, HttpClient, NoAnswer};
use crate::message::TopicName;

/// Longest answer, in bytes: one topic with hundreds of channels.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Before each question, so that there are few: consumers have taken something since the last.
const PAUSE: Duration = Duration::from_millis(4);
/// Most questions at a time, each on a connection that is kept.
const QUESTIONS_MAX: usize = 4;
/// So many topics are remembered before those that do not matter any more are forgotten.
const TOPICS_KEPT: usize = 1_000;

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For an answer of nsqd.
    pub(super) answer: Duration,
    /// For consumers to take as many as it may hold.
    pub(super) turnover: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_millis(500),
            turnover: Duration::from_millis(100),
        }
    }
}

/// What one nsqd holds, by topic.
#[derive(Debug)]
pub(super) struct Depth {
    bounds: credit::Bounds,
    client: HttpClient,
    address: String,
    /// With the wait for others' questions.
    answer_timeout: Duration,
    lines: Mutex<Lines>,
    questions: Semaphore,
    /// It did not answer the last question.
    is_silent: AtomicBool,
    metrics: Metrics,
    tracker: TaskTracker,
}

#[derive(Debug)]
struct Lines {
    by_topic: HashMap<TopicName, Arc<Line>>,
    /// With how many some are forgotten.
    sweep_at: usize,
}

/// Who wants to give messages of one topic. One after the other is served, in the order in which they came.
#[derive(Debug)]
struct Line {
    turn: tokio::sync::Mutex<()>,
    credit: Mutex<Credit>,
    answered: Notify,
}

impl Line {
    fn credit(&self) -> MutexGuard<'_, Credit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages that are on their way until this is dropped.
#[derive(Debug)]
pub(super) struct Given {
    line: Arc<Line>,
    messages: u64,
}

impl Drop for Given {
    fn drop(&mut self) {
        self.line.credit().arrived(self.messages);
    }
}

impl Depth {
    /// Of the nsqd whose HTTP API is at `address`: it is to hold up to `max` messages of a topic.
    pub(super) fn new(
        address: &str,
        max: u64,
        patience: Patience,
        metrics: Metrics,
        tracker: TaskTracker,
    ) -> Result<Self, NoAnswer> {
        let bounds = Bounds {
            connect: patience.answer,
            request: patience.answer,
            body_bytes_max: ANSWER_BYTES_MAX,
        };
        Ok(Self {
            bounds: credit::Bounds {
                max,
                turnover: patience.turnover,
            },
            client: HttpClient::keeping(QUESTIONS_MAX, bounds, None)?,
            address: address.to_owned(),
            answer_timeout: patience.answer,
            lines: Mutex::new(Lines {
                by_topic: HashMap::new(),
                sweep_at: TOPICS_KEPT,
            }),
            questions: Semaphore::new(QUESTIONS_MAX),
            is_silent: AtomicBool::new(false),
            metrics,
            tracker,
        })
    }

    /// Waits until nsqd may be given so many messages of a topic. Cancel safe.
    pub(super) async fn give(self: &Arc<Self>, topic: &TopicName, messages: usize) -> Given {
        let messages = u64::try_from(messages).unwrap_or(u64::MAX);
        let line = self.line(topic);
        let turn = line.turn.lock().await;
        loop {
            let (given, asks) = {
                let mut credit = line.credit();
                (credit.give(messages, Instant::now()), credit.ask())
            };
            if asks {
                let asking = Arc::clone(self).ask(topic.clone(), Arc::clone(&line));
                self.tracker.spawn(asking);
            }
            if given {
                drop(turn);
                return Given { line, messages };
            }
            // An answer that came in between is not missed: it leaves a permit.
            line.answered.notified().await;
        }
    }

    fn line(&self, topic: &TopicName) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.by_topic.get(topic) {
            return Arc::clone(line);
        }
        let now = Instant::now();
        if lines.by_topic.len() >= lines.sweep_at {
            lines.by_topic.retain(|_, line| {
                Arc::strong_count(line) > 1 || !line.credit().is_forgettable(now)
            });
            lines.sweep_at = TOPICS_KEPT.max(2 * lines.by_topic.len());
        }
        let line = Arc::new(Line {
            turn: tokio::sync::Mutex::new(()),
            credit: Mutex::new(Credit::new(self.bounds, now)),
            answered: Notify::new(),
        });
        lines.by_topic.insert(topic.clone(), Arc::clone(&line));
        line
    }

    async fn ask(self: Arc<Self>, topic: TopicName, line: Arc<Line>) {
        sleep(PAUSE).await;
        let has_arrived = line.credit().has_arrived();
        let answer = timeout(self.answer_timeout, self.depth(&topic)).await;
        let depth = match answer {
            Ok(Ok(None)) if has_arrived => Err(
                "it does not know a topic that it was given: another nsqd, or deleted".to_owned(),
            ),
            Ok(depth) => depth.map(Option::unwrap_or_default),
            Err(_elapsed) => Err("no answer in time".to_owned()),
        };
        self.tell(depth.as_ref().err());
        line.credit().answered(depth.ok(), Instant::now());
        line.answered.notify_one();
    }

    /// Counts an answer, and says when they end and when they begin again.
    fn tell(&self, error: Option<&String>) {
        let was_silent = self.is_silent.swap(error.is_some(), Ordering::Relaxed);
        self.metrics.depth_polled(match error {
            None => PollResult::Answered,
            Some(_) => PollResult::Failed,
        });
        match error {
            None if was_silent => {
                info!(nsqd_http = %self.address, "nsqd says again how much it holds");
            }
            None => {}
            Some(error) if was_silent => {
                debug!(nsqd_http = %self.address, %error, "nsqd still does not say how much it holds");
            }
            Some(error) => {
                warn!(nsqd_http = %self.address, %error, "nsqd does not say how much it holds");
            }
        }
    }

    /// `None`: it does not know the topic.
    async fn depth(&self, topic: &TopicName) -> Result<Option<u64>, String> {
        let _permit = self.questions.acquire().await;
        let url = format!("http://{}/stats", self.address);
        let query = [
            ("format", "json"),
            ("topic", topic.as_str()),
            ("include_clients", "false"),
            ("include_mem", "false"),
        ];
        let answer = self.client.get(&url, &query, "application/json").await;
        let body = answer.and_then(Answer::success);
        let body = body.map_err(|error| error.to_string())?;
        depth_of(&body, topic).map_err(|error| format!("not an answer of nsqd: {error}"))
    }
}

#[derive(Deserialize)]
struct Stats {
    topics: Vec<Topic>,
}

#[derive(Deserialize)]
struct Topic {
    #[serde(rename = "topic_name")]
    name: String,
    depth: u64,
    channels: Vec<Channel>,
}

#[derive(Deserialize)]
struct Channel {
    depth: u64,
}

/// What waits in a topic and will in its fullest channel: each channel gets all that the topic has. `None`: there is no
/// such topic.
fn depth_of(body: &[u8], topic: &TopicName) -> Result<Option<u64>, serde_json::Error> {
    let stats: Stats = serde_json::from_slice(body)?;
    let mut topics = stats.topics.into_iter();
    let found = topics.find(|of| of.name == topic.as_str());
    Ok(found.map(|found| {
        let channels = found.channels.iter().map(|channel| channel.depth);
        found.depth.saturating_add(channels.max().unwrap_or(0))
    }))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;

    use super::*;

    type Told = Arc<tokio::sync::Mutex<mpsc::Receiver<String>>>;

    async fn converse(mut stream: BufReader<TcpStream>, told: Told) {
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap() > 0 {
            if line == "\r\n" {
                let body = told.lock().await.recv().await.unwrap();
                let len = body.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            line.clear();
        }
    }

    /// An HTTP server that answers with what it is told, when it is told.
    async fn start() -> (String, mpsc::Sender<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (answers, told) = mpsc::channel(1);
        let (told, tracker) = (Arc::new(tokio::sync::Mutex::new(told)), TaskTracker::new());
        tracker.clone().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tracker.spawn(converse(BufReader::new(stream), Arc::clone(&told)));
            }
        });
        (address, answers)
    }

    fn depth(address: &str) -> Arc<Depth> {
        let far = Duration::from_hours(1);
        let patience = Patience {
            answer: far,
            turnover: far,
        };
        let (metrics, tracker) = (Metrics::default(), TaskTracker::new());
        Arc::new(Depth::new(address, 100, patience, metrics, tracker).unwrap())
    }

    fn topic() -> TopicName {
        TopicName::parse(b"orders").unwrap()
    }

    fn holding(messages: u64) -> String {
        format!(r#"{{"topics":[{{"topic_name":"orders","depth":{messages},"channels":[]}}]}}"#)
    }

    #[tokio::test]
    async fn what_is_more_than_it_may_hold_waits_until_some_was_taken() {
        let (address, answers) = start().await;
        let (depth, topic) = (depth(&address), topic());
        drop(depth.give(&topic, 50).await);
        drop(depth.give(&topic, 50).await);
        let [mut first, mut second] = [50, 30].map(|count| depth.give(&topic, count).boxed());
        assert!((&mut first).now_or_never().is_none());
        // It would fit once the answer is there; who came first goes first.
        assert!((&mut second).now_or_never().is_none());
        let other = TopicName::parse(b"else").unwrap();
        drop(depth.give(&other, 10).await);
        let told = async {
            for left in [90, 60, 40] {
                answers.send(holding(left)).await.unwrap();
            }
        };
        let (first, ()) = tokio::join!(first, told);
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        let (_second, sent) = tokio::join!(second, answers.send(holding(0)));
        sent.unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_one_that_does_not_say() {
        let unknown = r#"{"topics":[]}"#;
        for answer in [None, Some("<html>"), Some(unknown)] {
            let (mut address, answers) = start().await;
            match answer {
                Some(text) => answers.send(text.to_owned()).await.unwrap(),
                None => address = "127.0.0.1:1".to_owned(),
            }
            let (depth, topic) = (depth(&address), topic());
            for _ in 0..10 {
                drop(depth.give(&topic, 50).await);
            }
            let label = crate::forward::metrics::PollLabel {
                result: PollResult::Failed,
            };
            assert_eq!(depth.metrics.depth_polls.get_or_create(&label).get(), 1);
        }
    }

    #[tokio::test]
    async fn topics_that_do_not_matter_any_more_are_forgotten() {
        let depth = depth("127.0.0.1:1");
        tokio::time::pause();
        for n in 0..3 * TOPICS_KEPT {
            let topic = TopicName::parse(format!("t{n}").as_bytes()).unwrap();
            drop(depth.give(&topic, 1).await);
            tokio::time::advance(Duration::from_millis(2)).await;
        }
        let kept = depth.lines.lock().unwrap().by_topic.len();
        assert!(kept <= 2 * TOPICS_KEPT, "{kept}");
    }

    #[track_caller]
    fn check(body: &str, expected: Option<u64>) {
        let depth = depth_of(body.as_bytes(), &topic()).unwrap();
        assert_eq!(depth, expected, "{body}");
    }

    #[test]
    fn an_answer_of_nsqd_is_read() {
        let channels =
            r#"[{"channel_name":"a","depth":3,"backend_depth":1},{"channel_name":"b","depth":5}]"#;
        let named = |name| {
            format!(r#"{{"topic_name":"{name}","channels":{channels},"depth":7,"paused":false}}"#)
        };
        let stats = |topics: &str| format!(r#"{{"version":"1.3.0","topics":[{topics}]}}"#);
        check(&stats(&named("orders")), Some(12));
        check(&stats(&named("else")), None);
        check(&stats(""), None);
        check(
            &stats(r#"{"topic_name":"orders","channels":[],"depth":7}"#),
            Some(7),
        );
        for bad in [
            "",
            "[]",
            "{}",
            "OK",
            r#"{"topics":[{"topic_name":"orders"}]}"#,
        ] {
            assert!(depth_of(bad.as_bytes(), &topic()).is_err(), "{bad}");
        }
    }
}
