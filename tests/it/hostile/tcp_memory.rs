//! Clients that would make us hold much: batches that never end, clients that take no answer.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};

use super::{AT_REST, IN_FLIGHT, MAX_BODY_SIZE, MAX_DELAY, MIB, Siege, Then, frames};
use crate::support::producer::{Producer, identify, mdpub};
use crate::support::wait;

/// To those for whom there is no room.
const OVERLOADED: &str =
    "E_DPUB_FAILED MDPUB failed too much is under way, nothing was stored, try again later";

/// A batch of so many messages of a byte each, far ahead.
fn batch_of(count: usize) -> Vec<u8> {
    mdpub("t", MAX_DELAY, &vec![b"x".as_slice(); count])
}

#[test]
fn a_hundred_batches_that_stall_hold_what_they_sent_and_no_more() {
    const CLIENTS: usize = 100;
    let siege = Siege::begin();
    let begun = batch_of((MAX_BODY_SIZE - 4) / 5);
    let head = begun.iter().position(|b| *b == b'\n').unwrap() + 9;
    let mut stalled: Vec<Producer> = (0..CLIENTS).map(|_| siege.app.producer()).collect();
    for client in &mut stalled {
        client.send(&begun[..head]).unwrap();
    }
    siege.others_are_served("declared millions");
    siege.memory_was_under(AT_REST);
    for client in &mut stalled {
        // One that is refused is read on for a while only.
        drop(client.send(&begun[head..begun.len() - 1]));
    }
    siege.others_are_served("millions without their last byte");
    siege.memory_was_under(AT_REST + IN_FLIGHT);
    let (mut refused, mut interrupted) = (0, 0);
    for client in &mut stalled {
        drop(client.socket().unwrap().shutdown(Shutdown::Write));
        let answer = last_word(client);
        refused += usize::from(answer == OVERLOADED);
        interrupted += usize::from(answer == "E_BAD_MESSAGE MDPUB failed to read message body");
        assert!(client.is_closed());
    }
    eprintln!("{refused} refused");
    assert_eq!(refused + interrupted, CLIENTS);
    assert!(refused > 0);
    siege.others_are_served("the end of the millions");
    siege.memory_was_under(AT_REST + IN_FLIGHT);
}

/// What comes before the close, but for heartbeats: nobody can answer those any more.
fn last_word(client: &mut Producer) -> String {
    let mut words = std::iter::from_fn(|| client.read_any().ok()).map(|frame| frame.text());
    let word = words.find(|word| word != "_heartbeat_");
    word.expect("an error before the close")
}

#[test]
fn the_largest_batch_of_the_smallest_messages_is_taken_or_refused_whole() {
    const CLIENTS: usize = 3;
    // A quarter of the usual, which takes long in a build for tests.
    let siege = Siege::begin_with(|builder| {
        builder
            .flag("--max-msg-size", "262144")
            .flag("--max-body-size", "1310720")
    });
    let count = (1_310_720 - 4) / 5;
    let batch = [b"  V2".as_slice(), &batch_of(count)].concat();
    let answers: Vec<Vec<String>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| frames(&siege.app.tcp, &batch, Then::Closes)))
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let answered = |wanted: &str| answers.iter().filter(|a| *a == &[wanted]).count();
    let taken = answered("OK");
    let refused = answered(&format!("!{OVERLOADED}"));
    assert!(taken > 0 && taken + refused == CLIENTS, "{answers:?}");
    siege.others_are_served("the largest batches");
    let topics = siege.app.get("/v1/topics").json();
    let mut topics = topics["topics"].as_array().unwrap().iter();
    let counted = topics.find(|topic| topic["topic"] == "t").unwrap();
    assert_eq!(counted["pending"], taken * count);
    siege.memory_was_under(AT_REST + 256 * MIB);
}

/// Each CANCEL of an id of NULs has an answer of four times its length.
#[test]
fn clients_that_never_read_are_cut_off_and_hold_little() {
    const CLIENTS: usize = 20;
    let siege = Siege::begin_with(|builder| builder.flag("--heartbeat-interval", "1s"));
    let cancel = [b"CANCEL ".as_slice(), &[0; 16_000], b"\n"].concat();
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let mut client = siege.app.producer();
            client.send(&identify("{}")).unwrap();
            client.socket().unwrap()
        })
        .collect();
    // Each writes until the server has closed, reading none of what it is told.
    std::thread::scope(|scope| {
        let floods: Vec<_> = clients
            .iter()
            .map(|mut client| {
                let cancel = &cancel;
                scope.spawn(move || {
                    client.set_write_timeout(Some(wait::LIMIT)).unwrap();
                    while client.write_all(cancel).is_ok() {}
                })
            })
            .collect();
        while floods.iter().any(|flood| !flood.is_finished()) {
            siege.others_are_served("clients that never read");
        }
    });
    siege.others_are_served("their end");
    siege.memory_was_under(AT_REST + (CLIENTS as u64) * 8 * MIB);
}
