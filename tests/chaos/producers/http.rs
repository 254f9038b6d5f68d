//! Producers over HTTP: nsqd's `/pub` and `/mpub`, and JSON one by one and in batches.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Came, Kind, Producer};
use crate::answers;
use crate::event::{Asked, Number, Outcome, body};
use crate::support::http::{Answer, Http};

/// Most messages of one batch.
const BATCH_MAX: usize = 10;
/// How often a publish with an id is tried again.
const TRIES_MAX: usize = 6;

/// The messages of one request.
struct Sent {
    path: String,
    json: bool,
    bytes: Vec<u8>,
    ids: Vec<Number>,
    topic: &'static str,
    delay_ms: u64,
    has_id: bool,
    /// Each message has an answer of its own.
    one_by_one: bool,
}

impl Producer<'_> {
    pub(super) fn run_http(&mut self) {
        let mut connection = None;
        while self.rest() {
            let request = if matches!(self.kind, Kind::Http) {
                self.nsqd_request()
            } else {
                self.json_request()
            };
            for _ in 0..TRIES_MAX {
                let outcome = self.send(&mut connection, &request);
                let open = matches!(outcome, Outcome::Unknown | Outcome::Fail);
                if !request.has_id || !open || !self.rest() {
                    break;
                }
            }
        }
    }

    /// One request over the connection that is there, or a new one.
    pub(super) fn exchange(
        &mut self,
        connection: &mut Option<Http>,
        method: &str,
        path: &str,
        json: bool,
        bytes: &[u8],
    ) -> Option<std::io::Result<Answer>> {
        if connection.is_none() {
            let (_, http) = self.field.doors.get(self.instance)?;
            *connection = Http::connect(http).ok();
        }
        let Some(http) = connection else {
            self.move_on();
            return None;
        };
        let headers: &[(&str, &str)] = if json {
            &[("Content-Type", "application/json")]
        } else {
            &[]
        };
        let answer = http.request(method, path, headers, bytes);
        let closing = |a: &Answer| a.header("connection") == Some("close");
        if answer.as_ref().map_or(true, closing) {
            *connection = None;
        }
        Some(answer)
    }

    fn send(&mut self, connection: &mut Option<Http>, request: &Sent) -> Outcome {
        let t_start = self.now();
        let answer = self.exchange(
            connection,
            "POST",
            &request.path,
            request.json,
            &request.bytes,
        );
        let Some(answer) = answer else {
            return Outcome::Fail;
        };
        let came = |ids: Vec<Number>, (outcome, words)| Came {
            op: Asked::Publish,
            ids,
            topic: request.topic,
            delay_ms: request.delay_ms,
            t_start,
            outcome,
            words,
        };
        let whole = match &answer {
            Ok(answer) => answers::of_answer(answer),
            Err(error) => (Outcome::Unknown, error.to_string()),
        };
        let outcome = whole.0;
        let results = answer
            .ok()
            .filter(|a| request.one_by_one && a.status == 200);
        if let Some(results) = results.map(|a| a.json()["results"].clone()) {
            let each = request.ids.iter().enumerate().map(|(n, id)| {
                let result = &results[n];
                let status = u16::try_from(result["status"].as_u64().unwrap_or(0)).unwrap();
                let problem = &result["problem"];
                came(
                    vec![*id],
                    answers::of_status(status, problem, &problem.to_string()),
                )
            });
            self.record(each.collect());
        } else if request.one_by_one {
            let each = request.ids.iter().map(|id| came(vec![*id], whole.clone()));
            self.record(each.collect());
        } else {
            self.record(vec![came(request.ids.clone(), whole)]);
        }
        if outcome != Outcome::Ok {
            self.move_on();
            *connection = None;
        }
        outcome
    }

    /// `/pub` or `/mpub`.
    fn nsqd_request(&mut self) -> Sent {
        let (topic, delay_ms) = (self.topic(), self.delay_ms());
        let choice = self.random.u32(0..3);
        let count = if choice == 0 {
            1
        } else {
            self.random.usize(2..=BATCH_MAX)
        };
        // Lines of text hold text alone.
        let any = choice != 1;
        let ids: Vec<Number> = (0..count)
            .map(|_| {
                let text = !any || self.random.bool();
                self.field.next(text)
            })
            .collect();
        let bodies: Vec<Vec<u8>> = ids.iter().map(|id| body(*id)).collect();
        let has_id = choice == 0 && self.random.bool();
        let (path, bytes) = match choice {
            0 => {
                let id = if has_id {
                    format!("&id=chaos-{}", ids[0])
                } else {
                    String::new()
                };
                (
                    format!("/pub?topic={topic}&defer={delay_ms}{id}"),
                    bodies[0].clone(),
                )
            }
            1 => (
                format!("/mpub?topic={topic}&defer={delay_ms}"),
                bodies.join(&b'\n'),
            ),
            _ => {
                let mut bytes = u32::try_from(count).unwrap().to_be_bytes().to_vec();
                for body in &bodies {
                    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
                    bytes.extend(body);
                }
                (
                    format!("/mpub?topic={topic}&defer={delay_ms}&binary=true"),
                    bytes,
                )
            }
        };
        Sent {
            path,
            json: false,
            bytes,
            ids,
            topic,
            delay_ms,
            has_id,
            one_by_one: false,
        }
    }

    /// `/v1/messages`, one or a batch.
    fn json_request(&mut self) -> Sent {
        let (topic, delay_ms) = (self.topic(), self.delay_ms());
        let one_by_one = self.random.u32(0..3) == 0;
        let count = if one_by_one {
            self.random.usize(2..=BATCH_MAX)
        } else {
            1
        };
        let has_id = self.random.bool();
        let numbers: Vec<Number> = (0..count)
            .map(|_| {
                let text = self.random.bool();
                self.field.next(text)
            })
            .collect();
        let message = |number: &Number| draft(*number, topic, delay_ms, has_id);
        let (path, value) = if one_by_one {
            let messages: Vec<Value> = numbers.iter().map(message).collect();
            ("/v1/messages:batch", json!({ "messages": messages }))
        } else {
            ("/v1/messages", message(&numbers[0]))
        };
        Sent {
            path: path.to_owned(),
            json: true,
            bytes: value.to_string().into_bytes(),
            ids: numbers,
            topic,
            delay_ms,
            // The items of a batch are answered one by one: the whole is not tried again.
            has_id: has_id && !one_by_one,
            one_by_one,
        }
    }
}

/// A create.
pub(crate) fn draft(number: Number, topic: &str, delay_ms: u64, has_id: bool) -> Value {
    let body = body(number);
    let mut draft = json!({"topic": topic, "delay_ms": delay_ms});
    match String::from_utf8(body) {
        Ok(text) if number.is_multiple_of(2) => draft["body"] = text.into(),
        Ok(text) => draft["body_base64"] = STANDARD.encode(text).into(),
        Err(bytes) => draft["body_base64"] = STANDARD.encode(bytes.as_bytes()).into(),
    }
    if has_id {
        draft["id"] = format!("chaos-{number}").into();
    }
    draft
}
