//! cancel: exact answers from due, H and S; bytes go only beyond what an owner has opened.

use futures_util::future::join_all;
use nsqdelayd::store::{Finished, Reschedule};

use super::*;

on_both_servers! {
    beyond_the_opened_the_bytes_come_back;
    within_the_opened_only_the_mark_is_written;
    two_thirds_of_a_pack_give_their_bytes_back;
    a_head_goes_when_all_of_its_pack_is_settled;
    what_moves_while_its_pack_is_cancelled_is_cancelled_once;
    an_opened_pack_keeps_all_its_bytes;
    what_is_handed_out_is_in_flight;
    what_is_settled_is_gone;
    answers_come_in_the_order_asked;
    a_pack_that_a_failover_lost_is_gone;
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
    // The head stands for the marks of what has left, but for one of each rewrite.
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
    };
    bench.turn(|turn| turn.finished = vec![finished]).await;
    assert!(bench.packs().is_empty() && bench.pending().is_empty());
}

async fn a_head_goes_when_all_of_its_pack_is_settled(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    for (id, _) in &ten(&bench, due).await[..8] {
        assert_eq!(bench.cancel(id).await, Cancel::Cancelled);
    }
    let (heads, marks) = (|| bench.ask::<u64>("HLEN :heads"), || bench.marks().len());
    // Set last, at the rewrite, was that of the seventh; the eighth lies there still.
    assert_eq!((heads(), marks()), (1, 2));
    bench.set_horizon("handed", due + 2 * HOUR);
    for (settled, left) in [(due + 9, 1), (due + 6 + 4_095, 1), (due + 6 + 4_096, 0)] {
        bench.turn(|turn| turn.settle_to = UnixMs(settled)).await;
        assert_eq!(heads(), left, "{settled}");
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

async fn a_pack_that_a_failover_lost_is_gone(server: Redis) {
    let bench = Bench::open(server).await;
    let (id, _) = bench.put(bench.now() + HOUR).await;
    let _lost: u64 = bench.ask("DEL :due");
    assert_eq!(bench.cancel(&id).await, Cancel::NotFound);
    assert!(bench.marks().is_empty());
}
