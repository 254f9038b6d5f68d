//! move, park and requeue: a message has one live place, and the index says which.

use nsqdelayd::store::{ParkReply, ParkTo, Reschedule, State};

use super::*;

on_both_servers! {
    a_move_marks_the_old_place_and_points_to_the_new;
    a_move_to_an_earlier_time_ages_by_the_later_one;
    what_is_cancelled_in_flight_gone_or_unknown_does_not_move;
    a_move_below_the_horizon_is_stamped_above_it;
    a_message_moves_again_from_where_it_is;
    a_moved_message_is_cancelled_where_it_is;
    a_move_below_what_is_opened_counts;
    a_park_without_the_token_is_fenced;
    a_parked_message_lies_elsewhere_under_its_id;
    a_park_of_what_was_cancelled_says_so_and_does_nothing;
    what_may_have_been_sent_stays_in_flight_wherever_it_goes;
    a_dead_letter_is_kept_with_its_reason;
    full_dead_letters_take_nothing;
    a_requeued_dead_letter_is_pending_again;
    a_dropped_dead_letter_leaves_a_tombstone;
}

const REASON: &str = "E_BAD_TOPIC PUB topic name is not valid";

impl Bench {
    async fn shift(&self, id: &MessageId, due: u64) -> Reschedule {
        let due = Due::At(UnixMs(due));
        self.store.reschedule(id.clone(), due).await.unwrap()
    }

    async fn park(&self, token: &str, messages: &[Parked], to: ParkTo) -> ParkReply {
        let session = self.store.session().unwrap();
        let token = ClaimToken(token.to_owned());
        let parking = self
            .store
            .park(session, self.shard(), token, messages.to_vec(), to);
        parking.await.unwrap()
    }

    async fn bury(&self) {
        let parked = self.claim_and_read().await;
        let reply = self.park("us", &parked, ParkTo::DeadLetters(REASON.to_owned()));
        assert_eq!(reply.await, ParkReply::Parked);
    }

    fn entry(&self, id: &MessageId) -> String {
        self.ask(&format!("HGET :ids {}", self.store.id_text(id)))
    }

    fn lives_until(&self, id: &MessageId) -> u64 {
        self.ask(&format!("ZSCORE :live {}", self.store.id_text(id)))
    }
}

async fn a_move_marks_the_old_place_and_points_to_the_new(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, minted) = bench.put(due).await;
    let to = due + HOUR;
    assert_eq!(bench.shift(&id, to).await, Reschedule::Moved(UnixMs(to)));
    assert_eq!(bench.marks(), HashMap::from([(mark_of(minted.place), due)]));
    // Nobody had opened the old pack: its bytes are gone.
    let packs = bench.packs();
    assert_eq!((packs.len(), packs[0].0 / 2048), (1, to));
    assert!(bench.entry(&id).starts_with(&format!("S {} ", packs[0].0)));
    assert_eq!(bench.lives_until(&id), to);
    assert_eq!(bench.pending()[TOPIC], 1);
    let stored = bench.store.get(id.clone()).await.unwrap().unwrap();
    assert_eq!(
        (stored.id, stored.due, stored.body),
        (id, UnixMs(to), "body".into())
    );
}

async fn a_move_to_an_earlier_time_ages_by_the_later_one(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + 2 * HOUR;
    let (id, _) = bench.put(due).await;
    let to = due - HOUR;
    assert_eq!(bench.shift(&id, to).await, Reschedule::Moved(UnixMs(to)));
    assert_eq!(bench.lives_until(&id), due);
}

async fn what_is_cancelled_in_flight_gone_or_unknown_does_not_move(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (gone, _) = bench.put(due).await;
    let (in_flight, _) = bench.put(due + 1).await;
    let (cancelled, _) = bench.put(due + 2).await;
    assert_eq!(bench.cancel(&cancelled).await, Cancel::Cancelled);
    bench.set_horizon("settled", due);
    bench.set_horizon("handed", due + 1);
    let packs = bench.packs();
    for (id, answer) in [
        (gone, Reschedule::NotFound),
        (in_flight, Reschedule::InFlight),
        (cancelled, Reschedule::Cancelled),
        (client("never"), Reschedule::NotFound),
    ] {
        assert_eq!(bench.shift(&id, due + HOUR).await, answer);
    }
    assert_eq!(bench.packs(), packs);
    assert_eq!(bench.marks().len(), 1);
}

async fn a_move_below_the_horizon_is_stamped_above_it(server: Redis) {
    let bench = Bench::open(server).await;
    let handed = bench.now() + 10_000;
    let (id, _) = bench.put(handed + HOUR).await;
    bench.set_horizon("handed", handed);
    let moved = bench.store.reschedule(id, after(0)).await.unwrap();
    assert!(
        matches!(moved, Reschedule::Moved(to) if to.0 > handed),
        "{moved:?}"
    );
}

async fn a_message_moves_again_from_where_it_is(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, _) = bench.put(due).await;
    for step in 1..=3 {
        let to = due + step * HOUR;
        assert_eq!(bench.shift(&id, to).await, Reschedule::Moved(UnixMs(to)));
        assert_eq!(bench.packs().len(), 1);
    }
    let mut marked: Vec<u64> = bench.marks().into_values().collect();
    marked.sort_unstable();
    assert_eq!(marked, [due, due + HOUR, due + 2 * HOUR]);
    assert_eq!(bench.pending()[TOPIC], 1);
}

async fn a_moved_message_is_cancelled_where_it_is(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, _) = bench.put(due).await;
    bench.shift(&id, due + HOUR).await;
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
    assert!(bench.packs().is_empty() && bench.pending().is_empty());
    assert!(bench.entry(&id).starts_with("C "));
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
    assert_eq!(bench.shift(&id, due).await, Reschedule::Cancelled);
}

async fn a_move_below_what_is_opened_counts(server: Redis) {
    let bench = Bench::open(server).await;
    let opened = bench.now() + HOUR;
    bench.turn(|turn| turn.open_to = UnixMs(opened)).await;
    let (id, _) = bench.put(opened + HOUR).await;
    bench.shift(&id, opened + 1).await;
    assert_eq!(bench.horizon("below"), 0);
    bench.shift(&id, opened).await;
    assert_eq!(bench.horizon("below"), 1);
}

async fn a_park_without_the_token_is_fenced(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    bench.put(due).await;
    let parked = bench.claim_and_read().await;
    let packs = bench.packs();
    let later = ParkTo::Later(UnixMs(due + HOUR));
    let dead = ParkTo::DeadLetters(REASON.to_owned());
    for to in [&later, &dead] {
        assert_eq!(
            bench.park("them", &parked, to.clone()).await,
            ParkReply::Fenced
        );
    }
    let _deleted: u64 = bench.ask("DEL :claim");
    assert_eq!(bench.park("us", &parked, later).await, ParkReply::Fenced);
    assert_eq!(bench.packs(), packs);
    assert!(bench.marks().is_empty() && !bench.ask::<bool>("EXISTS :ids"));
}

async fn a_parked_message_lies_elsewhere_under_its_id(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, minted) = bench.put(due).await;
    let parked = bench.claim_and_read().await;
    let to = UnixMs(due + HOUR);
    assert_eq!(
        bench.park("us", &parked, ParkTo::Later(to)).await,
        ParkReply::Parked
    );
    assert_eq!(bench.marks(), HashMap::from([(mark_of(minted.place), due)]));
    // The old bytes stay until the owner removes its pack.
    let scores: Vec<u64> = bench.packs().iter().map(|(score, _)| *score).collect();
    assert_eq!(
        (scores.len(), scores[0], scores[1] / 2048),
        (2, minted.place.score.0, to.0)
    );
    assert!(bench.entry(&id).starts_with(&format!("S {} ", scores[1])));
    assert_eq!((bench.lives_until(&id), bench.pending()[TOPIC]), (to.0, 1));
    let stored = bench.store.get(id).await.unwrap().unwrap();
    assert_eq!((stored.due, stored.state), (to, State::Scheduled));
}

async fn a_park_of_what_was_cancelled_says_so_and_does_nothing(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, minted) = bench.put(due).await;
    bench.put(due).await;
    let parked = bench.claim_and_read().await;
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
    let packs = bench.packs();
    let reply = bench
        .park("us", &parked, ParkTo::Later(UnixMs(due + HOUR)))
        .await;
    assert_eq!(reply, ParkReply::Marked(vec![minted.place]));
    assert_eq!((bench.packs(), bench.marks().len()), (packs, 1));
}

async fn what_may_have_been_sent_stays_in_flight_wherever_it_goes(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, _) = bench.put(due).await;
    let mut parked = bench.claim_and_read().await;
    parked[0].record.maybe = true;
    let later = ParkTo::Later(UnixMs(due + HOUR));
    assert_eq!(bench.park("us", &parked, later).await, ParkReply::Parked);
    assert_eq!(bench.cancel(&id).await, Cancel::InFlight);
    assert_eq!(bench.shift(&id, due).await, Reschedule::InFlight);

    let parked = bench.claim_and_read().await;
    let copy = parked.into_iter().find(|m| m.record.maybe).unwrap();
    let dead = ParkTo::DeadLetters(REASON.to_owned());
    assert_eq!(bench.park("us", &[copy], dead).await, ParkReply::Parked);
    let requeued = bench.store.requeue(id.clone()).await.unwrap();
    assert!(matches!(requeued, Reschedule::Moved(_)));
    assert_eq!(bench.cancel(&id).await, Cancel::InFlight);
}

async fn a_dead_letter_is_kept_with_its_reason(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, minted) = bench.put(due).await;
    bench.bury().await;
    assert_eq!(bench.marks(), HashMap::from([(mark_of(minted.place), due)]));
    assert_eq!(bench.ask::<u64>("HLEN :dead"), 1);
    assert!(bench.entry(&id).starts_with("D "));
    assert!(bench.pending().is_empty());
    assert_eq!(bench.store.pending().await.unwrap().dead, 1);
    let stored = bench.store.get(id.clone()).await.unwrap().unwrap();
    assert_eq!((stored.state, stored.due), (State::Dead, UnixMs(due)));
    assert_eq!(stored.reason.as_deref(), Some(REASON));
    assert_eq!(bench.cancel(&id).await, Cancel::Dead);
    assert_eq!(bench.shift(&id, due).await, Reschedule::Dead);
}

async fn full_dead_letters_take_nothing(server: Redis) {
    let bench = Bench::open_with(server, |config| config.dead_letters_max = 1).await;
    let due = bench.now() + HOUR;
    bench.put(due).await;
    bench.put(due).await;
    let parked = bench.claim_and_read().await;
    let dead = || ParkTo::DeadLetters(REASON.to_owned());
    assert_eq!(bench.park("us", &parked, dead()).await, ParkReply::Full);
    assert_eq!(
        (bench.marks().len(), bench.ask::<u64>("HLEN :dead")),
        (0, 0)
    );
    assert_eq!(
        bench.park("us", &parked[..1], dead()).await,
        ParkReply::Parked
    );
    assert_eq!(
        bench.park("us", &parked[1..], dead()).await,
        ParkReply::Full
    );
    assert_eq!(
        (bench.marks().len(), bench.ask::<u64>("HLEN :dead")),
        (1, 1)
    );
    assert_eq!(bench.pending()[TOPIC], 1);
}

async fn a_requeued_dead_letter_is_pending_again(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (id, _) = bench.put(due).await;
    bench.bury().await;
    let before = bench.now();
    let requeued = bench.store.requeue(id.clone()).await.unwrap();
    let Reschedule::Moved(to) = requeued else {
        panic!("{requeued:?}");
    };
    assert!(to.0 >= before && to.0 < due);
    assert!(!bench.ask::<bool>("EXISTS :dead"));
    assert_eq!(bench.pending()[TOPIC], 1);
    assert!(bench.packs().iter().any(|(score, _)| score / 2048 == to.0));
    assert!(bench.entry(&id).starts_with("S "));
    // The mark of the old place is of use until S has passed it.
    assert_eq!(bench.lives_until(&id), to.0);
    assert_eq!(bench.store.requeue(id).await.unwrap(), Reschedule::NotFound);
}

async fn a_dropped_dead_letter_leaves_a_tombstone(server: Redis) {
    let bench = Bench::open(server).await;
    let create = with_id("a", message("body", after(HOUR)));
    bench.schedule(create.clone()).await.unwrap();
    bench.bury().await;
    assert!(bench.store.drop_dead(client("a")).await.unwrap());
    assert!(!bench.ask::<bool>("EXISTS :dead"));
    assert!(bench.entry(&client("a")).starts_with("C "));
    assert!(bench.ask::<u64>("ZSCORE :gone a") > bench.now());
    assert!(!bench.store.drop_dead(client("a")).await.unwrap());
    let refused = bench.schedule(create).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Cancelled);
}
