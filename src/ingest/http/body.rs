//! Reads request bodies piece by piece under a limit, a stall time-out and a budget of memory that
//! all requests share. Knows nothing of what the bytes mean.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Unit in which the shared budget is counted.
const BUDGET_UNIT_BYTES: usize = 1024;
/// How much of all bodies together may be in memory at once.
pub(super) const BUDGET_UNITS_MAX: usize = 256 * 1024;
/// What a message of a batch takes beside its bytes, roughly.
const MESSAGE_OVERHEAD: usize = 128;
/// How long a client may send nothing in the middle of a body. nsqd waits for ever; we do not.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Why a body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest) enum BodyFault {
    /// It is longer than the limit.
    TooBig,
    /// The framing is broken, the client went away, or it stalled.
    Broken,
    /// All requests together hold as much as they may.
    Crowded,
}

/// A request's body while it comes in. What was read counts against the budget until this is
/// dropped, so keep it until the bytes are stored.
#[derive(Debug)]
pub(in crate::ingest) struct BodyReader<'a> {
    stream: BodyDataStream,
    buffer: BytesMut,
    received: usize,
    limit: usize,
    /// More than `limit` bytes came; `buffer` was cut at the limit.
    over: bool,
    budget: &'a Semaphore,
    held: Option<SemaphorePermit<'a>>,
    held_units: usize,
    messages: usize,
}

impl<'a> BodyReader<'a> {
    /// Reads `body`, of which at most `limit` bytes are taken.
    pub(in crate::ingest) fn new(body: Body, limit: usize, budget: &'a Semaphore) -> Self {
        Self {
            stream: body.into_data_stream(),
            buffer: BytesMut::new(),
            received: 0,
            limit,
            over: false,
            budget,
            held: None,
            held_units: 0,
            messages: 0,
        }
    }

    /// The whole body.
    pub(in crate::ingest) async fn whole(&mut self) -> Result<Bytes, BodyFault> {
        while self.more().await? {}
        Ok(self.buffer.split().freeze())
    }

    /// The next `count` bytes; `None` when the body ends before.
    pub(in crate::ingest) async fn exactly(
        &mut self,
        count: usize,
    ) -> Result<Option<Bytes>, BodyFault> {
        while self.buffer.len() < count {
            if !self.more().await? {
                return Ok(None);
            }
        }
        Ok(Some(self.buffer.split_to(count).freeze()))
    }

    /// The next line that is not empty, without its `\n`, or what is left at the end; `None` after
    /// that.
    pub(in crate::ingest) async fn line(&mut self) -> Result<Option<Bytes>, BodyFault> {
        let mut searched = 0;
        loop {
            if searched == 0 {
                let empty = self.buffer.iter().take_while(|b| **b == b'\n').count();
                self.buffer.advance(empty);
            }
            let unsearched = self.buffer.get(searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|b| *b == b'\n') {
                let mut line = self.buffer.split_to(searched + at + 1);
                line.truncate(searched + at);
                return Ok(Some(line.freeze()));
            }
            searched = self.buffer.len();
            if !self.more().await? {
                let rest = self.buffer.split();
                return Ok((!rest.is_empty()).then(|| rest.freeze()));
            }
        }
    }

    /// Waits for more; `false` at the end.
    async fn more(&mut self) -> Result<bool, BodyFault> {
        if self.over {
            return Err(BodyFault::TooBig);
        }
        let next = tokio::time::timeout(STALL_MAX, self.stream.next()).await;
        let chunk = match next {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(None) => return Ok(false),
            // Broken framing and a vanished client are one to us, and so is a stall.
            Ok(Some(Err(_))) | Err(_) => return Err(BodyFault::Broken),
        };
        self.received = self.received.saturating_add(chunk.len());
        self.over = self.received > self.limit;
        let room = self.limit - (self.received - chunk.len()).min(self.limit);
        let taken = chunk.get(..chunk.len().min(room)).unwrap_or_default();
        self.charge(self.received.min(self.limit))?;
        self.buffer.extend_from_slice(taken);
        Ok(true)
    }

    /// A piece of the body becomes a message, which takes memory beside its bytes.
    pub(in crate::ingest) fn charge_message(&mut self) -> Result<(), BodyFault> {
        self.messages += 1;
        self.charge(self.received.min(self.limit))
    }

    fn charge(&mut self, bytes: usize) -> Result<(), BodyFault> {
        let bytes = bytes + self.messages * MESSAGE_OVERHEAD;
        let units = bytes.div_ceil(BUDGET_UNIT_BYTES);
        let missing = units.saturating_sub(self.held_units);
        if missing == 0 {
            return Ok(());
        }
        let count = u32::try_from(missing).map_err(|_overflow| BodyFault::Crowded)?;
        let more = self
            .budget
            .try_acquire_many(count)
            .map_err(|_none_left| BodyFault::Crowded)?;
        self.held_units = units;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn body(chunks: &[&'static str]) -> Body {
        let chunks: Vec<Result<Bytes, Infallible>> = chunks
            .iter()
            .map(|c| Ok(Bytes::from_static(c.as_bytes())))
            .collect();
        Body::from_stream(futures_util::stream::iter(chunks))
    }

    #[tokio::test]
    async fn a_body_of_the_limit_is_read_and_one_byte_more_is_not() {
        let budget = Semaphore::new(8);
        let whole = BodyReader::new(body(&["ab", "cd"]), 4, &budget)
            .whole()
            .await;
        assert_eq!(whole, Ok(Bytes::from_static(b"abcd")));
        let whole = BodyReader::new(body(&["ab", "cde"]), 4, &budget)
            .whole()
            .await;
        assert_eq!(whole, Err(BodyFault::TooBig));
    }

    #[tokio::test]
    async fn lines_end_at_newlines_across_chunks() {
        let budget = Semaphore::new(8);
        let mut reader = BodyReader::new(body(&["a", "b\n\nc", "\r\n", "d"]), 99, &budget);
        let mut lines = Vec::new();
        while let Some(line) = reader.line().await.unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["ab", "c\r", "d"]);
    }

    #[tokio::test]
    async fn lines_before_the_limit_come_before_the_fault() {
        let budget = Semaphore::new(8);
        let mut reader = BodyReader::new(body(&["ab\ncd\n"]), 5, &budget);
        assert_eq!(reader.line().await, Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(reader.line().await, Err(BodyFault::TooBig));
    }

    #[tokio::test]
    async fn exactly_says_when_the_body_is_short() {
        let budget = Semaphore::new(8);
        let mut reader = BodyReader::new(body(&["abc"]), 9, &budget);
        assert_eq!(reader.exactly(2).await, Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(reader.exactly(2).await, Ok(None));
    }

    #[tokio::test]
    async fn the_budget_is_shared_and_given_back() {
        let budget = Semaphore::new(1);
        let mut first = BodyReader::new(body(&["x"]), 9, &budget);
        assert_eq!(first.whole().await, Ok(Bytes::from_static(b"x")));
        let second = BodyReader::new(body(&["y"]), 9, &budget).whole().await;
        assert_eq!(second, Err(BodyFault::Crowded));
        drop(first);
        assert_eq!(budget.available_permits(), 1);
    }

    #[tokio::test]
    async fn messages_count_against_the_budget_beside_their_bytes() {
        let budget = Semaphore::new(2);
        let mut reader = BodyReader::new(body(&["a\nb\n"]), 99, &budget);
        assert_eq!(reader.line().await, Ok(Some(Bytes::from_static(b"a"))));
        let messages = 2 * BUDGET_UNIT_BYTES / MESSAGE_OVERHEAD;
        for _ in 1..messages {
            assert_eq!(reader.charge_message(), Ok(()));
        }
        assert_eq!(reader.charge_message(), Err(BodyFault::Crowded));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_is_given_up() {
        let budget = Semaphore::new(8);
        let stalled =
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
        let whole = BodyReader::new(stalled, 9, &budget).whole().await;
        assert_eq!(whole, Err(BodyFault::Broken));
    }
}
