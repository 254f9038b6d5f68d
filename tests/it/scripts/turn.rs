//! turn: one claim at a time, S and H only forward, packs removed by their exact scores and counted
//! once.

use nsqdelayd::store::{Finished, ReadMarks, TopicShare};

use super::*;

on_both_servers! {
    a_claim_is_a_token_with_a_life;
    anothers_claim_is_busy_and_nothing_is_written;
    no_claim_outlives_its_longest_life;
    nothing_is_handed_out_above_redis_clock;
    horizons_do_not_go_back;
    what_is_settled_never_passes_what_is_handed_out;
    marks_stay_for_packs_that_begin_before_the_settled;
    finished_packs_go_by_their_scores_and_count_once;
    reads_go_on_from_the_cursor_up_to_a_limit;
    marks_are_read_by_their_due_times;
    an_idle_shard_has_no_claim_and_watches_for_what_comes_before_its_head;
    an_unknown_pack_is_reported_and_stays;
    a_session_ends_with_its_connection;
}

async fn a_claim_is_a_token_with_a_life(server: Redis) {
    let bench = Bench::open(server).await;
    assert!(bench.turn(|_turn| {}).await.fresh);
    assert_eq!(bench.ask::<String>("GET :claim"), "us");
    let left: u64 = bench.ask("PTTL :claim");
    assert!((1..=CLAIM_TTL_MS).contains(&left));
    let _cut: bool = bench.ask("PEXPIRE :claim 1000");
    assert!(!bench.turn(|turn| turn.extend = false).await.fresh);
    assert!(bench.ask::<u64>("PTTL :claim") <= 1_000);
    assert!(!bench.turn(|_turn| {}).await.fresh);
    assert!(bench.ask::<u64>("PTTL :claim") > 1_000);
    // Free, it is taken also by a turn that would not extend it.
    let _gone: bool = bench.ask("DEL :claim");
    assert!(bench.turn(|turn| turn.extend = false).await.fresh);
    assert_eq!(bench.ask::<String>("GET :claim"), "us");
}

async fn anothers_claim_is_busy_and_nothing_is_written(server: Redis) {
    let bench = Bench::open(server).await;
    let (_, minted) = bench.put(bench.now() + HOUR).await;
    bench.turn(|turn| turn.hand_out_to = UnixMs::MAX).await;
    let horizon: HashMap<String, String> = bench.ask("HGETALL :horizon");
    let reply = bench.try_turn("them", |turn| {
        turn.hand_out_to = UnixMs::MAX;
        turn.open_to = UnixMs::MAX;
        turn.settle_to = UnixMs::MAX;
        turn.finished = vec![finished(minted.place.score, 1)];
        turn.idle_until = Some(UnixMs::MAX);
    });
    let TurnReply::Busy(left) = reply.await.unwrap() else {
        panic!("two owners");
    };
    assert!(left <= Duration::from_millis(CLAIM_TTL_MS));
    assert_eq!(
        bench.ask::<HashMap<String, String>>("HGETALL :horizon"),
        horizon
    );
    assert_eq!(bench.ask::<String>("GET :claim"), "us");
    assert_eq!(bench.packs().len(), 1);
}

async fn no_claim_outlives_its_longest_life(server: Redis) {
    let bench = Bench::open(server).await;
    for claim in ["SET :claim them PX 3600000", "SET :claim them"] {
        let _ok: String = bench.ask(claim);
        let reply = bench.try_turn("us", |_turn| {}).await.unwrap();
        assert_eq!(reply, TurnReply::Busy(Duration::from_millis(CLAIM_TTL_MS)));
        let left: u64 = bench.ask("PTTL :claim");
        assert!((1..=CLAIM_TTL_MS).contains(&left), "{claim}: {left}");
    }
}

async fn nothing_is_handed_out_above_redis_clock(server: Redis) {
    let bench = Bench::open(server).await;
    let before = bench.now();
    let held = bench.turn(|turn| turn.hand_out_to = UnixMs::MAX).await;
    assert_eq!(held.handed, held.now);
    assert!((before..=bench.now()).contains(&held.handed.0));
    assert_eq!(held.handed_before, UnixMs(0));
    assert_eq!(bench.horizon("handed"), held.handed.0);
    assert_eq!(bench.ask::<i64>("PTTL :horizon"), -1);
}

async fn horizons_do_not_go_back(server: Redis) {
    let bench = Bench::open(server).await;
    let ahead = bench.now() + HOUR;
    for field in ["handed", "settled", "opened"] {
        bench.set_horizon(field, ahead);
    }
    let held = bench
        .turn(|turn| {
            turn.hand_out_to = UnixMs(ahead - 1);
            turn.settle_to = UnixMs(ahead - 1);
            turn.open_to = UnixMs(ahead - 1);
        })
        .await;
    let ahead_ms = UnixMs(ahead);
    assert_eq!(
        (held.handed_before, held.handed, held.settled),
        (ahead_ms, ahead_ms, ahead_ms)
    );
    for field in ["handed", "settled", "opened"] {
        assert_eq!(bench.horizon(field), ahead, "{field}");
    }
}

async fn what_is_settled_never_passes_what_is_handed_out(server: Redis) {
    let bench = Bench::open(server).await;
    let handed = bench.now() - HOUR;
    bench.set_horizon("handed", handed);
    let held = bench.turn(|turn| turn.settle_to = UnixMs::MAX).await;
    assert_eq!(held.settled, UnixMs(handed));
    assert_eq!(bench.horizon("settled"), handed);
}

async fn marks_stay_for_packs_that_begin_before_the_settled(server: Redis) {
    let bench = Bench::open(server).await;
    let settled = bench.now();
    bench.set_horizon("handed", settled);
    for due in [settled - 5_000, settled - 4_096, settled - 4_095, settled] {
        let _added: u64 = bench.ask(&format!("ZADD :cancelled {due} {due}"));
    }
    bench.turn(|turn| turn.settle_to = UnixMs(settled)).await;
    let stay: Vec<u64> = bench.ask("ZRANGE :cancelled 0 -1");
    assert_eq!(stay, [settled - 4_095, settled]);
}

async fn finished_packs_go_by_their_scores_and_count_once(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (_, first) = bench.put(due).await;
    let (_, second) = bench.put(due).await;
    // The same turn again, as after a lost reply, and then both.
    for (scores, left) in [
        (vec![first.place.score], 1),
        (vec![first.place.score], 1),
        (vec![first.place.score, second.place.score], 0),
    ] {
        let all = scores.into_iter().map(|score| finished(score, 1));
        bench.turn(|turn| turn.finished = all.collect()).await;
        assert_eq!(bench.packs().len(), left);
        let pending = bench.pending().get(TOPIC).copied();
        assert_eq!(pending.unwrap_or(0), left as u64);
    }
    assert!(!bench.ask::<bool>("EXISTS :pending"));
}

async fn reads_go_on_from_the_cursor_up_to_a_limit(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    for index in 0..5 {
        bench.put(due + index * 5_000).await;
    }
    let mut read = Read {
        after: Score(0),
        to: UnixMs(due + 15_000),
        limit: 3,
    };
    let mut seen = Vec::new();
    for expected in [3, 1, 0] {
        let held = bench.turn(|turn| turn.read = Some(read)).await;
        assert_eq!(held.packs.len(), expected);
        seen.extend(held.packs.iter().map(ReadPack::score));
        read.after = seen.last().copied().unwrap();
    }
    let have: Vec<Score> = bench
        .packs()
        .iter()
        .map(|(score, _)| Score(*score))
        .collect();
    // The fifth begins after the reach of the read.
    assert_eq!(seen, have[..4]);
}

fn places_of(held: &Held) -> Vec<Place> {
    held.marks.iter().map(|mark| mark.place).collect()
}

async fn marks_are_read_by_their_due_times(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let mut places = Vec::new();
    for index in 0..4 {
        let (id, minted) = bench.put(due + index).await;
        assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
        places.push(minted.place);
    }
    let marks = ReadMarks {
        after: UnixMs(due),
        to: UnixMs(due + 2),
    };
    let held = bench.turn(|turn| turn.marks = Some(marks)).await;
    assert_eq!(places_of(&held), places[1..3]);
    let both = |turn: &mut Turn| {
        turn.marks = Some(marks);
        turn.read = Some(everything());
    };
    let held = bench.turn(both).await;
    assert_eq!(
        (&places_of(&held)[..], held.packs.len()),
        (&places[1..3], 0)
    );
}

async fn an_idle_shard_has_no_claim_and_watches_for_what_comes_before_its_head(server: Redis) {
    let bench = Bench::open(server).await;
    let now = bench.now();
    let until = UnixMs(now + HOUR);
    let idle = bench.turn(|turn| turn.idle_until = Some(until)).await;
    assert_eq!((idle.head, bench.horizon("watch")), (None, until.0));
    assert_eq!(bench.horizon("opened"), 0);
    assert!(!bench.ask::<bool>("EXISTS :claim"));

    let head = now + 3 * HOUR;
    bench.put(head).await;
    for (until, watch) in [
        (2 * HOUR, now + 2 * HOUR),
        (4 * HOUR, head),
        (HOUR, now + HOUR),
    ] {
        let until = UnixMs(now + until);
        let idle = bench.turn(|turn| turn.idle_until = Some(until)).await;
        assert!(idle.fresh);
        assert_eq!(
            (idle.head, bench.horizon("watch")),
            (Some(UnixMs(head)), watch)
        );
    }
}

async fn an_unknown_pack_is_reported_and_stays(server: Redis) {
    let bench = Bench::open(server).await;
    let (_, minted) = bench.put(bench.now() + HOUR).await;
    let strange = minted.place.score.0 + 1;
    let mut cmd = redis::cmd("ZADD");
    cmd.arg(Bench::key("due"))
        .arg(strange)
        .arg(&[99_u8, 1, 2][..]);
    let _added: u64 = bench.run(&cmd);
    let held = bench.turn(|turn| turn.read = Some(everything())).await;
    let kinds: Vec<bool> = held
        .packs
        .iter()
        .map(|p| matches!(p, ReadPack::Pack(_)))
        .collect();
    assert_eq!(kinds, [true, false]);
    assert_eq!(held.packs[1].score(), Score(strange));
    assert_eq!(bench.packs().len(), 2);
}

async fn a_session_ends_with_its_connection(server: Redis) {
    let bench = Bench::open(server).await;
    bench.turn(|_turn| {}).await;
    let session = bench.store.session().unwrap();
    let _killed: u64 = bench.ask("CLIENT KILL TYPE normal SKIPME yes");
    let failed = loop {
        // The connection may find out by itself, before a turn does.
        if bench.store.session() != Some(session) {
            break None;
        }
        if let Err(error) = bench.try_turn("us", |_turn| {}).await {
            break Some(error.kind);
        }
    };
    assert!(matches!(failed, None | Some(ErrorKind::SessionLost)));
    let next = bench.store.new_session(Some(session)).await;
    assert_ne!(next, session);
    let late = Turn {
        token: ClaimToken("us".to_owned()),
        extend: true,
        settle_to: UnixMs(0),
        finished: Vec::new(),
        hand_out_to: UnixMs::MAX,
        open_to: UnixMs(0),
        idle_until: None,
        read: None,
        marks: None,
    };
    let refused = bench.store.turn(session, bench.shard(), late).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::SessionLost);
    assert_eq!(bench.horizon("handed"), 0);
}

fn finished(score: Score, messages: u64) -> Finished {
    let topic = TopicName::parse(TOPIC.as_bytes()).unwrap();
    let share = TopicShare {
        topic,
        messages,
        bytes: 0,
    };
    Finished {
        score,
        topics: vec![share],
        uncounted: Vec::new(),
    }
}
