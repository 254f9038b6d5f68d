//! An nsqd's limits, found by asking for too much: it names the limit when it refuses, before it makes
//! a topic or takes a message. Each question has a connection of its own, which nsqd closes.

use std::time::Duration;

use bytes::BufMut as _;
use tokio::time::timeout;

use crate::nsqd::{Fault, Wishes, dial};

/// How long an answer may take. A question that nsqd finds harmless has none: it waits for more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest delay that does not overflow nsqd's arithmetic, in ms.
const DELAY_MS_ASKED: u64 = 9_223_372_036_854;

/// What an nsqd allows. `None`: it did not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// `--max-msg-size`, in bytes.
    pub(super) msg_size: Option<u64>,
    /// `--max-body-size`, in bytes.
    pub(super) body_size: Option<u64>,
    /// `--max-req-timeout`, in ms: the longest delay of a DPUB.
    pub(super) delay_ms: Option<u64>,
}

/// Asks for each limit.
pub(super) async fn ask(address: &str, wishes: &Wishes) -> Result<Limits, Fault> {
    let too_long = u32::MAX >> 1;
    let with_size = |line: &str| {
        let mut question = line.as_bytes().to_vec();
        question.put_u32(too_long);
        question
    };
    let topic = "nsqdelayd_doctor";
    let message = refusal(address, wishes, &with_size(&format!("PUB {topic}\n"))).await?;
    let body = refusal(address, wishes, &with_size("IDENTIFY\n")).await?;
    let delay = format!("DPUB {topic} {DELAY_MS_ASKED}\n");
    let delay = refusal(address, wishes, delay.as_bytes()).await?;
    Ok(Limits {
        msg_size: number_after(&message, "> "),
        body_size: number_after(&body, "> "),
        delay_ms: number_after(&delay, "out of range 0-"),
    })
}

/// Whether the address is one of an nsqdelayd: it knows a command that nsqd does not.
pub(super) async fn is_nsqdelayd(address: &str, wishes: &Wishes) -> Result<bool, Fault> {
    let question = format!("CANCEL nsqdelayd-doctor-{:016x}\n", fastrand::u64(..));
    let said = refusal(address, wishes, question.as_bytes()).await?;
    Ok(said.starts_with("E_NOT_FOUND"))
}

/// What nsqd answers to `question`; empty if it waits for more.
async fn refusal(address: &str, wishes: &Wishes, question: &[u8]) -> Result<String, Fault> {
    let (mut reader, mut writer, _) = dial(address, wishes).await?;
    writer.output.put_slice(question);
    writer.flush().await?;
    match timeout(ANSWER_TIMEOUT, reader.answer()).await {
        Ok(Ok(_)) | Err(_) => Ok(String::new()),
        // IDENTIFY is answered without TLS, and nothing else is.
        Ok(Err(Fault::Refused(text))) if !text.contains("TLS required") => Ok(text),
        Ok(Err(fault)) => Err(fault),
    }
}

fn number_after(text: &str, mark: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(mark)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit());
    rest.get(..digits.unwrap_or(rest.len()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_refusals() {
        let message = "E_BAD_MESSAGE PUB message too big 2147483647 > 1048576";
        assert_eq!(number_after(message, "> "), Some(1_048_576));
        let delay = "E_INVALID DPUB timeout 9223372036854 out of range 0-3600000";
        assert_eq!(number_after(delay, "out of range 0-"), Some(3_600_000));
        assert_eq!(number_after("E_INVALID cannot PUB", "> "), None);
        assert_eq!(number_after("", "> "), None);
    }
}
