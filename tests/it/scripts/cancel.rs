//! cancel: exact answers from due, H and S; bytes go only beyond what an owner has opened.

use super::*;

on_both_servers! {
    beyond_the_opened_the_bytes_come_back;
    within_the_opened_only_the_mark_is_written;
    a_pack_of_several_keeps_its_bytes;
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

async fn a_pack_of_several_keeps_its_bytes(server: Redis) {
    let bench = Bench::open(server).await;
    let due = Due::At(UnixMs(bench.now() + HOUR));
    let batch = vec![message("a", due), message("b", due), message("c", due)];
    let receipts = bench.store.schedule(batch).await.unwrap();
    let packs = bench.packs();
    assert_eq!(packs.len(), 1);
    assert_eq!(bench.cancel(&receipts[1].id).await, Cancel::Cancelled);
    assert_eq!(bench.packs(), packs);
    assert_eq!(bench.pending()[TOPIC], 2);
    let mut left = Vec::new();
    for receipt in receipts {
        left.extend(bench.store.get(receipt.id).await.unwrap().map(|m| m.body));
    }
    assert_eq!(left, ["a", "c"]);
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
