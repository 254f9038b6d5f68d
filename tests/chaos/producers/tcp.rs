//! Producers over TCP: windows of pipelined PUB, DPUB, MPUB and MDPUB; with ids, tried again when the outcome is
//! unknown.

use super::{Came, Producer};
use crate::answers;
use crate::event::{Asked, Number, Outcome, body};
use crate::support::producer as v2;

/// Most commands that are sent before their answers are read.
const WINDOW_MAX: usize = 8;
/// Most messages of one batch.
const BATCH_MAX: usize = 12;
/// How often a publish with an id is tried again.
const TRIES_MAX: usize = 6;

/// A command and what it publishes.
struct Command {
    bytes: Vec<u8>,
    ids: Vec<Number>,
    topic: &'static str,
    delay_ms: u64,
    has_id: bool,
    tries: usize,
}

impl Producer<'_> {
    pub(super) fn run_tcp(&mut self) {
        let mut connection = None;
        let mut again: Vec<Command> = Vec::new();
        while self.rest() {
            let mut window = std::mem::take(&mut again);
            for _ in 0..self.random.usize(1..=WINDOW_MAX) {
                window.push(self.command());
            }
            let Some(open) = connection.take().or_else(|| self.connect_tcp()) else {
                // Nobody has heard of them; those of an earlier window are tried again.
                window.retain(|command| command.tries > 0);
                again = window;
                self.move_on();
                continue;
            };
            connection = self.play(open, window, &mut again);
            if connection.is_none() {
                self.move_on();
            }
        }
    }

    fn connect_tcp(&self) -> Option<v2::Producer> {
        let (tcp, _) = self.field.doors.get(self.instance)?;
        v2::Producer::try_connect(tcp).ok()
    }

    fn command(&mut self) -> Command {
        let (topic, delay_ms) = (self.topic(), self.delay_ms());
        let count = self.random.usize(2..=BATCH_MAX);
        let mut ids = vec![self.number()];
        let choice = self.random.u32(0..100);
        let has_id = (10..35).contains(&choice);
        if choice >= 80 {
            ids.extend((1..count).map(|_| self.number()));
        }
        let bodies: Vec<Vec<u8>> = ids.iter().map(|id| body(*id)).collect();
        let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let (bytes, delay_ms) = match choice {
            0..10 => (v2::publish(topic, slices[0]), 0),
            10..35 => {
                let id = format!("chaos-{}", ids[0]);
                (v2::dpub_with_id(topic, delay_ms, &id, slices[0]), delay_ms)
            }
            35..80 => (v2::dpub(topic, delay_ms, slices[0]), delay_ms),
            80..86 => (v2::mpub(topic, &slices), 0),
            _ => (v2::mdpub(topic, delay_ms, &slices), delay_ms),
        };
        Command {
            bytes,
            ids,
            topic,
            delay_ms,
            has_id,
            tries: 0,
        }
    }

    fn number(&mut self) -> Number {
        let text = self.random.bool();
        self.field.next(text)
    }

    /// Sends the window and reads its answers. The connection comes back if it is still good.
    fn play(
        &mut self,
        mut connection: v2::Producer,
        window: Vec<Command>,
        again: &mut Vec<Command>,
    ) -> Option<v2::Producer> {
        let t_start = self.now();
        let all: Vec<u8> = window
            .iter()
            .flat_map(|c| c.bytes.iter().copied())
            .collect();
        // Also when it breaks: some of it may have arrived.
        let mut good = connection.send(&all).is_ok();
        for mut command in window {
            let answer = if good { connection.read().ok() } else { None };
            let (outcome, words) = answer.as_ref().map_or(
                // Every error is fatal, and says nothing of what was sent behind it.
                (Outcome::Unknown, String::new()),
                answers::of_frame,
            );
            good &= outcome == Outcome::Ok;
            self.record(vec![Came {
                op: Asked::Publish,
                ids: command.ids.clone(),
                topic: command.topic,
                delay_ms: command.delay_ms,
                t_start,
                outcome,
                words,
            }]);
            command.tries += 1;
            let open = matches!(outcome, Outcome::Unknown | Outcome::Fail);
            if command.has_id && open && command.tries < TRIES_MAX {
                again.push(command);
            }
        }
        good.then_some(connection)
    }
}
