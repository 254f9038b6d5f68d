//! Reads request bodies piece by piece under a limit, a stall time-out and a budget of memory that
//! all requests share. Knows nothing of what the bytes mean.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;

use crate::ingest::budget::Share;

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
pub(in crate::ingest) struct BodyReader {
    stream: BodyDataStream,
    buffer: BytesMut,
    received: usize,
    limit: usize,
    /// More than `limit` bytes came; `buffer` was cut at the limit.
    over: bool,
    share: Share,
    /// Beside the bytes themselves.
    charged_more: usize,
}

impl BodyReader {
    /// Reads `body`, of which at most `limit` bytes are taken and charged to `share`.
    pub(in crate::ingest) fn new(body: Body, limit: usize, share: Share) -> Self {
        Self {
            stream: body.into_data_stream(),
            buffer: BytesMut::new(),
            received: 0,
            limit,
            over: false,
            share,
            charged_more: 0,
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

    /// Charges what will be made of the bytes.
    pub(in crate::ingest) fn charge_more(&mut self, bytes: usize) -> Result<(), BodyFault> {
        self.charged_more += bytes;
        self.charge(self.received.min(self.limit))
    }

    /// What was charged, to be kept until the bytes are stored.
    pub(in crate::ingest) fn into_share(self) -> Share {
        self.share
    }

    fn charge(&mut self, bytes: usize) -> Result<(), BodyFault> {
        let charged = self.share.resize(bytes + self.charged_more);
        charged.map_err(|_crowded| BodyFault::Crowded)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::ingest::budget::Budget;

    fn body(chunks: &[&'static str]) -> Body {
        let chunks: Vec<Result<Bytes, Infallible>> = chunks
            .iter()
            .map(|c| Ok(Bytes::from_static(c.as_bytes())))
            .collect();
        Body::from_stream(futures_util::stream::iter(chunks))
    }

    #[tokio::test]
    async fn a_body_of_the_limit_is_read_and_one_byte_more_is_not() {
        let budget = Budget::new(8 * 1024);
        let whole = BodyReader::new(body(&["ab", "cd"]), 4, budget.share())
            .whole()
            .await;
        assert_eq!(whole, Ok(Bytes::from_static(b"abcd")));
        let whole = BodyReader::new(body(&["ab", "cde"]), 4, budget.share())
            .whole()
            .await;
        assert_eq!(whole, Err(BodyFault::TooBig));
    }

    #[tokio::test]
    async fn lines_end_at_newlines_across_chunks() {
        let budget = Budget::new(8 * 1024);
        let mut reader = BodyReader::new(body(&["a", "b\n\nc", "\r\n", "d"]), 99, budget.share());
        let mut lines = Vec::new();
        while let Some(line) = reader.line().await.unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["ab", "c\r", "d"]);
    }

    #[tokio::test]
    async fn lines_before_the_limit_come_before_the_fault() {
        let budget = Budget::new(8 * 1024);
        let mut reader = BodyReader::new(body(&["ab\ncd\n"]), 5, budget.share());
        assert_eq!(reader.line().await, Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(reader.line().await, Err(BodyFault::TooBig));
    }

    #[tokio::test]
    async fn exactly_says_when_the_body_is_short() {
        let budget = Budget::new(8 * 1024);
        let mut reader = BodyReader::new(body(&["abc"]), 9, budget.share());
        assert_eq!(reader.exactly(2).await, Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(reader.exactly(2).await, Ok(None));
    }

    #[tokio::test]
    async fn the_budget_is_shared_and_given_back() {
        let budget = Budget::new(1);
        let mut first = BodyReader::new(body(&["x"]), 9, budget.share());
        assert_eq!(first.whole().await, Ok(Bytes::from_static(b"x")));
        let second = BodyReader::new(body(&["y"]), 9, budget.share())
            .whole()
            .await;
        assert_eq!(second, Err(BodyFault::Crowded));
        drop(first);
        let mut third = BodyReader::new(body(&["z"]), 9, budget.share());
        assert_eq!(third.whole().await, Ok(Bytes::from_static(b"z")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_is_given_up() {
        let budget = Budget::new(8 * 1024);
        let stalled =
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
        let whole = BodyReader::new(stalled, 9, budget.share()).whole().await;
        assert_eq!(whole, Err(BodyFault::Broken));
    }
}
