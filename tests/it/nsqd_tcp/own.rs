//! What the door promises beyond nsqd, or other than nsqd: extensions, order under a slow store,
//! heartbeats, limits, the end.

use std::time::Duration;

use nsqdelayd::ingest::metrics::{Door as MetricsDoor, DoorLabel};
use nsqdelayd::message::Due;
use nsqdelayd::nsq::frame;
use nsqdelayd::store::{Cancel, ErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Then::{Closes, Waits};
use super::{Client, Door, HI, MAX_MSG_SIZE, identify, mpub_body, show, sized, transcript, v2};
use crate::support::memory_store::Mood;
use crate::support::wait;

#[tokio::test]
async fn delays_that_nsqd_lets_wrap_are_out_of_range() {
    let door = Door::open().await;
    for delay in [
        "18446744073710",
        "18446744073709551615",
        "18446744073709551616",
        "18446744073709551621",
        "340282366920938463463374607431768211456",
    ] {
        let sends = v2(&[format!("DPUB t {delay}\n").as_bytes()]);
        let answer = format!("!E_INVALID DPUB timeout {delay} out of range 0-3600000");
        assert_eq!(
            transcript(door.address, &sends, Waits).await,
            [answer.as_str()]
        );
    }
}

#[tokio::test]
async fn an_mpubs_content_is_held_against_no_setting() {
    let door = Door::open().await;
    let message = sized(&[b'x'; MAX_MSG_SIZE]);
    let sends = v2(&[b"MPUB t\n\0\0\0\x05\0\0\0\x06", &message.repeat(6)]);
    assert_eq!(transcript(door.address, &sends, Closes).await, ["OK"]);
    assert_eq!(door.store.messages().len(), 6);
}

#[tokio::test]
async fn what_is_published_is_stored_with_its_delay() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"PUB a\n\0\0\0\x01p").await;
    client.send(b"DPUB b 250\n\0\0\0\x01d").await;
    client.send(b"DPUB b 250 order:1\n\0\0\0\x01i").await;
    client
        .send(&[b"MPUB c\n", mpub_body(&[b"m", b"n"]).as_slice()].concat())
        .await;
    client
        .send(&[b"MDPUB c 99\n", mpub_body(&[b"x", b"y"]).as_slice()].concat())
        .await;
    for _ in 0..5 {
        client.expect("OK").await;
    }
    let stored: Vec<_> = door
        .store
        .messages()
        .into_iter()
        .map(|m| {
            let Due::After(delay) = m.due else {
                panic!("a delay")
            };
            let id = m.id.map(|id| id.to_string());
            (m.topic.to_string(), show(&m.body), delay.0, id)
        })
        .collect();
    let expected = [
        ("a", "p", 0, None),
        ("b", "d", 250, None),
        ("b", "i", 250, Some("order:1")),
        ("c", "m", 0, None),
        ("c", "n", 0, None),
        ("c", "x", 99, None),
        ("c", "y", 99, None),
    ];
    let expected = expected.map(|(topic, body, delay, id)| {
        (
            topic.to_owned(),
            body.to_owned(),
            delay,
            id.map(str::to_owned),
        )
    });
    assert_eq!(stored, expected);
}

#[tokio::test]
async fn extensions_refuse_as_their_models_do() {
    let door = Door::open().await;
    for (line, answer) in [
        (
            "MDPUB",
            "!E_INVALID MDPUB insufficient number of parameters",
        ),
        (
            "MDPUB t",
            "!E_INVALID MDPUB insufficient number of parameters",
        ),
        (
            "MDPUB t! 1",
            "!E_BAD_TOPIC MDPUB topic name \"t!\" is not valid",
        ),
        ("MDPUB t -1", "!E_INVALID MDPUB could not parse timeout -1"),
        (
            "MDPUB t 3600001",
            "!E_INVALID MDPUB timeout 3600001 out of range 0-3600000",
        ),
        (
            "CANCEL",
            "!E_INVALID CANCEL insufficient number of parameters",
        ),
        (
            "SUB t ch",
            "!E_INVALID cannot SUB here: nsqdelayd only takes messages, consume from nsqd",
        ),
    ] {
        let sends = v2(&[line.as_bytes(), b"\n"]);
        assert_eq!(transcript(door.address, &sends, Waits).await, [answer]);
    }
    for id in ["a/b", "a{b}", "\u{7f}", &"x".repeat(129), &"0".repeat(40)] {
        let sends = v2(&[b"DPUB t 1 ", id.as_bytes(), b"\n"]);
        let answers = transcript(door.address, &sends, Waits).await;
        assert_eq!(answers.len(), 1);
        assert!(
            answers[0].starts_with("!E_INVALID DPUB id \""),
            "{answers:?}"
        );
    }
}

#[tokio::test]
async fn cancel_says_what_became_of_the_message_and_does_not_close() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01a").await;
    client.send(b"DPUB t 500\n\0\0\0\x01b").await;
    client.expect("OK").await;
    client.expect("OK").await;
    let minted = door.store.ids().pop().unwrap();
    let mut forged = minted.clone().into_bytes();
    forged[39] = if forged[39] == b'0' { b'1' } else { b'0' };
    client
        .send(format!("CANCEL mine\nCANCEL {minted}\nCANCEL mine\n").as_bytes())
        .await;
    client.expect("OK").await;
    client.expect("OK").await;
    client.expect("OK").await;
    assert!(door.store.messages().is_empty());
    door.store.set_state("gone", Cancel::InFlight);
    client
        .send(b"CANCEL gone\nCANCEL nobody\nCANCEL a/b\nCANCEL \nCANCEL ")
        .await;
    client.send(&forged).await;
    client.send(b"\nPUB t\n\0\0\0\x01c").await;
    client
        .expect("!E_IN_FLIGHT CANCEL \"gone\" is on its way to nsqd")
        .await;
    for id in ["nobody", "a/b", "", str::from_utf8(&forged).unwrap()] {
        let answer = format!("!E_NOT_FOUND CANCEL \"{id}\" was delivered or never existed");
        client.expect(&answer).await;
    }
    client.expect("OK").await;
    door.store.set_mood(Mood::Failing(ErrorKind::Unavailable));
    client.send(b"CANCEL gone\nNOP\nCANCEL nobody\n").await;
    let failed =
        "!E_CANCEL_FAILED CANCEL failed redis is not reachable, nothing was stored, try again";
    client.expect(failed).await;
    client.expect(failed).await;
}

#[tokio::test]
async fn a_cancel_waits_for_the_publish_before_it() {
    let door = Door::open().await;
    let mut client = door.client().await;
    door.store.set_mood(Mood::Stalled);
    client
        .send(b"DPUB t 500 mine\n\0\0\0\x01aCANCEL mine\nDPUB t 500 other\n\0\0\0\x01b")
        .await;
    wait::until_async("the publish to begin", async || door.store.calls() == 1).await;
    door.store.set_mood(Mood::Well);
    for _ in 0..3 {
        client.expect("OK").await;
    }
    assert_eq!(door.store.ids(), ["other"]);
}

#[tokio::test]
async fn an_id_that_is_taken_is_a_conflict() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01a").await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01a").await;
    client.send(b"DPUB t 500 mine\n\0\0\0\x01b").await;
    client.send(b"PUB t\n\0\0\0\x01c").await;
    client.expect("OK").await;
    client.expect("OK").await;
    client
        .expect("!E_CONFLICT DPUB failed the id is taken by a message with other content")
        .await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_failing_store_is_nsqds_failed_error() {
    let door = Door::open().await;
    door.store.set_mood(Mood::Failing(ErrorKind::Unavailable));
    let away = "failed redis is not reachable, nothing was stored, try again";
    for (command, answer) in [
        (
            b"PUB t\n\0\0\0\x01a".to_vec(),
            format!("!E_PUB_FAILED PUB {away}"),
        ),
        (
            b"DPUB t 1\n\0\0\0\x01a".to_vec(),
            format!("!E_DPUB_FAILED DPUB {away}"),
        ),
        (
            [b"MPUB t\n", mpub_body(&[b"a"]).as_slice()].concat(),
            format!("!E_MPUB_FAILED MPUB {away}"),
        ),
        (
            [b"MDPUB t 1\n", mpub_body(&[b"a"]).as_slice()].concat(),
            format!("!E_DPUB_FAILED MDPUB {away}"),
        ),
    ] {
        let sends = v2(&[&command, &command]);
        assert_eq!(transcript(door.address, &sends, Waits).await, [answer]);
    }
    door.store.set_mood(Mood::Failing(ErrorKind::Unknown));
    let sends = v2(&[b"PUB t\n", HI]);
    let answer = "!E_PUB_FAILED PUB failed outcome unknown: redis did not answer, it may or may not have taken effect";
    assert_eq!(transcript(door.address, &sends, Waits).await, [answer]);
}

#[tokio::test]
async fn heartbeats_flow_while_the_store_stalls_and_answers_keep_their_order() {
    let interval = Duration::from_millis(50);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    door.store.set_mood(Mood::Stalled);
    client
        .send(b"PUB t\n\0\0\0\x01aCANCEL nobody\nPUB t\n\0\0\0\x01bNOP\nCLS\n")
        .await;
    // More than the read deadline: it does not run while the client waits for us.
    for _ in 0..6 {
        client.expect("_heartbeat_").await;
    }
    door.store.set_mood(Mood::Well);
    let mut answers = client.all().await;
    answers.retain(|answer| answer != "_heartbeat_");
    let expected = [
        "OK",
        "!E_NOT_FOUND CANCEL \"nobody\" was delivered or never existed",
        "OK",
        "!E_INVALID cannot CLS in current state",
    ];
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn an_idle_client_is_closed_without_a_word() {
    let interval = Duration::from_millis(50);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    client.send(b"PUB t\n\0\0\0\x01aNO").await;
    client.expect("OK").await;
    let rest = client.all().await;
    assert!(rest.iter().all(|frame| frame == "_heartbeat_"), "{rest:?}");
    wait::until_async("its stats to be gone", async || {
        door.only_client().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_trickled_body_is_cut_off() {
    let interval = Duration::from_millis(100);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    client.send(b"PUB t\n\0\0\0\xff").await;
    let mut frames = Vec::new();
    loop {
        tokio::select! {
            frame = client.next() => match frame {
                Some(frame) => frames.push(frame),
                None => break,
            },
            () = tokio::time::sleep(interval / 5) => {
                // The server may have closed in the meantime.
                if client.stream.write_all(b"x").await.is_err() { break }
            }
        }
    }
    frames.retain(|frame| frame != "_heartbeat_");
    assert_eq!(frames, ["!E_BAD_MESSAGE PUB failed to read message body"]);
}

#[tokio::test]
async fn no_heartbeat_comes_before_the_answer_to_identify() {
    let interval = Duration::from_millis(300);
    let door = Door::open_with(|config| config.heartbeat_interval = interval).await;
    let mut client = door.client().await;
    let command = identify(r#"{"heartbeat_interval":-1}"#);
    client.send(&command[..10]).await;
    // When one who came later has its heartbeat, the first one's time has come too.
    door.client().await.expect("_heartbeat_").await;
    client.send(&command[10..]).await;
    client.expect("OK").await;
    client.close_writing().await;
    client.expect_closed().await;
}

#[tokio::test]
async fn identify_sets_the_heartbeat() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client
        .send(&identify(r#"{"heartbeat_interval":1000}"#))
        .await;
    client.expect("OK").await;
    client.expect("_heartbeat_").await;
    client.send(b"NOP\n").await;
    client.expect("_heartbeat_").await;
}

#[tokio::test]
async fn an_error_frame_outlives_what_is_sent_behind_it() {
    let door = Door::open().await;
    let mut client = door.client().await;
    client.send(b"PUB t\n\0\0\0\x01aFOO\n").await;
    let (mut reader, mut writer) = client.stream.into_split();
    let garbage = vec![b'x'; 65_536];
    let flood = door.tracker.spawn(async move {
        for _ in 0..64 {
            writer.write_all(&garbage).await?;
        }
        writer.shutdown().await
    });
    flood.await.unwrap().unwrap();
    let mut came = Vec::new();
    reader.read_to_end(&mut came).await.unwrap();
    assert!(came.ends_with(b"E_INVALID invalid command FOO"));
    assert_eq!(door.store.messages().len(), 1);
}

#[tokio::test]
async fn draining_answers_what_was_read_and_closes_without_a_word() {
    let door = Door::open().await;
    let mut busy = door.client().await;
    let mut idle = door.client().await;
    let mut half = door.client().await;
    half.send(b"PUB t\n\0\0\0\x09a").await;
    door.store.set_mood(Mood::Stalled);
    busy.send(b"PUB t\n\0\0\0\x01aPUB t\n\0\0\0\x01bPUB t\n\0\0")
        .await;
    wait::until_async("the store to be asked", async || door.store.calls() == 1).await;
    door.drain.cancel();
    idle.expect_closed().await;
    half.expect_closed().await;
    door.store.set_mood(Mood::Well);
    busy.expect("OK").await;
    busy.expect("OK").await;
    busy.expect_closed().await;
    drop((busy, idle, half));
    door.tracker.close();
    door.tracker.wait().await;
    TcpStream::connect(door.address).await.unwrap_err();
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once() {
    let door = Door::open_with(|config| config.max_connections = 2).await;
    let first = door.client().await;
    let mut second = door.client().await;
    second.send(b"PUB t\n\0\0\0\x01a").await;
    second.expect("OK").await;
    let mut third = Client::connect(door.address).await;
    third.expect_closed().await;
    let label = DoorLabel {
        door: MetricsDoor::Tcp,
    };
    assert_eq!(
        door.metrics.connections_refused.get_or_create(&label).get(),
        1
    );
    drop(first);
    wait::until_async("the place to be free", async || {
        door.metrics.connections.get_or_create(&label).get() == 1
    })
    .await;
    let mut fourth = door.client().await;
    fourth.send(b"PUB t\n\0\0\0\x01a").await;
    fourth.expect("OK").await;
}

#[tokio::test]
async fn a_client_without_magic_is_closed() {
    let wait = Duration::from_millis(50);
    let door = Door::open_with(|config| config.handshake_timeout = wait).await;
    let mut silent = Client::connect(door.address).await;
    let mut half = Client::connect(door.address).await;
    half.send(b"  V").await;
    silent.expect_closed().await;
    half.expect_closed().await;
}

#[tokio::test]
async fn reading_stops_when_enough_is_in_flight() {
    const MESSAGES: usize = 2000;
    let door = Door::open_with(|config| config.connection_in_flight_bytes_max = 10_000).await;
    let mut client = door.client().await;
    door.store.set_mood(Mood::Stalled);
    let one = [b"DPUB t 1\n", sized(&[b'x'; 500]).as_slice()].concat();
    let (mut reader, mut writer) = client.stream.into_split();
    let all = one.repeat(MESSAGES);
    door.tracker.spawn(async move {
        writer.write_all(&all).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    wait::until_async("the store to be asked", async || door.store.calls() > 0).await;
    let calls = door.store.calls();
    door.store.set_mood(Mood::Well);
    let mut came = Vec::new();
    reader.read_to_end(&mut came).await.unwrap();
    assert!(calls <= 16, "{calls} calls for 10,000 bytes");
    assert_eq!(came, frame::OK.repeat(MESSAGES));
    assert_eq!(door.store.messages().len(), MESSAGES);
    client = door.client().await;
    client.send(b"NOP\n").await;
}

#[tokio::test]
async fn stats_tell_who_published_what() {
    let door = Door::open().await;
    let mut client = door.client().await;
    let json = r#"{"client_id":"c","hostname":"h","user_agent":"u/1"}"#;
    client.send(&identify(json)).await;
    client
        .send(&[b"MPUB a\n", mpub_body(&[b"x", b"y"]).as_slice()].concat())
        .await;
    client.send(b"PUB b\n\0\0\0\x01a").await;
    for _ in 0..3 {
        client.expect("OK").await;
    }
    wait::until_async("the counts", async || {
        door.only_client()
            .is_some_and(|stats| stats.message_count == 3)
    })
    .await;
    let stats = door.only_client().unwrap();
    assert_eq!(
        (
            stats.client_id.as_str(),
            stats.hostname.as_str(),
            stats.user_agent.as_str()
        ),
        ("c", "h", "u/1")
    );
    assert_eq!(stats.remote_address, client.stream.local_addr().unwrap());
    let counts: Vec<_> = stats
        .pub_counts
        .iter()
        .map(|(t, n)| (t.as_str(), *n))
        .collect();
    assert_eq!(counts, [("a", 2), ("b", 1)]);
    let label = DoorLabel {
        door: MetricsDoor::Tcp,
    };
    assert_eq!(door.metrics.accepted.get_or_create(&label).get(), 3);
}
