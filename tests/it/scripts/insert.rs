//! insert: packs lie at unique scores above H, with the entries of clients' ids beside them.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use super::*;

on_both_servers! {
    a_message_is_a_pack_at_its_due_time;
    messages_of_one_moment_share_packs_with_unique_scores;
    packs_of_the_same_messages_and_nonce_both_stay;
    more_packs_than_a_millisecond_has_places_for_go_on_to_the_next;
    nothing_appears_at_or_under_the_horizon;
    another_instance_stamps_above_what_this_one_handed_out;
    a_crowded_millisecond_gives_way_to_the_next;
    an_id_of_the_clients_has_an_entry;
    the_same_create_again_finds_the_first;
    other_content_under_the_same_id_is_a_conflict;
    a_cancelled_id_leaves_a_tombstone;
    an_insert_below_what_is_opened_counts_and_wakes;
    a_closed_generation_takes_nothing;
}

fn scores_of(due: u64) -> RangeInclusive<u64> {
    due * 2048..=due * 2048 + 2047
}

async fn a_message_is_a_pack_at_its_due_time(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (_, minted) = bench.put(due).await;
    let packs = bench.packs();
    assert_eq!(packs.len(), 1);
    assert_eq!(packs[0].0, minted.place.score.0);
    assert!(scores_of(due).contains(&packs[0].0));
    assert_eq!(bench.pending(), HashMap::from([(TOPIC.to_owned(), 1)]));
    assert_eq!(bench.ask::<i64>("PTTL :due"), -1);
    let keys: HashSet<String> = bench.ask("KEYS {t:*");
    assert_eq!(
        keys,
        HashSet::from(["due", "pending", "bytes"].map(Bench::key))
    );
}

async fn messages_of_one_moment_share_packs_with_unique_scores(server: Redis) {
    let bench = Bench::open(server).await;
    let due = Due::At(UnixMs(bench.now() + HOUR));
    let body = "x".repeat(1_000);
    let batch = (0..200).map(|_| message(&body, due)).collect();
    let receipts = bench.store.schedule(batch).await.unwrap();
    let packs = bench.packs();
    // 14,000 bytes hold 13 such records.
    assert!(
        (200_usize.div_ceil(13)..50).contains(&packs.len()),
        "{}",
        packs.len()
    );
    let scores: HashSet<u64> = packs.iter().map(|(score, _)| *score).collect();
    assert_eq!(scores.len(), packs.len());
    let ids: HashSet<_> = receipts.iter().map(|receipt| &receipt.id).collect();
    assert_eq!(ids.len(), 200);
    assert_eq!(bench.pending()[TOPIC], 200);
}

/// A member of a zset has one score: one that is added again at another score moves, and its message is lost.
async fn packs_of_the_same_messages_and_nonce_both_stay(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    for at in [due, due + 1] {
        // Nonces are random, 32 bits: in a million packs of a shard, some are equal.
        fastrand::seed(7);
        bench.put(at).await;
    }
    let packs = bench.packs();
    assert_eq!(packs.len(), 2);
    let nonce = |n: usize| packs[n].1[2..6].to_vec();
    assert_eq!(nonce(0), nonce(1));
}

async fn more_packs_than_a_millisecond_has_places_for_go_on_to_the_next(server: Redis) {
    // One pack each.
    let bench = Bench::open_with(server, |config| config.pack_bytes = 256).await;
    let due = bench.now() + HOUR;
    let batch = (0..1_100).map(|n| message(&format!("{n:0200}"), Due::At(UnixMs(due))));
    let receipts = bench.store.schedule(batch.collect()).await.unwrap();
    let dues: HashSet<u64> = receipts.iter().map(|receipt| receipt.due.0).collect();
    assert_eq!(dues, HashSet::from([due, due + 1, due + 2]));
    let packs = bench.packs();
    let scores: HashSet<u64> = packs.iter().map(|(score, _)| *score).collect();
    assert_eq!((packs.len(), scores.len()), (1_100, 1_100));
    assert_eq!(bench.pending()[TOPIC], 1_100);
}

async fn nothing_appears_at_or_under_the_horizon(server: Redis) {
    let bench = Bench::open(server).await;
    // Ahead of every instance's estimate, as after a jump of Redis's clock.
    let handed = bench.now() + 10_000;
    bench.set_horizon("handed", handed);
    let receipt = bench.schedule(message("body", after(0))).await.unwrap();
    assert!(receipt.due.0 > handed);
    assert!(bench.packs()[0].0 > *scores_of(handed).end());
}

async fn another_instance_stamps_above_what_this_one_handed_out(server: Redis) {
    let bench = Bench::open(server).await;
    let other = bench.another().await;
    for _ in 0..50 {
        let held = bench.turn(|turn| turn.hand_out_to = UnixMs::MAX).await;
        let receipts = other.schedule(vec![message("body", after(0))]).await;
        assert!(receipts.unwrap()[0].due > held.handed);
    }
    let first = bench.packs()[0].0;
    assert!(bench.packs().len() == 50 && first > 0);
}

async fn a_crowded_millisecond_gives_way_to_the_next(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    for score in scores_of(due) {
        let _added: u64 = bench.ask(&format!("ZADD :due {score} theirs-{score}"));
    }
    let (_, minted) = bench.put(due).await;
    assert_eq!(minted.due, UnixMs(due + 1));
    assert_eq!(bench.packs().len(), 2_049);
}

async fn an_id_of_the_clients_has_an_entry(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let message = with_id("order:42", message("body", Due::At(UnixMs(due))));
    let receipt = bench.schedule(message).await.unwrap();
    assert_eq!((receipt.id, receipt.created), (client("order:42"), true));
    let entry: String = bench.ask("HGET :ids order:42");
    let words: Vec<&str> = entry.split(' ').collect();
    let [
        kind,
        score,
        nonce,
        position,
        entry_due,
        maybe,
        _digest,
        mark,
    ] = words[..]
    else {
        panic!("{entry}");
    };
    let (have, value) = &bench.packs()[0];
    assert_eq!((kind, score), ("S", &*have.to_string()));
    assert_eq!(
        nonce,
        u32::from_be_bytes(value[2..6].try_into().unwrap()).to_string()
    );
    assert_eq!((position, entry_due, maybe), ("0", &*due.to_string(), "0"));
    assert!(mark.starts_with(&format!("{have:016x}")) && mark.len() == 28);
    assert_eq!(bench.ask::<u64>("ZSCORE :live order:42"), due);
}

async fn the_same_create_again_finds_the_first(server: Redis) {
    let bench = Bench::open(server).await;
    let other = bench.another().await;
    let create = with_id("a", message("body", after(HOUR)));
    let first = bench.schedule(create.clone()).await.unwrap();
    let packs = bench.packs();
    for store in [&bench.store, &other] {
        let again = store.schedule(vec![create.clone()]).await.unwrap();
        assert_eq!(again[0].due, first.due);
        assert!(!again[0].created);
    }
    assert_eq!(bench.packs(), packs);
    assert_eq!(bench.pending()[TOPIC], 1);
}

async fn other_content_under_the_same_id_is_a_conflict(server: Redis) {
    let bench = Bench::open(server).await;
    bench
        .schedule(with_id("a", message("body", after(HOUR))))
        .await
        .unwrap();
    let packs = bench.packs();
    for other in [
        message("else", after(HOUR)),
        message("body", after(HOUR + 1)),
    ] {
        let refused = bench.schedule(with_id("a", other)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
    }
    assert_eq!(bench.packs(), packs);
    assert_eq!(bench.pending()[TOPIC], 1);
}

async fn a_cancelled_id_leaves_a_tombstone(server: Redis) {
    let bench = Bench::open(server).await;
    let create = with_id("a", message("body", after(HOUR)));
    bench.schedule(create.clone()).await.unwrap();
    let before = bench.now();
    assert_eq!(bench.cancel(&client("a")).await, Cancel::Cancelled);
    let aged = bench.ask::<u64>("ZSCORE :gone a");
    assert!((before + HOUR..=bench.now() + HOUR).contains(&aged));
    assert!(bench.ask::<String>("HGET :ids a").starts_with("C "));
    assert_eq!(bench.ask::<u64>("ZCARD :live"), 0);
    let refused = bench.schedule(create).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Cancelled);
    assert!(bench.packs().is_empty());
}

async fn an_insert_below_what_is_opened_counts_and_wakes(server: Redis) {
    let bench = Bench::open(server).await;
    let opened = bench.now() + HOUR;
    bench.turn(|turn| turn.open_to = UnixMs(opened)).await;
    let mut wakes = bench.wakes().await;
    // Beyond what the owner watches: it comes back before that by itself.
    bench.put(opened + HOUR).await;
    // Beyond what was read, and before the owner comes back: it must know, but has missed nothing.
    bench.put(opened + 2).await;
    assert_eq!(bench.horizon("below"), 0);
    // The owner comes back for that one, and so for this.
    bench.put(opened + 3).await;
    bench.put(opened + 1).await;
    assert_eq!(bench.horizon("below"), 0);
    bench.put(opened).await;
    assert_eq!(bench.horizon("below"), 1);
    // A shard that goes idle has nothing open, but must wake for what comes before its head.
    let long = UnixMs(opened + 2 * HOUR);
    bench.turn(|turn| turn.idle_until = Some(long)).await;
    assert_eq!(bench.horizon("opened"), opened);
    assert_eq!(bench.horizon("watch"), opened);
    for due in [opened + 2, opened + 1, opened] {
        bench.check_wake(&mut wakes, due).await;
    }
}

async fn a_closed_generation_takes_nothing(server: Redis) {
    let bench = Bench::open(server).await;
    bench.set_horizon("closed", 1);
    let refused = bench.schedule(message("body", after(HOUR))).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Refused);
    assert!(bench.packs().is_empty() && bench.pending().is_empty());
}
