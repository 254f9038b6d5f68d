//! The commands of a load, door by door: bytes that publish, and bytes that cancel. Knows no socket.

use std::sync::Mutex;

use crate::cli::bench::body::Shape;
use crate::cli::bench::book::Book;
use crate::cli::bench::clock;
use crate::cli::bench::stamp::Stamp;
use crate::cli::bench::wire::{Answer, Speech};

/// A way to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Door {
    /// `DPUB` over TCP.
    Dpub,
    /// `MDPUB` over TCP.
    Mdpub,
    /// `POST /mpub?binary=true&defer=`.
    Mpub,
    /// `POST /v1/messages:batch`.
    Batch,
}

impl Door {
    /// What a connection to it speaks.
    pub(super) fn speech(self) -> Speech {
        match self {
            Self::Dpub | Self::Mdpub => Speech::Nsq,
            Self::Mpub | Self::Batch => Speech::Http,
        }
    }

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dpub => "tcp dpub",
            Self::Mdpub => "tcp mdpub",
            Self::Mpub => "http mpub",
            Self::Batch => "v1 batch",
        }
    }
}

/// When messages are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// So long after they are sent, ms: evenly from the first to the second.
    After(u64, u64),
    /// At one moment, Unix us.
    At(u64),
}

/// What a sender sends, command by command.
pub(super) trait Commands: Sync {
    /// How many there are.
    fn count(&self) -> u32;
    /// Messages of each but the last.
    fn batch(&self) -> u32;
    /// Appends one to `out`. `intended_us`: when it should have been sent; `None`: now.
    fn encode(&self, command: u32, intended_us: Option<u64>, out: &mut Vec<u8>);
    /// It was answered with success.
    fn done(&self, command: u32, body: &[u8]) -> Result<(), String>;
}

/// A load that publishes.
#[derive(Debug)]
pub(super) struct Publish<'a> {
    pub(super) door: Door,
    pub(super) topic: &'a str,
    pub(super) shape: Shape,
    pub(super) batch: u32,
    pub(super) when: When,
    /// Whether each message has an id of its producer.
    pub(super) with_ids: bool,
    /// Where minted ids go, by number, if they are wanted and the door tells them.
    pub(super) minted: Option<&'a Mutex<Vec<(u32, String)>>>,
    pub(super) book: &'a Book,
}

impl Publish<'_> {
    fn numbers(&self, command: u32) -> std::ops::Range<u32> {
        let first = command * self.batch;
        first..(first + self.batch).min(self.book.count())
    }

    fn delay_ms(&self, command: u32, now_us: u64) -> u64 {
        match self.when {
            When::After(from, to) => {
                // The same spread in every run: the fractional parts of a golden ratio's multiples.
                let spread = u64::from(command.wrapping_mul(2_654_435_769));
                from + (((to - from) * spread) >> 32)
            }
            When::At(at_us) => at_us.saturating_sub(now_us).div_ceil(1000),
        }
    }

    fn id(&self, number: u32) -> String {
        id_of(self.book.run(), number)
    }

    fn bodies(&self, stamp: Stamp, numbers: std::ops::Range<u32>, out: &mut Vec<u8>) {
        out.extend(length(numbers.len()));
        for number in numbers {
            self.sized(Stamp { number, ..stamp }, out);
        }
    }

    fn sized(&self, stamp: Stamp, out: &mut Vec<u8>) {
        out.extend(length(self.shape.len()));
        self.shape.write(stamp, out);
    }
}

/// The producer's id of a message.
pub(super) fn id_of(run: u32, number: u32) -> String {
    format!("bench-{run:08x}-{number}")
}

/// A length on the wire.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

/// Bytes of a batch of bodies.
fn batch_len(count: usize, body_len: usize) -> usize {
    4 + count * (4 + body_len)
}

impl Commands for Publish<'_> {
    fn count(&self) -> u32 {
        self.book.count().div_ceil(self.batch)
    }

    fn batch(&self) -> u32 {
        self.batch
    }

    fn encode(&self, command: u32, intended_us: Option<u64>, out: &mut Vec<u8>) {
        let now_us = clock::now_us();
        let delay_ms = self.delay_ms(command, now_us);
        let numbers = self.numbers(command);
        let lag_us = now_us.saturating_sub(intended_us.unwrap_or(now_us));
        let stamp = Stamp {
            run: self.book.run(),
            number: numbers.start,
            due_us: now_us + delay_ms * 1000,
            lag_us: u32::try_from(lag_us).unwrap_or(u32::MAX),
        };
        let topic = self.topic;
        let bodies_len = batch_len(numbers.len(), self.shape.len());
        match self.door {
            Door::Dpub if self.with_ids => {
                let id = self.id(numbers.start);
                out.extend(format!("DPUB {topic} {delay_ms} {id}\n").into_bytes());
                self.sized(stamp, out);
            }
            Door::Dpub => {
                out.extend(format!("DPUB {topic} {delay_ms}\n").into_bytes());
                self.sized(stamp, out);
            }
            Door::Mdpub => {
                out.extend(format!("MDPUB {topic} {delay_ms}\n").into_bytes());
                out.extend(length(bodies_len));
                self.bodies(stamp, numbers, out);
            }
            Door::Mpub => {
                let head = format!(
                    "POST /mpub?topic={topic}&binary=true&defer={delay_ms} HTTP/1.1\r\nHost: bench\r\n\
                     Content-Length: {bodies_len}\r\n\r\n"
                );
                out.extend(head.into_bytes());
                self.bodies(stamp, numbers, out);
            }
            Door::Batch => {
                let mut body = b"{\"messages\":[".to_vec();
                for number in numbers.clone() {
                    let separator = if number == numbers.start { "" } else { "," };
                    let head = format!(
                        "{separator}{{\"topic\":\"{topic}\",\"delay_ms\":{delay_ms},\"body\":"
                    );
                    body.extend(head.into_bytes());
                    self.shape
                        .write_quoted(Stamp { number, ..stamp }, &mut body);
                    if self.with_ids {
                        body.extend(format!(",\"id\":\"{}\"", self.id(number)).into_bytes());
                    }
                    body.push(b'}');
                }
                body.extend(b"]}");
                let head = format!(
                    "POST /v1/messages:batch HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n",
                    body.len()
                );
                out.extend(head.into_bytes());
                out.extend(body);
            }
        }
    }

    fn done(&self, command: u32, body: &[u8]) -> Result<(), String> {
        let numbers = self.numbers(command);
        if self.door == Door::Batch {
            // The counts stand before the results.
            let all = format!("\"successful\":{},\"failed\":0,", numbers.len());
            let counts = body.windows(all.len()).take(16);
            if !counts.into_iter().any(|text| text == all.as_bytes()) {
                let text = String::from_utf8_lossy(body);
                return Err(text.chars().take(300).collect());
            }
            if let Some(minted) = self.minted {
                let ids = ids(body)?;
                if let Ok(mut minted) = minted.lock() {
                    minted.extend(numbers.clone().zip(ids));
                }
            }
        }
        numbers.for_each(|number| self.book.acknowledge(number));
        Ok(())
    }
}

/// The ids of a batch's results, in order.
fn ids(body: &[u8]) -> Result<Vec<String>, String> {
    let answer: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let results = answer.get("results").and_then(|r| r.as_array());
    let results = results.ok_or("an answer without results")?;
    let id = |result: &serde_json::Value| {
        let id = result.get("message")?.get("id")?.as_str()?;
        Some(id.to_owned())
    };
    let ids: Option<Vec<String>> = results.iter().map(id).collect();
    ids.ok_or_else(|| "a result without an id".to_owned())
}

/// A load that cancels over TCP, one id a command.
#[derive(Debug)]
pub(super) struct Cancel<'a> {
    pub(super) ids: &'a [(u32, String)],
    pub(super) book: &'a Book,
}

impl Commands for Cancel<'_> {
    fn count(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX)
    }

    fn batch(&self) -> u32 {
        1
    }

    fn encode(&self, command: u32, _intended_us: Option<u64>, out: &mut Vec<u8>) {
        if let Some((_, id)) = usize::try_from(command).ok().and_then(|c| self.ids.get(c)) {
            out.extend(format!("CANCEL {id}\n").into_bytes());
        }
    }

    fn done(&self, command: u32, _body: &[u8]) -> Result<(), String> {
        if let Some((number, _)) = usize::try_from(command).ok().and_then(|c| self.ids.get(c)) {
            self.book.cancel(*number);
        }
        Ok(())
    }
}

/// What an answer was, in words.
pub(super) fn refusal(answer: Answer<'_>) -> String {
    let (Answer::Done(text) | Answer::Refused(text)) = answer;
    String::from_utf8_lossy(text).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::body::Bodies;

    fn encoded(door: Door, batch: u32) -> String {
        let book = Book::new(7, 3, false);
        let publish = Publish {
            door,
            topic: "t",
            shape: Shape::new(Bodies::Dots, 40),
            batch,
            when: When::After(5, 5),
            with_ids: door == Door::Dpub,
            minted: None,
            book: &book,
        };
        let mut out = Vec::new();
        publish.encode(0, None, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_door_has_its_command() {
        assert!(encoded(Door::Dpub, 1).starts_with("DPUB t 5 bench-00000007-0\n\0\0\0\x28"));
        assert!(encoded(Door::Mdpub, 2).starts_with("MDPUB t 5\n\0\0\0\x5c\0\0\0\x02\0\0\0\x28"));
        let mpub = encoded(Door::Mpub, 3);
        assert!(mpub.starts_with("POST /mpub?topic=t&binary=true&defer=5 HTTP/1.1\r\n"));
        let (head, body) = mpub.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        let batch = encoded(Door::Batch, 3);
        let (head, body) = batch.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["messages"][2]["delay_ms"], 5);
    }

    #[test]
    fn a_batch_is_done_when_each_of_it_is() {
        let book = Book::new(7, 2, false);
        let minted = Mutex::new(Vec::new());
        let publish = Publish {
            door: Door::Batch,
            topic: "t",
            shape: Shape::new(Bodies::Dots, 40),
            batch: 2,
            when: When::After(5, 5),
            with_ids: false,
            minted: Some(&minted),
            book: &book,
        };
        let half = br#"{"successful":1,"failed":1,"results":[]}"#;
        assert!(publish.done(0, half).is_err());
        assert_eq!(book.acknowledged(), 0);
        let whole = br#"{"successful":2,"failed":0,"results":[{"message":{"id":"a"}},{"message":{"id":"b"}}]}"#;
        assert_eq!(publish.done(0, whole), Ok(()));
        assert_eq!(book.acknowledged(), 2);
        let minted = minted.into_inner().unwrap();
        assert_eq!(minted, [(0, "a".to_owned()), (1, "b".to_owned())]);
    }

    #[test]
    fn delays_are_spread_evenly() {
        let book = Book::new(7, 10_000, false);
        let publish = Publish {
            door: Door::Dpub,
            topic: "t",
            shape: Shape::new(Bodies::Dots, 40),
            batch: 1,
            when: When::After(1_000, 5_000),
            with_ids: false,
            minted: None,
            book: &book,
        };
        let delays: Vec<_> = (0..10_000).map(|c| publish.delay_ms(c, 0)).collect();
        let mean = delays.iter().sum::<u64>() / 10_000;
        assert!((2_950..3_050).contains(&mean), "{mean}");
        assert!(delays.iter().all(|delay| (1_000..=5_000).contains(delay)));
    }
}
