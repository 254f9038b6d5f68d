//! A backlog goes out while it is read: the first of it is not kept until the last has been read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use nsqdelayd::dispatch::{Config, Dispatcher, Metrics};
use nsqdelayd::forward::{Deadline, DueMessage, Error, Forward};
use nsqdelayd::message::{Delay, Due, Message, TopicName};
use nsqdelayd::store::ScheduleStore as _;
use nsqdelayd::timer::{Clock, Timers};
use prometheus_client::registry::Registry;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::link::{Fate, Wire};
use crate::model::{Link, ModelStore, Request, Server};
use crate::run::{dispatch_config, settings};
use crate::world::{clock, start_clock};

const MESSAGES: usize = 5_000;
const BODY_BYTES: usize = 300;

/// Answers everything after a ms, and counts the turns.
#[derive(Debug, Default)]
struct Counted {
    turns: AtomicU64,
}

impl Wire for Counted {
    fn fate(&self, request: Request) -> Fate {
        if request == Request::Turn {
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
        let way = Duration::from_millis(1);
        Fate::Answered {
            out: way,
            back: way,
        }
    }

    fn reconnect(&self) -> Duration {
        Duration::ZERO
    }

    fn loses_wake(&self) -> bool {
        false
    }
}

/// Takes everything, and notes how many turns had been asked for by then.
#[derive(Debug)]
struct Noting {
    wire: Arc<Counted>,
    batches: Mutex<Vec<(u64, usize)>>,
}

impl Noting {
    fn taken(&self) -> usize {
        let batches = self.batches.lock().unwrap();
        batches.iter().map(|(_, messages)| messages).sum()
    }
}

impl Forward for Noting {
    fn publish(
        &self,
        messages: Vec<DueMessage>,
        _deadline: Deadline,
    ) -> BoxFuture<'_, Vec<Result<(), Error>>> {
        Box::pin(async move {
            let turns = self.wire.turns.load(Ordering::Relaxed);
            self.batches.lock().unwrap().push((turns, messages.len()));
            sleep(Duration::from_millis(1)).await;
            messages.iter().map(|_| Ok(())).collect()
        })
    }

    fn available(&self) -> bool {
        true
    }

    fn wait_available(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Stores a backlog of one shard, due at one moment, and serves it. How many turns there had been when the first of it
/// went out, and when the last did.
async fn turns_at_first_and_last() -> (u64, u64) {
    start_clock();
    let now_us = || 1_800_000_000_000_000 + u64::try_from(clock().as_micros()).unwrap();
    let server = Server::new(settings(1, None), Arc::new(now_us));
    let (wire, tracker) = (Arc::new(Counted::default()), TaskTracker::new());
    let link = Link::new(1, Arc::clone(&wire) as Arc<dyn Wire>, clock, &tracker);
    let store = ModelStore::new(server, link);
    let message = Message {
        topic: TopicName::parse(b"backlog").unwrap(),
        body: Bytes::from(vec![b'x'; BODY_BYTES]),
        due: Due::After(Delay(5_000)),
        id: None,
    };
    store.schedule(vec![message; MESSAGES]).await.unwrap();
    let forward = Arc::new(Noting {
        wire,
        batches: Mutex::default(),
    });
    let config = Config {
        open_bytes_max: 64 << 20,
        unsettled_max: MESSAGES * 2,
        batch_messages_max: 200,
        sending_bytes_max: 4 << 20,
        ..dispatch_config(Duration::ZERO)
    };
    let clocks = Clock {
        now: clock,
        timers: Timers::Runtime,
    };
    let drain = CancellationToken::new();
    let driver = Dispatcher::start(
        config,
        store,
        Arc::clone(&forward) as Arc<dyn Forward>,
        Metrics::register(&mut Registry::default()),
        clocks,
        &tracker,
        drain.clone(),
    );
    while forward.taken() < MESSAGES {
        sleep(Duration::from_millis(10)).await;
    }
    drain.cancel();
    driver.await.unwrap();
    let batches = forward.batches.lock().unwrap();
    (batches.first().unwrap().0, batches.last().unwrap().0)
}

#[test]
fn a_backlog_goes_out_while_it_is_read() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let (first, last) = runtime.block_on(turns_at_first_and_last());
    // Each of the four shards asks once where its backlog begins.
    assert!(first * 2 < last, "{first} of {last} turns");
}
