//! One nsqd that the inbox consumes from: dials, subscribes, and dials again. One task owns the socket;
//! stores under way are futures of its own. FIN follows the store's answer, or nsqd's OK for what was
//! put beside; nothing else confirms a message.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_64;

use crate::ingest::Intake;
use crate::ingest::api_v1;
use crate::ingest::inbox::Config;
use crate::ingest::inbox::fate::{Backoff, Fate, Pace, again_ms};
use crate::ingest::inbox::invalid::{self, Manner};
use crate::ingest::metrics::{Door, DoorLabel, Metrics, RefusedLabel};
use crate::ingest::problem::{Code, Problem};
use crate::message::ClientId;
use crate::nsq::command::{encode_nop, encode_pub};
use crate::nsq::consumption::{
    Delivery, DeliveryId, encode_cls, encode_fin, encode_rdy, encode_req, encode_sub,
};
use crate::nsq::frame::{Frame, FrameType, OK_BODY};
use crate::nsqd::{self, Fault, Reader, Wishes, Writer};

/// So many heartbeat intervals without a byte from nsqd, and it is gone.
const SILENT_HEARTBEATS: u32 = 2;
/// Errors of nsqd after which the connection goes on: the message was another's by then.
const HARMLESS: [&str; 3] = ["E_FIN_FAILED", "E_REQ_FAILED", "E_TOUCH_FAILED"];
/// nsqd's default of the most messages that it pushes unanswered.
const READY_MAX: usize = 2_500;

const DOOR: DoorLabel = DoorLabel { door: Door::Inbox };

/// One nsqd.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) address: String,
    pub(super) config: Arc<Config>,
    pub(super) intake: Intake,
    pub(super) metrics: Metrics,
    /// Addresses that still count.
    pub(super) listed: watch::Receiver<BTreeSet<String>>,
}

/// Why a subscription ended.
enum End {
    /// It was told to, and all is answered.
    Stopped,
    /// It broke.
    Lost(Fault),
}

impl Source {
    /// Consumes until `stop`, or until this nsqd can neither be reached nor is listed any more.
    pub(super) async fn keep(self, stop: CancellationToken) {
        let config = &self.config;
        let mut backoff = Backoff::new(config.backoff_min, config.backoff_max);
        let mut manner = Manner::default();
        let mut told = false;
        loop {
            let dialled = tokio::select! {
                () = stop.cancelled() => return,
                dialled = self.subscribe(&mut manner) => dialled,
            };
            match dialled {
                Ok(session) => {
                    info!(nsqd = %self.address, topic = %config.topic, "inbox: consuming");
                    told = false;
                    let at = Instant::now();
                    let open = self.metrics.connections.get_or_create_owned(&DOOR);
                    open.inc();
                    let end = session.run(&stop).await;
                    open.dec();
                    match end {
                        End::Stopped => return,
                        End::Lost(error) => {
                            warn!(nsqd = %self.address, %error, "inbox: connection lost");
                        }
                    }
                    if at.elapsed() >= config.backoff_max {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    if told {
                        debug!(nsqd = %self.address, %error, "inbox: nsqd still unreachable");
                    } else {
                        warn!(nsqd = %self.address, %error, "inbox: nsqd unreachable");
                    }
                    told = true;
                    if !self.listed.borrow().contains(&self.address) {
                        info!(nsqd = %self.address, "inbox: no longer listed");
                        return;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff.next()) => {}
            }
        }
    }

    async fn subscribe<'a>(&'a self, manner: &'a mut Manner) -> Result<Session<'a>, Fault> {
        let config = &self.config;
        let wishes = Wishes {
            dial_timeout: config.dial_timeout,
            heartbeat_interval: config.heartbeat_interval,
            msg_timeout: Some(config.msg_timeout),
            unbuffered: true,
            carriage: config.carriage.clone(),
        };
        let (mut reader, mut writer, identity) = nsqd::dial(&self.address, &wishes).await?;
        encode_sub(&config.topic, &config.channel, &mut writer.output);
        writer.flush().await?;
        let limit = config.dial_timeout;
        let answer = tokio::time::timeout(limit, reader.answer()).await;
        answer.unwrap_or(Err(Fault::Silent(limit)))?;
        let ready_max = match identity.max_rdy_count {
            0 => READY_MAX,
            max => max,
        };
        let backoff = Backoff::new(config.backoff_min, config.backoff_max);
        let mut session = Session {
            source: self,
            reader,
            writer,
            manner,
            pace: Pace::new(config.in_flight_max.min(ready_max), backoff),
            ready: 0,
            storing: FuturesUnordered::new(),
            beside: VecDeque::new(),
            heard: Instant::now(),
            closing: false,
        };
        session.set_ready();
        Ok(session)
    }

    /// The id of a message whose producer gave none: nsqd's own, which is the same at each delivery, so
    /// that one that comes again is recognised. nsqd counts them per topic, so it is in there too.
    fn own_id(&self, delivery: &Delivery) -> Option<ClientId> {
        let place = format!("{} {}", self.config.topic, self.address);
        let id = format!("inbox-{:016x}-{}", xxh3_64(place.as_bytes()), delivery.id);
        ClientId::parse(id.as_bytes()).ok()
    }

    fn count(&self, fate: &Fate) {
        let code = match fate {
            Fate::Stored => return,
            Fate::Later(code) | Fate::Pause(code) => *code,
            Fate::Invalid(problem) => problem.code,
        };
        let label = RefusedLabel {
            door: Door::Inbox,
            reason: code.reason(),
        };
        self.metrics.refused.get_or_create(&label).inc();
    }
}

/// A message and what the intake said of it.
type Said = (Delivery, Result<(), Problem>);

/// One subscription.
struct Session<'a> {
    source: &'a Source,
    reader: Reader,
    writer: Writer,
    manner: &'a mut Manner,
    pace: Pace,
    /// What RDY said last.
    ready: usize,
    /// On their way into the store.
    storing: FuturesUnordered<BoxFuture<'a, Said>>,
    /// Published to the topic beside and not yet answered, in order.
    beside: VecDeque<DeliveryId>,
    /// When the last frame came.
    heard: Instant,
    /// Whether nsqd was told to push nothing more.
    closing: bool,
}

impl Session<'_> {
    /// Not cancel safe: dropping it leaves messages unanswered, which nsqd pushes again.
    async fn run(mut self, stop: &CancellationToken) -> End {
        let silence_max = self.source.config.heartbeat_interval * SILENT_HEARTBEATS;
        loop {
            let idle = self.storing.is_empty() && self.beside.is_empty();
            if self.closing && idle && !self.writer.is_pending() {
                return End::Stopped;
            }
            let silent_at = self.heard + silence_max;
            let wake_at = self
                .pace
                .resume_at()
                .map_or(silent_at, |at| at.min(silent_at));
            // Every branch is cancel safe. Writing first: FIN makes room.
            let outcome = tokio::select! {
                biased;
                flushed = self.writer.flush(), if self.writer.is_pending() => {
                    flushed.map_err(Fault::from)
                }
                Some((delivery, said)) = self.storing.next() => {
                    self.conclude(&delivery, Fate::of(said));
                    Ok(())
                }
                frame = self.reader.next() => match frame {
                    Ok(frame) => self.hear(frame),
                    Err(fault) => Err(fault),
                },
                () = stop.cancelled(), if !self.closing => {
                    self.closing = true;
                    encode_cls(&mut self.writer.output);
                    Ok(())
                }
                () = sleep_until(wake_at) => self.wake(silent_at, silence_max),
            };
            if let Err(fault) = outcome {
                return End::Lost(fault);
            }
        }
    }

    fn wake(&mut self, silent_at: Instant, silence_max: std::time::Duration) -> Result<(), Fault> {
        let now = Instant::now();
        if now >= silent_at {
            return Err(Fault::Silent(silence_max));
        }
        if self.pace.resume_at().is_some_and(|at| now >= at) {
            self.pace.resume();
            self.set_ready();
        }
        Ok(())
    }

    fn hear(&mut self, frame: Frame) -> Result<(), Fault> {
        self.heard = Instant::now();
        match frame.kind {
            FrameType::Response if frame.is_heartbeat() => encode_nop(&mut self.writer.output),
            FrameType::Response if frame.body == OK_BODY => {
                if let Some(id) = self.beside.pop_front() {
                    encode_fin(id, &mut self.writer.output);
                }
            }
            // CLOSE_WAIT.
            FrameType::Response => {}
            FrameType::Error => return self.refused(nsqd::text(&frame.body)),
            FrameType::Message => {
                let delivery = Delivery::decode(frame.body)
                    .map_err(|bad| Fault::Unexpected(bad.to_string()))?;
                self.take(delivery);
            }
        }
        Ok(())
    }

    /// nsqd's error: all but three end the connection, and were caused by what was published last.
    fn refused(&mut self, text: String) -> Result<(), Fault> {
        if HARMLESS.iter().any(|code| text.starts_with(code)) {
            debug!(nsqd = %self.source.address, text, "inbox: nsqd has pushed it to somebody else");
            return Ok(());
        }
        if !self.beside.is_empty() {
            *self.manner = self.manner.after(&text);
        }
        Err(Fault::Refused(text))
    }

    /// Reads a message and begins to store it.
    fn take(&mut self, delivery: Delivery) {
        let source = self.source;
        let mut message = match api_v1::message_of_json(&source.intake, &delivery.body) {
            Ok(message) => message,
            Err(problem) => return self.conclude(&delivery, Fate::refused(problem)),
        };
        if message.id.is_none() {
            message.id = source.own_id(&delivery);
        }
        self.storing.push(Box::pin(async move {
            let said = match source.intake.accept(vec![message]).await {
                Ok(receipts) => {
                    let created = receipts.iter().filter(|receipt| receipt.created).count();
                    let accepted = source.metrics.accepted.get_or_create_owned(&DOOR);
                    accepted.inc_by(u64::try_from(created).unwrap_or(0));
                    Ok(())
                }
                Err(error) => Err(Problem::from(error)),
            };
            (delivery, said)
        }));
    }

    /// Answers nsqd for a message.
    fn conclude(&mut self, delivery: &Delivery, fate: Fate) {
        self.source.count(&fate);
        match fate {
            Fate::Stored => {
                encode_fin(delivery.id, &mut self.writer.output);
                self.pace.succeeded();
            }
            Fate::Later(code) => self.ask_again(delivery, code),
            Fate::Pause(code) => {
                self.ask_again(delivery, code);
                self.pace.failed(Instant::now());
            }
            Fate::Invalid(problem) => self.put_beside(delivery, &problem),
        }
        self.set_ready();
    }

    fn ask_again(&mut self, delivery: &Delivery, code: Code) {
        let again_ms = again_ms(delivery.attempts, fastrand::f64());
        encode_req(delivery.id, again_ms, &mut self.writer.output);
        debug!(id = %delivery.id, code = code.as_str(), "inbox: asked for it again");
    }

    /// Publishes what is not valid to the topic beside; FIN follows nsqd's OK.
    fn put_beside(&mut self, delivery: &Delivery, problem: &Problem) {
        let Problem { code, detail, .. } = problem;
        let code = Code::as_str(*code);
        let nsqd = &self.source.address;
        let message = delivery.id;
        let output = &mut self.writer.output;
        let beside = &self.source.config.invalid_topic;
        if let Some(body) = invalid::body(*self.manner, delivery, problem) {
            warn!(%nsqd, id = %message, code, detail, to = %beside, "inbox: not valid");
            encode_pub(beside, &body, output);
            self.beside.push_back(delivery.id);
        } else {
            warn!(%nsqd, id = %message, code, detail, "inbox: not valid, and cannot be put beside");
            encode_req(
                message,
                again_ms(delivery.attempts, fastrand::f64()),
                output,
            );
        }
    }

    fn set_ready(&mut self) {
        let ready = self.pace.ready();
        if ready != self.ready && !self.closing {
            self.ready = ready;
            encode_rdy(ready, &mut self.writer.output);
        }
    }
}
