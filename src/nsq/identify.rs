//! IDENTIFY: what a client asks for, what nsqd makes of it, and the answer. Pure.

use std::time::Duration;

use bytes::Bytes;

use super::NSQD_VERSION;
use super::error_code::{ErrorCode, Refusal};
use super::frame::OK_BODY;
use super::go_json::{BadJson, Value, key_is, read_object, unescape};

/// What an IDENTIFY says. A field that is absent or `null` is its zero, as in nsqd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "as the JSON has them")]
pub struct Identify {
    /// Who it is.
    pub client_id: String,
    /// Where it runs.
    pub hostname: String,
    /// What it is.
    pub user_agent: String,
    /// Whether it wants the negotiated values as JSON.
    pub feature_negotiation: bool,
    heartbeat_interval: i64,
    output_buffer_size: i64,
    output_buffer_timeout: i64,
    sample_rate: i32,
    msg_timeout: i64,
    tls: bool,
    snappy: bool,
    deflate: bool,
    deflate_level: i64,
}

/// What a door has to offer beside the plain protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is offered or not")]
pub struct Offers {
    /// TLS.
    pub tls: bool,
    /// Snappy.
    pub snappy: bool,
    /// Deflate.
    pub deflate: bool,
    /// Highest level of deflate, 1 to 9.
    pub max_deflate_level: u32,
    /// Whether AUTH must come before anything is published.
    pub auth_required: bool,
}

/// What becomes of a connection after the answer to IDENTIFY.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upgrades {
    /// It goes on in TLS.
    pub tls: bool,
    /// Then it goes on in snappy.
    pub snappy: bool,
    /// Or in deflate, with this level.
    pub deflate_level: Option<u32>,
}

/// What holds for a connection. A repeated IDENTIFY changes what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// `None`: the client wants no heartbeats.
    pub heartbeat_interval: Option<Duration>,
    heartbeat_interval_max: Duration,
    output_buffer_size: i64,
    output_buffer_timeout_ms: i64,
    /// Only repeated to the client, and shown.
    pub sample_rate: i32,
    msg_timeout_ms: i64,
}

// nsqd's defaults. Those of consumers are only repeated to the client.
const MAX_RDY_COUNT: i64 = 2500;
const MAX_MSG_TIMEOUT_MS: i64 = 900_000;
const MSG_TIMEOUT_MS: i64 = 60_000;
const MSG_TIMEOUT_MS_MIN: i64 = 1000;
const OUTPUT_BUFFER_SIZE: i64 = 16 * 1024;
const OUTPUT_BUFFER_SIZE_MIN: i64 = 64;
const OUTPUT_BUFFER_SIZE_MAX: i64 = 64 * 1024;
const OUTPUT_BUFFER_TIMEOUT_MS: i64 = 250;
const OUTPUT_BUFFER_TIMEOUT_MS_MIN: i64 = 25;
const OUTPUT_BUFFER_TIMEOUT_MS_MAX: i64 = 30_000;
const SAMPLE_RATE_MAX: i32 = 99;
const DEFLATE_LEVEL: u32 = 6;
const HEARTBEAT_INTERVAL_MS_MIN: i64 = 1000;

impl Identify {
    /// Reads the body of an IDENTIFY.
    pub fn decode(json: &[u8]) -> Result<Self, Refusal> {
        let mut identify = Self::default();
        read_object(json, |key, value| identify.set(key, value)).map_err(|_bad| {
            Refusal::new(
                ErrorCode::BadBody,
                "IDENTIFY failed to decode JSON body".as_bytes(),
            )
        })?;
        Ok(identify)
    }

    fn set(&mut self, key: &str, value: Value<'_>) -> Result<(), BadJson> {
        let mut texts = [
            ("client_id", &mut self.client_id),
            ("hostname", &mut self.hostname),
            ("user_agent", &mut self.user_agent),
        ];
        if let Some((_, field)) = texts.iter_mut().find(|(name, _)| key_is(key, name)) {
            return text(value, field);
        }
        let mut flags = [
            ("feature_negotiation", &mut self.feature_negotiation),
            ("tls_v1", &mut self.tls),
            ("deflate", &mut self.deflate),
            ("snappy", &mut self.snappy),
        ];
        if let Some((_, field)) = flags.iter_mut().find(|(name, _)| key_is(key, name)) {
            return flag(value, field);
        }
        let mut integers = [
            ("heartbeat_interval", &mut self.heartbeat_interval),
            ("output_buffer_size", &mut self.output_buffer_size),
            ("output_buffer_timeout", &mut self.output_buffer_timeout),
            ("msg_timeout", &mut self.msg_timeout),
            ("deflate_level", &mut self.deflate_level),
        ];
        if let Some((_, field)) = integers.iter_mut().find(|(name, _)| key_is(key, name)) {
            return integer(value, &mut **field);
        }
        if key_is(key, "sample_rate") {
            return integer(value, &mut self.sample_rate);
        }
        Ok(())
    }
}

fn text(value: Value<'_>, field: &mut String) -> Result<(), BadJson> {
    match value {
        Value::Null => Ok(()),
        Value::Text(raw) => {
            *field = unescape(raw);
            Ok(())
        }
        Value::Bool(_) | Value::Number(_) | Value::Composite => Err(BadJson),
    }
}

fn flag(value: Value<'_>, field: &mut bool) -> Result<(), BadJson> {
    match value {
        Value::Null => Ok(()),
        Value::Bool(value) => {
            *field = value;
            Ok(())
        }
        Value::Text(_) | Value::Number(_) | Value::Composite => Err(BadJson),
    }
}

/// An integer has no point and no exponent, also where its value would be whole.
fn integer<N: std::str::FromStr>(value: Value<'_>, field: &mut N) -> Result<(), BadJson> {
    match value {
        Value::Null => Ok(()),
        Value::Number(digits) => {
            *field = digits.parse().map_err(|_out_of_range| BadJson)?;
            Ok(())
        }
        Value::Text(_) | Value::Bool(_) | Value::Composite => Err(BadJson),
    }
}

impl Negotiated {
    /// What holds before IDENTIFY.
    pub fn new(heartbeat_interval: Duration, heartbeat_interval_max: Duration) -> Self {
        Self {
            heartbeat_interval: Some(heartbeat_interval),
            heartbeat_interval_max,
            output_buffer_size: OUTPUT_BUFFER_SIZE,
            output_buffer_timeout_ms: OUTPUT_BUFFER_TIMEOUT_MS,
            sample_rate: 0,
            msg_timeout_ms: MSG_TIMEOUT_MS,
        }
    }

    /// Takes over what a client asks, checked in nsqd's order. 0 leaves a value as it is.
    pub fn apply(&mut self, asked: &Identify) -> Result<(), Refusal> {
        let heartbeat_ms_max =
            i64::try_from(self.heartbeat_interval_max.as_millis()).unwrap_or(i64::MAX);
        match asked.heartbeat_interval {
            -1 => self.heartbeat_interval = None,
            0 => {}
            ms if (HEARTBEAT_INTERVAL_MS_MIN..=heartbeat_ms_max).contains(&ms) => {
                self.heartbeat_interval = Some(Duration::from_millis(ms.unsigned_abs()));
            }
            ms => return Err(invalid("heartbeat interval", ms)),
        }
        match asked.output_buffer_timeout {
            -1 => self.output_buffer_timeout_ms = 0,
            0 => {}
            ms @ OUTPUT_BUFFER_TIMEOUT_MS_MIN..=OUTPUT_BUFFER_TIMEOUT_MS_MAX => {
                self.output_buffer_timeout_ms = ms;
            }
            ms => return Err(invalid("output buffer timeout", ms)),
        }
        match asked.output_buffer_size {
            // nsqd then writes each frame by itself.
            -1 => {
                self.output_buffer_size = 1;
                self.output_buffer_timeout_ms = 0;
            }
            0 => {}
            size @ OUTPUT_BUFFER_SIZE_MIN..=OUTPUT_BUFFER_SIZE_MAX => {
                self.output_buffer_size = size;
            }
            size => return Err(invalid("output buffer size", size)),
        }
        match asked.sample_rate {
            rate @ 0..=SAMPLE_RATE_MAX => self.sample_rate = rate,
            rate => return Err(invalid("sample rate", i64::from(rate))),
        }
        match asked.msg_timeout {
            0 => {}
            ms @ MSG_TIMEOUT_MS_MIN..=MAX_MSG_TIMEOUT_MS => self.msg_timeout_ms = ms,
            ms => return Err(invalid("msg timeout", ms)),
        }
        Ok(())
    }

    /// The body of the response to `asked`, in nsqd's order of keys, and what follows it. An upgrade is
    /// granted when it is asked for and offered: clients act on the answer alone.
    pub fn response(&self, asked: &Identify, offers: Offers) -> Result<(Bytes, Upgrades), Refusal> {
        if !asked.feature_negotiation {
            return Ok((Bytes::from_static(OK_BODY), Upgrades::default()));
        }
        let tls = asked.tls && offers.tls;
        let snappy = asked.snappy && offers.snappy;
        let deflate = asked.deflate && offers.deflate;
        if snappy && deflate {
            let text = "cannot enable both deflate and snappy compression";
            return Err(Refusal::new(ErrorCode::IdentifyFailed, text));
        }
        let max = offers.max_deflate_level;
        let level = match u32::try_from(asked.deflate_level) {
            Ok(level @ 1..) if deflate => level.min(max),
            _ if deflate && asked.deflate_level > 0 => max,
            _ => DEFLATE_LEVEL.min(max),
        };
        let Self {
            output_buffer_size,
            output_buffer_timeout_ms,
            sample_rate,
            msg_timeout_ms,
            ..
        } = self;
        let auth_required = offers.auth_required;
        let body = Bytes::from(format!(
            "{{\"max_rdy_count\":{MAX_RDY_COUNT},\"version\":\"{NSQD_VERSION}\",\
             \"max_msg_timeout\":{MAX_MSG_TIMEOUT_MS},\"msg_timeout\":{msg_timeout_ms},\
             \"tls_v1\":{tls},\"deflate\":{deflate},\"deflate_level\":{level},\
             \"max_deflate_level\":{max},\"snappy\":{snappy},\
             \"sample_rate\":{sample_rate},\"auth_required\":{auth_required},\
             \"output_buffer_size\":{output_buffer_size},\
             \"output_buffer_timeout\":{output_buffer_timeout_ms}}}"
        ));
        let upgrades = Upgrades {
            tls,
            snappy,
            deflate_level: deflate.then_some(level),
        };
        Ok((body, upgrades))
    }
}

fn invalid(what: &str, value: i64) -> Refusal {
    let text = format!("IDENTIFY {what} ({value}) is invalid");
    Refusal::new(ErrorCode::BadBody, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(jsons: &[&str]) -> Result<Negotiated, Refusal> {
        let mut negotiated = Negotiated::new(Duration::from_secs(30), Duration::from_mins(1));
        for json in jsons {
            negotiated.apply(&Identify::decode(json.as_bytes())?)?;
        }
        Ok(negotiated)
    }

    #[test]
    fn the_heartbeat_is_the_clients_choice_within_limits() {
        let interval = |ms: i64| {
            let json = format!("{{\"heartbeat_interval\":{ms}}}");
            negotiate(&[&json]).map(|negotiated| negotiated.heartbeat_interval)
        };
        assert_eq!(interval(0), Ok(Some(Duration::from_secs(30))));
        assert_eq!(interval(-1), Ok(None));
        assert_eq!(interval(1000), Ok(Some(Duration::from_secs(1))));
        assert_eq!(interval(60_000), Ok(Some(Duration::from_mins(1))));
        for ms in [-2, 1, 999, 60_001, i64::MAX, i64::MIN] {
            let text = format!("IDENTIFY heartbeat interval ({ms}) is invalid");
            assert_eq!(interval(ms), Err(Refusal::new(ErrorCode::BadBody, text)));
        }
    }

    #[test]
    fn a_repeated_identify_keeps_what_it_does_not_name() {
        let negotiated = negotiate(&[
            r#"{"heartbeat_interval":-1,"output_buffer_size":100,"sample_rate":5}"#,
            r#"{"msg_timeout":5000}"#,
        ]);
        let negotiated = negotiated.unwrap();
        assert_eq!(negotiated.heartbeat_interval, None);
        assert_eq!(negotiated.output_buffer_size, 100);
        assert_eq!(negotiated.sample_rate, 0);
        assert_eq!(negotiated.msg_timeout_ms, 5000);
    }
}
