//! trim and members: entries age after S has passed them, silent instances go.

use nsqdelayd::shard::InstanceId;
use nsqdelayd::store::ParkTo;

use super::*;

on_both_servers! {
    an_entry_ages_when_the_settled_has_passed_it;
    without_a_window_an_entry_goes_at_once;
    the_entry_of_a_dead_letter_stays;
    more_than_one_trim_takes_is_said;
    members_come_go_and_fall_silent;
    a_beat_among_the_living_needs_no_script;
}

async fn an_entry_ages_when_the_settled_has_passed_it(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let at = |due| message("body", Due::At(UnixMs(due)));
    bench.schedule(with_id("a", at(due))).await.unwrap();
    bench.schedule(with_id("b", at(due + 1))).await.unwrap();
    bench.set_horizon("settled", due - 1);
    assert!(!bench.store.trim(bench.shard()).await.unwrap());
    assert_eq!(bench.ask::<u64>("ZCARD :live"), 2);

    bench.set_horizon("settled", due);
    let before = bench.now();
    assert!(!bench.store.trim(bench.shard()).await.unwrap());
    assert_eq!(bench.ask::<Vec<String>>("ZRANGE :live 0 -1"), ["b"]);
    // By when S passed it, not by its due.
    let goes = bench.ask::<u64>("ZSCORE :gone a");
    assert!((before + HOUR..=bench.now() + HOUR).contains(&goes));
    assert_eq!(bench.ask::<u64>("HLEN :ids"), 2);

    let _moved: u64 = bench.ask("ZADD :gone 1 a");
    assert!(!bench.store.trim(bench.shard()).await.unwrap());
    assert_eq!(bench.ask::<Vec<String>>("HKEYS :ids"), ["b"]);
    assert_eq!(bench.ask::<u64>("ZCARD :gone"), 0);
}

async fn without_a_window_an_entry_goes_at_once(server: Redis) {
    let bench = Bench::open_with(server, |config| config.dedupe_window = Duration::ZERO).await;
    let due = bench.now() + HOUR;
    let create = with_id("a", message("body", Due::At(UnixMs(due))));
    bench.schedule(create.clone()).await.unwrap();
    bench.set_horizon("settled", due);
    bench.store.trim(bench.shard()).await.unwrap();
    assert!(!bench.ask::<bool>("EXISTS :ids"));
    assert!(bench.schedule(create).await.unwrap().created);
}

async fn the_entry_of_a_dead_letter_stays(server: Redis) {
    let bench = Bench::open_with(server, |config| config.dedupe_window = Duration::ZERO).await;
    let due = bench.now() + HOUR;
    let (id, _) = bench.put(due).await;
    let parked = bench.claim_and_read().await;
    let (session, token) = (bench.store.session().unwrap(), ClaimToken("us".to_owned()));
    let to = ParkTo::DeadLetters("why".to_owned());
    let parking = bench.store.park(session, bench.shard(), token, parked, to);
    parking.await.unwrap();
    bench.set_horizon("settled", due + HOUR);
    bench.store.trim(bench.shard()).await.unwrap();
    assert_eq!(bench.ask::<u64>("HLEN :ids"), 1);
    assert!(bench.store.get(id).await.unwrap().is_some());
}

async fn more_than_one_trim_takes_is_said(server: Redis) {
    let bench = Bench::open(server).await;
    for id in 0..700 {
        let _added: u64 = bench.ask(&format!("ZADD :live {id} id-{id}"));
        let _added: u64 = bench.ask(&format!("HSET :ids id-{id} S"));
    }
    bench.set_horizon("settled", 1_000);
    assert!(bench.store.trim(bench.shard()).await.unwrap());
    assert!(!bench.store.trim(bench.shard()).await.unwrap());
    assert_eq!(bench.ask::<u64>("ZCARD :gone"), 700);
}

async fn members_come_go_and_fall_silent(server: Redis) {
    let bench = Bench::open(server).await;
    let name = |name: &str| InstanceId(name.to_owned());
    let beat = async |who: &str, leave| {
        let live = bench.store.beat(name(who), leave).await.unwrap().live;
        let mut live: Vec<String> = live.into_iter().map(|id| id.0).collect();
        live.sort();
        live
    };
    assert_eq!(beat("a", false).await, ["a"]);
    assert_eq!(beat("b", false).await, ["a", "b"]);
    // One that has been silent for longer than `instance_ttl`, one from before the clock stepped back.
    let now = bench.now();
    let (silent, ahead) = (now - 10_001, now + HOUR);
    let _added: u64 = bench.ask(&format!("ZADD {{t}}:members {silent} a {ahead} c"));
    assert_eq!(beat("b", false).await, ["b", "c"]);
    assert!(bench.ask::<u64>("ZSCORE {t}:members c") < ahead);
    assert_eq!(beat("c", true).await, ["b"]);
}

async fn a_beat_among_the_living_needs_no_script(server: Redis) {
    let bench = Bench::open(server).await;
    let beat = async |who: &str| bench.store.beat(InstanceId(who.to_owned()), false).await;
    beat("a").await.unwrap();
    beat("b").await.unwrap();
    // What stands below comes from this beat alone.
    let long_ago = bench.now() - 9_000;
    let _moved: u64 = bench.ask(&format!("ZADD {{t}}:members {long_ago} a {long_ago} b"));
    let _ok: String = bench.ask("CONFIG RESETSTAT");
    let members = beat("b").await.unwrap();
    let stats: String = bench.ask("INFO commandstats");
    assert!(!stats.contains("eval"), "{stats}");
    assert_eq!(members.live.len(), 2);
    assert!(bench.ask::<u64>("ZSCORE {t}:members b") > long_ago);
    assert!(members.next_expiry.unwrap() <= Duration::from_secs(1));
}
