//! Against real nsqds: what they got is read from their own statistics or by a consumer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use nsqdelayd::forward::metrics::Outcome;
use nsqdelayd::forward::{Config, Error, Forward};

use super::{config, due, far, numbered, start, start_later};
use crate::support::consumer::Consumer;
use crate::support::nsqd::Nsqd;
use crate::support::wait;

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
    assert!(!pool.forward.available());
    assert_eq!(
        pool.publish(numbered("t", 2)).await,
        vec![Err(Error::NotSent); 2]
    );
    nsqd.restart();
    pool.forward.wait_available().await;
    assert!(pool.forward.available());
    assert_eq!(pool.publish(numbered("t", 2)).await, vec![Ok(()); 2]);
    assert_eq!(nsqd.message_count("t"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_nsqd_takes_over_and_the_lost_one_comes_back_by_itself() {
    let (mut one, two) = (Nsqd::start(), Nsqd::start());
    let pool = start(config(&[&one.tcp, &two.tcp])).await;
    let load = pool.tracker.spawn({
        let pool = Arc::clone(&pool.forward);
        async move {
            let mut facts = Vec::new();
            for _ in 0..2000 {
                let calls = (0..4).map(|_| pool.publish(numbered("t", 5), far()));
                facts.extend(join_all(calls).await.into_iter().flatten());
            }
            facts
        }
    });
    wait::until("the load to be under way", || one.message_count("t") > 500);
    one.kill9();
    let facts = load.await.unwrap();
    let accepted = facts.iter().filter(|fact| fact.is_ok()).count();
    // What was under way to the nsqd that was killed, and nothing else.
    let unknown = facts
        .iter()
        .filter(|fact| **fact == Err(Error::Unknown))
        .count();
    assert_eq!(accepted + unknown, 40_000);
    assert!(unknown <= 20, "{unknown}");
    pool.connected(&one.tcp, 0).await;
    assert!(pool.forward.available());
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

/// nsqd closes with most of the command unread, which resets the connection: its reason must be read
/// all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_understood_when_the_command_was_long() {
    let nsqd = Nsqd::start_with(&["--max-msg-size=8192"]);
    let pool = start(config(&[&nsqd.tcp])).await;
    for round in 0..10 {
        let topic = format!("t{round}");
        let bodies = (0..180).map(|n| vec![b'x'; if n == 1 { 10_000 } else { 5000 }]);
        let facts = pool
            .publish(bodies.map(|body| due(&topic, body)).collect())
            .await;
        for (index, fact) in facts.iter().enumerate() {
            let refused = matches!(fact, Err(Error::Refused(_)));
            assert_eq!(refused, index == 1, "{index}: {fact:?}");
            assert!(refused || fact.is_ok(), "{index}: {fact:?}");
        }
        assert_eq!(nsqd.message_count(&topic), 179);
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

/// It is no dead letter while one that may take it cannot be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_an_nsqd_that_is_away_may_take_waits_for_it() {
    let small = Nsqd::start_with(&["--max-msg-size=1024"]);
    let mut large = Nsqd::start();
    let pool = start(config(&[&small.tcp, &large.tcp])).await;
    large.kill9();
    pool.connected(&large.tcp, 0).await;
    let long = || vec![due("t", vec![b'x'; 2000])];
    assert_eq!(pool.publish(long()).await, [Err(Error::NotSent)]);
    // Its limit is known now: it is not asked again, and what else it gets is not disturbed.
    pool.connected(&small.tcp, 1).await;
    let commands = pool.metrics.commands.get();
    assert_eq!(pool.publish(long()).await, [Err(Error::NotSent)]);
    assert_eq!(pool.metrics.commands.get(), commands);
    assert_eq!(pool.publish(numbered("t", 3)).await, vec![Ok(()); 3]);
    assert_eq!(small.message_count("t"), 3);
    large.restart();
    pool.connected(&large.tcp, 1).await;
    for _ in 0..4 {
        assert_eq!(pool.publish(long()).await, [Ok(())]);
    }
    assert_eq!(large.message_count("t"), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_nsqd_finds_too_big_is_refused_with_its_words() {
    let limits = ["--max-msg-size=1024", "--max-msg-size=1500"];
    let [one, two] = limits.map(|limit| Nsqd::start_with(&[limit]));
    let pool = start(config(&[&one.tcp, &two.tcp])).await;
    for _ in 0..3 {
        // nsqd closes the connection of what is too big: until one is there again, nothing is sent.
        let facts = loop {
            let facts = pool.publish(vec![due("t", vec![b'x'; 2000])]).await;
            if facts != [Err(Error::NotSent)] {
                break facts;
            }
            tokio::task::yield_now().await;
        };
        let Err(Error::Refused(text)) = &facts[0] else {
            panic!("{facts:?}");
        };
        assert!(text.starts_with("E_BAD_MESSAGE PUB message too big 2000 > "));
    }
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
