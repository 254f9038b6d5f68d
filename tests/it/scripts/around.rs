//! Inserts whose bodies do not pass through Lua: admitted, added and entered in one MULTI, or taken back there.

use std::collections::HashSet;

use super::*;

on_both_servers! {
    what_is_large_is_stored_and_counted_by_topic;
    what_is_admitted_after_what_was_refused_stands_above_the_horizon;
    where_others_lie_nothing_stays_and_nothing_of_theirs_goes;
    below_what_is_opened_it_counts_and_wakes;
    a_closed_generation_keeps_nothing;
    without_memory_it_is_refused;
    an_insert_that_was_executed_in_part_is_unknown;
}

/// So many make several packs.
const MESSAGES: usize = 60;
const BODY_BYTES: usize = 500;

fn batch(due: Due) -> Vec<Message> {
    let of = |n: usize| Message {
        topic: TopicName::parse(format!("topic-{}", n % 2).as_bytes()).unwrap(),
        ..message(&format!("{n:0BODY_BYTES$}"), due)
    };
    (0..MESSAGES).map(of).collect()
}

impl Bench {
    #[track_caller]
    fn check_whole(&self) {
        let packs: Vec<Pack> = self
            .packs()
            .into_iter()
            .filter(|(_, value)| !value.starts_with(b"theirs"))
            .map(|(score, value)| Pack::decode(Score(score), Bytes::from(value)).unwrap())
            .collect();
        let bodies: HashSet<Bytes> = packs
            .iter()
            .flat_map(|pack| pack.records.iter().map(|record| record.body.clone()))
            .collect();
        let records: usize = packs.iter().map(|pack| pack.records.len()).sum();
        assert_eq!((bodies.len(), records), (MESSAGES, MESSAGES));
        let half = MESSAGES as u64 / 2;
        let each = |count| ["topic-0", "topic-1"].map(|topic| (topic.to_owned(), count));
        assert_eq!(self.pending(), HashMap::from(each(half)));
        let bytes: HashMap<String, u64> = self.ask("HGETALL :bytes");
        assert_eq!(bytes, HashMap::from(each(half * BODY_BYTES as u64)));
        assert!(!self.ask::<bool>("EXISTS :refused"));
    }

    #[track_caller]
    fn check_nothing(&self) {
        assert!(self.packs().is_empty() && self.pending().is_empty());
        assert!(!self.ask::<bool>("EXISTS :refused"));
    }
}

async fn what_is_large_is_stored_and_counted_by_topic(server: Redis) {
    let bench = Bench::open(server).await;
    let _ok: String = bench.ask("CONFIG RESETSTAT");
    let due = bench.now() + HOUR;
    let receipts = bench.store.schedule(batch(Due::At(UnixMs(due)))).await;
    assert!(receipts.unwrap().iter().all(|r| r.due == UnixMs(due)));
    bench.check_whole();
    let stats: String = bench.ask("INFO commandstats");
    assert!(stats.contains("cmdstat_eval:calls=2"), "{stats}");
    assert!(!stats.contains("cmdstat_evalsha"), "{stats}");
}

async fn what_is_admitted_after_what_was_refused_stands_above_the_horizon(server: Redis) {
    let bench = Bench::open(server).await;
    // Ahead of every instance's estimate, as after a jump of Redis's clock.
    let handed = bench.now() + 10_000;
    bench.set_horizon("handed", handed);
    let receipts = bench.store.schedule(batch(after(0))).await.unwrap();
    assert!(receipts.iter().all(|receipt| receipt.due.0 > handed));
    bench.check_whole();
    let first = bench.packs()[0].0;
    assert!(first / 2048 > handed);
}

/// Of two packs at one ms, whose k follow each other, one meets another's.
async fn where_others_lie_nothing_stays_and_nothing_of_theirs_goes(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let theirs: Vec<u64> = (due * 2048..due * 2048 + 2048).step_by(2).collect();
    for score in &theirs {
        let _added: u64 = bench.ask(&format!("ZADD :due {score} theirs-{score}"));
    }
    let receipts = bench.store.schedule(batch(Due::At(UnixMs(due)))).await;
    assert!(receipts.unwrap().iter().all(|r| r.due > UnixMs(due)));
    bench.check_whole();
    let left: Vec<(u64, Vec<u8>)> = bench
        .packs()
        .into_iter()
        .take_while(|(score, _)| score / 2048 == due)
        .collect();
    let expected: Vec<(u64, Vec<u8>)> = theirs
        .iter()
        .map(|score| (*score, format!("theirs-{score}").into_bytes()))
        .collect();
    assert_eq!(left, expected);
}

async fn below_what_is_opened_it_counts_and_wakes(server: Redis) {
    let bench = Bench::open(server).await;
    let opened = bench.now() + HOUR;
    bench.turn(|turn| turn.open_to = UnixMs(opened)).await;
    let mut wakes = bench.wakes().await;
    bench
        .store
        .schedule(batch(Due::At(UnixMs(opened))))
        .await
        .unwrap();
    bench.check_whole();
    assert_eq!(bench.horizon("below"), bench.packs().len() as u64);
    bench.check_wake(&mut wakes, opened).await;
}

async fn a_closed_generation_keeps_nothing(server: Redis) {
    let bench = Bench::open(server).await;
    bench.set_horizon("closed", 1);
    let refused = bench.store.schedule(batch(after(HOUR))).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Refused);
    bench.check_nothing();
}

async fn without_memory_it_is_refused(server: Redis) {
    let bench = Bench::open(server).await;
    let _ok: String = bench.ask("CONFIG SET maxmemory 1");
    let refused = bench.store.schedule(batch(after(HOUR))).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Refused);
    bench.check_nothing();
}

async fn an_insert_that_was_executed_in_part_is_unknown(server: Redis) {
    let bench = Bench::open(server).await;
    // Somebody's own key where the counts are.
    let _ok: String = bench.ask("SET :pending theirs");
    let unknown = bench.store.schedule(batch(after(HOUR))).await;
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::Unknown);
    assert!(!bench.packs().is_empty());
}
