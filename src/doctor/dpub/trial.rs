//! Publishes delayed messages to an nsqd, consumes them, and notes how far from their due time each
//! came. One monotonic clock measures both ends: nobody's wall clock matters.

use std::ops::Range;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::future::try_join;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::message::{Delay, TopicName};
use crate::nsq::command::{encode_dpub, encode_nop};
use crate::nsq::consumption::{ChannelName, Delivery, encode_fin, encode_rdy, encode_sub};
use crate::nsq::frame::FrameType;
use crate::nsqd::{self, Fault, Reader, Wishes, Writer};

/// Nonce, number, when it was sent in µs since the start of the trial, delay in ms.
pub(super) const BODY_LEN: usize = 8 + 4 + 8 + 4;
/// Commands that are written before their answers are read.
const WINDOW: usize = 200;
/// How long after the last due time a message may come before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(15);
/// nsqd looks for new channels every 5 s only (its queue scan's refresh); before that a channel's
/// deferred messages wait. Not what a consumer that has been there for long sees.
const WARM_UP: Duration = Duration::from_secs(6);
/// How long a message whose delay overflowed may take to come.
const WRAPPED_AFTER: Duration = Duration::from_secs(3);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a message with a delay that overflows nsqd's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapped {
    /// nsqd refused it.
    Refused,
    /// nsqd took it and has not delivered it.
    Kept,
    /// nsqd took it and delivered it after so long.
    Came(Duration),
}

/// Where trials are made.
#[derive(Debug)]
pub(super) struct Trials<'a> {
    pub(super) address: &'a str,
    pub(super) wishes: Wishes,
    /// Most messages that are pushed and not confirmed.
    pub(super) ready: usize,
}

/// One load.
#[derive(Debug, Clone)]
pub(super) struct Trial<'a> {
    pub(super) topic: &'a TopicName,
    pub(super) count: usize,
    /// Delays are spread over it.
    pub(super) delays_ms: Range<u64>,
}

/// What came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Messages that nsqd acknowledged.
    pub(super) published: usize,
    /// From the first publish to the subscription, in ms; 0 if that came first.
    pub(super) unwatched_ms: u64,
    /// How late each came, in µs, negative if early; sorted. A copy of one that had come is not in it.
    pub(super) late_us: Vec<i64>,
    /// Copies of what had come before.
    pub(super) copies: usize,
}

/// The body of a message.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    nonce: u64,
    number: u32,
    sent_us: u64,
    delay_ms: u32,
}

impl Stamp {
    fn encode(self) -> Bytes {
        let mut body = BytesMut::with_capacity(BODY_LEN);
        body.put_u64(self.nonce);
        body.put_u32(self.number);
        body.put_u64(self.sent_us);
        body.put_u32(self.delay_ms);
        body.freeze()
    }

    fn decode(mut body: Bytes) -> Option<Self> {
        (body.len() == BODY_LEN).then(|| Self {
            nonce: body.get_u64(),
            number: body.get_u32(),
            sent_us: body.get_u64(),
            delay_ms: body.get_u32(),
        })
    }
}

/// Numbers and clock of one trial.
#[derive(Debug, Clone, Copy)]
struct Run {
    nonce: u64,
    start: Instant,
}

impl Run {
    fn new() -> Self {
        Self {
            nonce: fastrand::u64(..),
            start: Instant::now(),
        }
    }

    fn elapsed_us(self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Trials<'_> {
    /// With the consumer there first, and one message per `pace`: what nsqd does at its best. Then one
    /// with `wrapping_ms`, a delay that it may get wrong.
    pub(super) async fn paced(
        &self,
        trial: &Trial<'_>,
        pace: Duration,
        wrapping_ms: u64,
    ) -> Result<(Seen, Wrapped), Fault> {
        let mut consumer = self.subscribe(trial.topic).await?;
        let warm = Run::new();
        let mut none = Seen::default();
        let warm_at = Instant::now() + WARM_UP;
        consumer.consume(warm, 1, warm_at, &mut none).await?;
        let run = Run::new();
        let (mut reader, mut writer) = self.dial().await?;
        let publish = async {
            let mut ticks = interval(pace);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0..trial.count {
                ticks.tick().await;
                put(trial, run, number, &mut writer.output);
                writer.flush().await?;
                acknowledged(&mut reader, 1).await?;
            }
            Ok(())
        };
        let mut seen = Seen {
            published: trial.count,
            ..Seen::default()
        };
        let all = pace.saturating_mul(u32::try_from(trial.count).unwrap_or(u32::MAX));
        let end = Instant::now() + all + last_due(trial) + LOST_AFTER;
        let consume = consumer.consume(run, trial.count, end, &mut seen);
        try_join(publish, consume).await?;
        let wrapped = wrapped(
            trial.topic,
            wrapping_ms,
            &mut reader,
            &mut writer,
            &mut consumer,
        );
        Ok((seen, wrapped.await?))
    }

    /// All at once to a topic that has no channel yet, then a consumer: what happens when messages
    /// wait in the topic.
    pub(super) async fn burst(&self, trial: &Trial<'_>) -> Result<Seen, Fault> {
        let run = Run::new();
        let (mut reader, mut writer) = self.dial().await?;
        let mut number = 0;
        while number < trial.count {
            let window = WINDOW.min(trial.count - number);
            for _ in 0..window {
                put(trial, run, number, &mut writer.output);
                number += 1;
            }
            writer.flush().await?;
            acknowledged(&mut reader, window).await?;
        }
        let mut seen = Seen {
            published: trial.count,
            unwatched_ms: run.elapsed_us() / 1_000,
            ..Seen::default()
        };
        let mut consumer = self.subscribe(trial.topic).await?;
        let end = Instant::now() + last_due(trial) + LOST_AFTER;
        consumer.consume(run, trial.count, end, &mut seen).await?;
        Ok(seen)
    }

    async fn dial(&self) -> Result<(Reader, Writer), Fault> {
        let (reader, writer, _) = nsqd::dial(self.address, &self.wishes).await?;
        Ok((reader, writer))
    }

    async fn subscribe(&self, topic: &TopicName) -> Result<Consumer, Fault> {
        // As lasting as the topic: beyond the memory queue an ephemeral one throws messages away.
        let channel: &[u8] = if topic.as_str().ends_with("#ephemeral") {
            b"nsqdelayd_doctor#ephemeral"
        } else {
            b"nsqdelayd_doctor"
        };
        let channel =
            ChannelName::parse(channel).map_err(|bad| Fault::Unexpected(bad.to_string()))?;
        let (mut reader, mut writer) = self.dial().await?;
        encode_sub(topic, &channel, &mut writer.output);
        writer.flush().await?;
        acknowledged(&mut reader, 1).await?;
        encode_rdy(self.ready, &mut writer.output);
        writer.flush().await?;
        Ok(Consumer { reader, writer })
    }
}

/// One message with a delay that overflows.
async fn wrapped(
    topic: &TopicName,
    delay_ms: u64,
    reader: &mut Reader,
    writer: &mut Writer,
    consumer: &mut Consumer,
) -> Result<Wrapped, Fault> {
    let run = Run::new();
    let stamp = Stamp {
        nonce: run.nonce,
        number: 0,
        sent_us: run.elapsed_us(),
        delay_ms: 0,
    };
    let body = stamp.encode();
    encode_dpub(topic, Delay(delay_ms), None, &body, &mut writer.output);
    writer.flush().await?;
    match acknowledged(reader, 1).await {
        Err(Fault::Refused(_)) => return Ok(Wrapped::Refused),
        other => other?,
    }
    let mut seen = Seen::default();
    let end = Instant::now() + WRAPPED_AFTER;
    consumer.consume(run, 1, end, &mut seen).await?;
    Ok(match seen.late_us.first() {
        None => Wrapped::Kept,
        Some(us) => Wrapped::Came(Duration::from_micros(us.unsigned_abs())),
    })
}

fn last_due(trial: &Trial<'_>) -> Duration {
    Duration::from_millis(trial.delays_ms.end)
}

/// Appends the DPUB of one message. Its clock starts before it is written, so that nothing counts as
/// early which is not.
fn put(trial: &Trial<'_>, run: Run, number: usize, output: &mut BytesMut) {
    let span = trial.delays_ms.end - trial.delays_ms.start;
    // The stride is odd, so that the delays do not come in order.
    let delay_ms = trial.delays_ms.start + (number as u64).wrapping_mul(7_919) % span.max(1);
    let stamp = Stamp {
        nonce: run.nonce,
        number: u32::try_from(number).unwrap_or(u32::MAX),
        sent_us: run.elapsed_us(),
        delay_ms: u32::try_from(delay_ms).unwrap_or(u32::MAX),
    };
    encode_dpub(trial.topic, Delay(delay_ms), None, &stamp.encode(), output);
}

async fn acknowledged(reader: &mut Reader, count: usize) -> Result<(), Fault> {
    for _ in 0..count {
        let answer = timeout(ANSWER_TIMEOUT, reader.answer()).await;
        answer.unwrap_or(Err(Fault::Silent(ANSWER_TIMEOUT)))?;
    }
    Ok(())
}

/// A subscribed connection.
struct Consumer {
    reader: Reader,
    writer: Writer,
}

impl Consumer {
    /// Consumes until `expected` messages of `run` have come, or until `end`. What is another run's is
    /// confirmed and not counted.
    async fn consume(
        &mut self,
        run: Run,
        expected: usize,
        end: Instant,
        seen: &mut Seen,
    ) -> Result<(), Fault> {
        let mut came = vec![false; expected];
        let mut left = expected;
        while left > 0 {
            let Ok(frame) = timeout_at(end, self.reader.next()).await else {
                break;
            };
            let frame = frame?;
            let at_us = run.elapsed_us();
            match frame.kind {
                FrameType::Response if frame.is_heartbeat() => {
                    encode_nop(&mut self.writer.output);
                }
                FrameType::Response => {}
                FrameType::Error => return Err(Fault::Refused(nsqd::text(&frame.body))),
                FrameType::Message => {
                    let delivery = Delivery::decode(frame.body)
                        .map_err(|bad| Fault::Unexpected(bad.to_string()))?;
                    encode_fin(delivery.id, &mut self.writer.output);
                    let own = Stamp::decode(delivery.body).filter(|s| s.nonce == run.nonce);
                    let place = own.and_then(|stamp| {
                        let number = usize::try_from(stamp.number).ok()?;
                        Some((stamp, came.get_mut(number)?))
                    });
                    match place {
                        Some((_, true)) => seen.copies += 1,
                        Some((stamp, here)) => {
                            *here = true;
                            left -= 1;
                            seen.late_us.push(late_us(stamp, at_us));
                        }
                        None => {}
                    }
                }
            }
            self.writer.flush().await?;
        }
        seen.late_us.sort_unstable();
        Ok(())
    }
}

fn late_us(stamp: Stamp, at_us: u64) -> i64 {
    let due_us = stamp.sent_us + u64::from(stamp.delay_ms) * 1_000;
    at_us.cast_signed() - due_us.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_holds_its_stamp() {
        let stamp = Stamp {
            nonce: 7,
            number: 9,
            sent_us: 5_000,
            delay_ms: 10,
        };
        let body = stamp.encode();
        assert_eq!(body.len(), BODY_LEN);
        let read = Stamp::decode(body).unwrap();
        assert_eq!((read.nonce, read.number), (7, 9));
        assert_eq!(late_us(read, 14_000), -1_000);
        assert_eq!(late_us(read, 16_000), 1_000);
        assert!(Stamp::decode(Bytes::from_static(b"foreign")).is_none());
    }
}
