//! What happens when the server forgets the scripts, or has no memory left.

use nsqdelayd::shard::InstanceId;
use nsqdelayd::store::{Finished, ParkReply, ParkTo, Query, ReadMarks, TopicShare};

use super::*;

on_both_servers! {
    a_server_that_forgot_the_scripts_is_told_again;
    without_memory_inserts_are_refused_and_all_else_goes_on;
}

async fn a_server_that_forgot_the_scripts_is_told_again(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let session = bench.store.session();
    let forget = || bench.ask::<String>("SCRIPT FLUSH");
    forget();
    let (id, _) = bench.put(due).await;
    forget();
    assert_eq!(bench.claim_and_read().await.len(), 1);
    forget();
    let held = bench.turn(|turn| turn.hand_out_to = UnixMs::MAX).await;
    assert_eq!(held.handed, held.now);
    forget();
    let to = Due::At(UnixMs(due + HOUR));
    bench.store.reschedule(id.clone(), to).await.unwrap();
    forget();
    assert_eq!(bench.cancel(&id).await, Cancel::Cancelled);
    forget();
    assert!(!bench.store.trim(bench.shard()).await.unwrap());
    forget();
    let me = InstanceId("me".to_owned());
    let live = async |leave| bench.store.beat(me.clone(), leave).await.unwrap().live;
    assert_eq!(live(false).await, std::slice::from_ref(&me));
    assert_eq!(live(true).await, []);
    // It was no reason to forget the session.
    assert_eq!(bench.store.session(), session);
}

async fn without_memory_inserts_are_refused_and_all_else_goes_on(server: Redis) {
    let bench = Bench::open(server).await;
    let due = bench.now() + HOUR;
    let (cancelled, _) = bench.put(due).await;
    let (_, delivered) = bench.put(due + 5_000).await;
    bench.put(due + 10_000).await;
    let parked = bench.claim_and_read().await;
    let _ok: String = bench.ask("CONFIG SET maxmemory 1");

    let refused = bench.schedule(message("body", after(HOUR))).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Refused);
    assert_eq!(bench.packs().len(), 3);
    assert_eq!(bench.cancel(&cancelled).await, Cancel::Cancelled);
    // A MULTI is refused, also one that only reads.
    bench.ask::<()>("SCRIPT FLUSH");
    assert_eq!(bench.store.get(cancelled).await.unwrap(), None);
    let listed = bench.store.list(Query::default(), None, 10).await.unwrap();
    assert_eq!(listed.messages.len(), 2);
    for message in listed.messages {
        let found = bench.store.get(message.id.clone()).await.unwrap();
        assert_eq!(found, Some(message));
    }
    let finished = Finished {
        score: delivered.place.score,
        topics: vec![TopicShare {
            topic: TopicName::parse(TOPIC.as_bytes()).unwrap(),
            messages: 1,
            bytes: 0,
        }],
        uncounted: Vec::new(),
    };
    let held = bench
        .turn(|turn| {
            turn.hand_out_to = UnixMs::MAX;
            turn.finished = vec![finished];
            turn.read = Some(everything());
            turn.marks = Some(ReadMarks {
                after: UnixMs(0),
                to: UnixMs::MAX,
            });
        })
        .await;
    assert!(!held.fresh && held.handed == held.now);
    assert_eq!((held.packs.len(), held.marks.len()), (1, 1));
    assert_eq!(bench.packs().len(), 1);
    let later = ParkTo::Later(UnixMs(due + HOUR));
    let (session, token) = (bench.store.session().unwrap(), ClaimToken("us".to_owned()));
    let last = parked[2..].to_vec();
    let parking = bench.store.park(session, bench.shard(), token, last, later);
    assert_eq!(parking.await.unwrap(), ParkReply::Parked);
    assert_eq!(bench.pending()[TOPIC], 1);
    assert!(!bench.store.trim(bench.shard()).await.unwrap());
    let me = InstanceId("me".to_owned());
    assert_eq!(
        bench.store.beat(me.clone(), false).await.unwrap().live,
        [me]
    );

    let _ok: String = bench.ask("CONFIG SET maxmemory 0");
    bench.put(due).await;
}
