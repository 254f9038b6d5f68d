//! cancel: exact answers from due, H and S; bytes go only beyond what an owner has opened.

use std::future::ready;

use futures_util::future::join_all;
use nsqdelayd::store::{Finished, Mark, ReadMarks, Reschedule, TopicShare};

use super::*;
use crate::support::wait::until_async;

on_both_servers! {
    beyond_the_opened_the_bytes_come_back;
    within_the_opened_only_the_mark_is_written;
    two_thirds_of_a_pack_give_their_bytes_back;
    a_tally_goes_when_all_of_its_pack_is_settled;
    what_moves_while_its_pack_is_cancelled_is_cancelled_once;
    an_opened_pack_keeps_all_its_bytes;
    what_is_handed_out_is_in_flight;
    what_is_settled_is_gone;
    answers_come_in_the_order_asked;
    what_a_failover_lost_stays_cancelled;
    many_are_counted_and_give_their_bytes_back_soon;
    what_nobody_tidied_is_counted_when_its_pack_goes;
    what_nobody_tidied_is_found_by_a_sweep;
    a_store_that_stops_tidies_first;
}

async fn beyond_the_opened_the_bytes_come_back(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, minted) = bench.put(due).await;
    bench.turn(|turn| turn.open_to = UnixMs(due - 1)).await;
    // Again is the same answer, and nothing is counted twice.
    for _ in 0..2 {
        assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
        assert_eq!(bench.marks(), HashMap::from([(mark_of(minted.place), due)]));
        assert!(bench.packs().is_empty() && bench.pending().is_empty());
    }
    assert_eq!(bench.store.get(id).await.unwrap(), None);
}

async fn within_the_opened_only_the_mark_is_written(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, minted) = bench.put(due).await;
    bench.turn(|turn| turn.open_to = UnixMs(due)).await;
    let packs = bench.packs();
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
    assert_eq!(bench.marks(), HashMap::from([(mark_of(minted.place), due)]));
    assert_eq!(bench.packs(), packs);
    assert!(bench.pending().is_empty());
}

/// Ten messages of two topics, stored together: each with its body.
async fn ten(bench: &Bench, due: u64) -> Vec<(MessageId, String)> {
    let of = |n: usize| Message {
        topic: TopicName::parse(if n.is_multiple_of(3) {
            b"bills"
        } else {
            b"orders"
        })
        .unwrap(),
        ..message(&format!("body-{n}"), Due::At(UnixMs(due + n as u64)))
    };
    let receipts = bench.store.schedule((0..10).map(of).collect()).await;
    let ids = receipts.unwrap().into_iter().map(|receipt| receipt.id);
    ids.zip((0..10).map(|n| format!("body-{n}"))).collect()
}

/// What each of them has for a body; none: it is not there.
async fn bodies(bench: &Bench, messages: &[(MessageId, String)]) -> Vec<Option<String>> {
    let mut found = Vec::new();
    for (id, _) in messages {
        let stored = bench.store.get(id.clone()).await.unwrap();
        found.push(stored.map(|m| String::from_utf8(m.body.to_vec()).unwrap()));
    }
    found
}

fn only_pack(bench: &Bench) -> Pack {
    let packs = bench.packs();
    let [(score, value)] = &packs[..] else {
        panic!("{} packs", packs.len());
    };
    Pack::decode(Score(*score), Bytes::copy_from_slice(value)).unwrap()
}

async fn two_thirds_of_a_pack_give_their_bytes_back(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let messages = ten(&bench, due).await;
    let whole = only_pack(&bench);
    let mut cancelled = Vec::new();
    let (mut lens, mut marks) = (Vec::new(), Vec::new());
    // From the middle on, so that positions have gaps.
    for n in [5, 4, 0, 6, 8, 1, 9, 2, 3] {
        assert_eq!(bench.cancel(&messages[n].0).await, Cancel::Cancelled);
        cancelled.push(n);
        let pack = only_pack(&bench);
        assert_eq!(
            (pack.score, pack.nonce, pack.stored),
            (whole.score, whole.nonce, 10)
        );
        lens.push(pack.len);
        let expected: Vec<_> = (0..10)
            .map(|n| (!cancelled.contains(&n)).then(|| messages[n].1.clone()))
            .collect();
        assert_eq!(bodies(&bench, &messages).await, expected);
        marks.push(bench.marks().len());
        let lying = pack.records.iter().map(|record| record.position);
        let dropped: Vec<_> = (0..10)
            .filter(|n| !lying.clone().any(|p| p == *n))
            .collect();
        assert!(dropped.iter().all(|n| cancelled.contains(&usize::from(*n))));
        let counted: u64 = bench.pending().values().sum();
        assert_eq!(counted, 10 - cancelled.len() as u64);
        let bytes: HashMap<String, u64> = bench.ask("HGETALL :bytes");
        let mut held: HashMap<String, u64> = HashMap::new();
        for record in &pack.records {
            *held.entry(record.topic.to_string()).or_default() += record.body.len() as u64;
        }
        assert_eq!(bytes, held);
    }
    assert_eq!(
        lens[5], whole.len,
        "less than two thirds are cancelled: {lens:?}"
    );
    for rewritten in [6, 8] {
        assert!(lens[rewritten] < lens[rewritten - 1], "{lens:?}");
    }
    // The tally stands for the marks of what has left, but for one of each rewrite.
    assert_eq!(marks, [1, 2, 3, 4, 5, 6, 1, 2, 2]);
    // What has left its pack is cancelled still, also when it is handed out meanwhile.
    assert_eq!(bench.cancel(&messages[5].0).await, Cancel::Cancelled);
    bench.set_horizon("handed", due + 6);
    assert_eq!(bench.cancel(&messages[5].0).await, Cancel::Cancelled);
    assert_eq!(bench.cancel(&messages[7].0).await, Cancel::Cancelled);
    assert_eq!(bench.cancel(&messages[7].0).await, Cancel::Cancelled);
    assert!(bench.pending().is_empty());
    assert_eq!(bodies(&bench, &messages).await, [const { None }; 10]);
    // The last stays without its body: the score stays taken.
    let last = only_pack(&bench);
    assert_eq!((last.records.len(), last.records[0].body.len()), (1, 0));
    assert!(bench.marks().contains_key(&mark_of(Place {
        score: last.score,
        nonce: last.nonce,
        position: 7,
    })));
    let bytes: HashMap<String, u64> = bench.ask("HGETALL :bytes");
    assert_eq!(bytes, HashMap::new());
    // Its owner finds nothing to deliver, and removes it.
    bench.set_horizon("handed", due + 9);
    let finished = Finished {
        score: last.score,
        topics: Vec::new(),
        uncounted: Vec::new(),
    };
    bench.turn(|turn| turn.finished = vec![finished]).await;
    assert!(bench.packs().is_empty() && bench.pending().is_empty());
}

async fn a_tally_goes_when_all_of_its_pack_is_settled(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    for (id, _) in &ten(&bench, due).await[..8] {
        assert_eq!(bench.cancel(id).await, Cancel::Cancelled);
    }
    let (tallies, marks) = (|| bench.ask::<u64>("HLEN :tallies"), || bench.marks().len());
    // Set last, at the rewrite, was that of the seventh; the eighth lies there still.
    assert_eq!((tallies(), marks()), (1, 2));
    bench.set_horizon("handed", due + 2 * HOUR);
    for (settled, left) in [(due + 9, 1), (due + 6 + 4_095, 1), (due + 6 + 4_096, 0)] {
        bench.turn(|turn| turn.settle_to = UnixMs(settled)).await;
        assert_eq!(tallies(), left, "{settled}");
    }
    assert_eq!(marks(), 1);
}

/// A move reads a record, and finds it gone from its pack, mark and all, when it comes to move it.
async fn what_moves_while_its_pack_is_cancelled_is_cancelled_once(server: Redis) {
    let bench = Bench::open(server).await;
    for round in 1..=20 {
        let due = bench.now() + round * HOUR;
        let messages = ten(&bench, due).await;
        let ids: Vec<_> = messages.iter().map(|(id, _)| id.clone()).collect();
        let moves = ids
            .iter()
            .map(|id| bench.store.reschedule(id.clone(), after(2 * HOUR)));
        let cancels = ids.iter().map(|id| bench.cancel(id));
        let (moves, cancels) = futures_util::join!(join_all(moves), join_all(cancels));
        assert_eq!(cancels, [Cancel::Cancelled; 10]);
        for answer in moves {
            let answer = answer.unwrap();
            assert!(matches!(
                answer,
                Reschedule::Moved(_) | Reschedule::Cancelled
            ));
        }
        assert_eq!(bodies(&bench, &messages).await, [const { None }; 10]);
        assert_eq!(bench.pending(), HashMap::new());
    }
}

async fn an_opened_pack_keeps_all_its_bytes(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let messages = ten(&bench, due).await;
    bench.turn(|turn| turn.open_to = UnixMs(due)).await;
    let packs = bench.packs();
    let ids: Vec<_> = messages.iter().map(|(id, _)| id.clone()).collect();
    let answers = bench.store.cancel(ids).await.unwrap();
    assert_eq!(answers, [Cancel::Cancelled; 10]);
    assert_eq!(bench.packs(), packs);
    assert_eq!(bodies(&bench, &messages).await, [const { None }; 10]);
    assert!(bench.pending().is_empty());
}

async fn what_is_handed_out_is_in_flight(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, _) = bench.put(due).await;
    bench.set_horizon("handed", due);
    assert_eq!(bench.cancel(&id).await, Cancel::InFlight);
    assert!(bench.marks().is_empty());
    assert_eq!(bench.pending()[TOPIC], 1);
    bench.set_horizon("handed", due - 1);
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
}

async fn what_is_settled_is_gone(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, _) = bench.put(due).await;
    bench.set_horizon("handed", due + 1);
    bench.set_horizon("settled", due);
    assert_eq!(bench.cancel(&id).await, Cancel::NotFound);
    assert!(bench.marks().is_empty());
    bench.set_horizon("settled", due - 1);
    assert_eq!(bench.cancel(&id).await, Cancel::InFlight);
}

async fn answers_come_in_the_order_asked(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (in_flight, _) = bench.put(due).await;
    let (waiting, _) = bench.put(due + 1).await;
    bench.set_horizon("handed", due);
    let ids = vec![client("never"), waiting.clone(), in_flight, waiting];
    assert_eq!(
        bench.store.cancel(ids).await.unwrap(),
        [
            Cancel::NotFound,
            Cancel::Cancelled,
            Cancel::InFlight,
            Cancel::Cancelled
        ]
    );
    assert_eq!(bench.marks().len(), 1);
}

/// What was lost may come again, when its insert arrives twice: it is not delivered then either.
async fn what_a_failover_lost_stays_cancelled(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, minted) = bench.put(due).await;
    let lost = bench.packs().remove(0);
    let _lost: u64 = bench.ask("DEL :due");
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
    let mut again = redis::cmd("ZADD");
    bench.run::<()>(again.arg(Bench::key("due")).arg(lost.0).arg(lost.1));
    assert_eq!(bench.store.get(id.clone()).await.unwrap(), None);
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
    assert_eq!(bench.marks(), HashMap::from([(mark_of(minted.place), due)]));
    assert!(bench.packs().is_empty() && bench.pending().is_empty());
}

/// Cancels in so many requests at the same time that they are answered before they are tidied.
async fn cancel_all(bench: &Bench, ids: &[MessageId]) {
    let requests = ids.chunks(10).map(|ids| bench.store.cancel(ids.to_vec()));
    for answers in join_all(requests).await {
        let mut answers = answers.unwrap().into_iter();
        assert!(answers.all(|answer| answer == Cancel::Cancelled));
    }
}

/// Messages in packs of thirty, and of one.
async fn thirties(bench: &Bench, due: u64) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for pack in 0..4 {
        let of = |n: u64| {
            message(
                &format!("body-{n}"),
                Due::At(UnixMs(due + pack * 2_000 + n)),
            )
        };
        let receipts = bench.store.schedule((0..30).map(of).collect()).await;
        ids.extend(receipts.unwrap().into_iter().map(|receipt| receipt.id));
    }
    for n in 0..5 {
        ids.push(bench.put(due + HOUR + n).await.0);
    }
    ids
}

async fn many_are_counted_and_give_their_bytes_back_soon(server: Redis) {
    let bench = Bench::open(server).await;
    let ids = thirties(&bench, bench.now() + HOUR).await;
    let (kept, cancelled): (Vec<_>, Vec<_>) =
        ids.into_iter().enumerate().partition(|(n, _)| n % 10 == 3);
    let ids: Vec<_> = cancelled.into_iter().map(|(_, id)| id).collect();
    // The same ones again, in the same call: counted once.
    let twice: Vec<_> = ids.iter().chain(&ids).cloned().collect();
    cancel_all(&bench, &twice).await;
    for id in &ids {
        assert_eq!(bench.store.get(id.clone()).await.unwrap(), None);
    }
    let left = HashMap::from([(TOPIC.to_owned(), kept.len() as u64)]);
    until_async("all is counted", || ready(bench.pending() == left)).await;
    // Of each pack a tenth is left.
    let of_each = bench.packs().into_iter().map(|(score, value)| {
        let pack = Pack::decode(Score(score), Bytes::from(value)).unwrap();
        pack.records.len()
    });
    assert_eq!(of_each.collect::<Vec<_>>(), [3, 3, 3, 3, 1]);
    cancel_all(&bench, &ids).await;
    for (_, id) in &kept {
        assert!(bench.store.get(id.clone()).await.unwrap().is_some());
    }
    assert_eq!(bench.pending(), left);
}

/// The instance that cancelled died behind its answer.
async fn what_nobody_tidied_is_counted_when_its_pack_goes(server: Redis) {
    let bench = Bench::open(server).await;
    for tidied_meanwhile in [false, true] {
        let due = bench.now() + if tidied_meanwhile { 4 * HOUR } else { HOUR };
        let messages = ten(&bench, due).await;
        let pack = only_pack(&bench);
        let place = |position| Place {
            score: pack.score,
            nonce: pack.nonce,
            position,
        };
        for position in [2, 4] {
            let record = &pack.records[usize::from(position)];
            let mut mark = redis::cmd("ZADD");
            mark.arg(Bench::key("cancelled"));
            mark.arg(format!("{}.5", record.due.0 - 1));
            bench.run::<()>(mark.arg(&mark_of(place(position))[..]));
        }
        let cancelled = messages[2].0.clone();
        assert_eq!(bench.store.get(cancelled.clone()).await.unwrap(), None);
        let to = UnixMs(due + 9);
        let marks = ReadMarks {
            after: UnixMs(0),
            to,
        };
        let held = bench.turn(|turn| {
            turn.open_to = to;
            turn.marks = Some(marks);
        });
        let uncounted = |position| Mark {
            place: place(position),
            counted: false,
        };
        assert_eq!(held.await.marks, [uncounted(2), uncounted(4)]);
        if tidied_meanwhile {
            assert_eq!(bench.cancel(&cancelled).await, Cancel::Cancelled);
        }
        let counted: u64 = bench.pending().values().sum();
        assert_eq!(counted, if tidied_meanwhile { 8 } else { 10 });
        let share = |name: &[u8], messages, bytes| TopicShare {
            topic: TopicName::parse(name).unwrap(),
            messages,
            bytes,
        };
        let orders = TopicName::parse(b"orders").unwrap();
        let finished = Finished {
            score: pack.score,
            topics: vec![share(b"bills", 4, 24), share(b"orders", 4, 36)],
            uncounted: vec![(place(2), orders.clone()), (place(4), orders)],
        };
        bench.set_horizon("handed", due + HOUR);
        // All that S passes loses its marks in the same turn.
        bench
            .turn(|turn| {
                turn.finished = vec![finished];
                turn.settle_to = UnixMs(due + HOUR);
            })
            .await;
        assert!(bench.packs().is_empty() && bench.marks().is_empty());
        assert_eq!(bench.pending(), HashMap::new());
    }
}

async fn what_nobody_tidied_is_found_by_a_sweep(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let _messages = ten(&bench, due).await;
    let pack = only_pack(&bench);
    // The instance that cancelled died behind its answer.
    for record in &pack.records[..8] {
        let place = Place {
            score: pack.score,
            nonce: pack.nonce,
            position: record.position,
        };
        let mut mark = redis::cmd("ZADD");
        mark.arg(Bench::key("cancelled"));
        mark.arg(format!("{}.5", record.due.0 - 1));
        bench.run::<()>(mark.arg(&mark_of(place)[..]));
    }
    let sweep = || bench.store.sweep(vec![bench.shard()]);
    sweep().await.unwrap();
    assert_eq!(
        bench.pending().values().sum::<u64>(),
        10,
        "no cancel was counted"
    );
    bench.ask::<()>("HSET :horizon marked 3");
    sweep().await.unwrap();
    until_async("all is counted", || {
        ready(bench.pending().values().sum::<u64>() == 2)
    })
    .await;
    assert_eq!(only_pack(&bench).records.len(), 2);
    until_async("it is noted", || {
        ready(bench.ask::<u64>("HGET :horizon tidied") == 3)
    })
    .await;
}

async fn a_store_that_stops_tidies_first(server: Redis) {
    let bench = Bench::open(server).await;
    let ids = thirties(&bench, bench.now() + HOUR).await;
    cancel_all(&bench, &ids).await;
    bench.stop.cancel();
    bench.tracker.close();
    bench.tracker.wait().await;
    assert_eq!(bench.pending(), HashMap::new());
}
