//! PURE. What nsqd's answer to a command says about the messages in it.

/// What became of the messages of one batch. All of them: nsqd takes a command whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// nsqd answered OK.
    Accepted,
    /// They certainly did not reach nsqd's queue.
    NotSent,
    /// nsqd may or may not have them.
    Unknown,
    /// nsqd refused the command that they were in.
    Refused(Refusal),
}

/// nsqd's refusal of a command, for what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// nsqd's code and text.
    pub(super) text: String,
    /// The topic is at fault: any message to it would be refused.
    pub(super) whole_topic: bool,
    /// Nothing else was in the command: the fault is in this batch.
    pub(super) alone: bool,
}

/// What an error frame says. nsqd closes the connection after each, and executes nothing that came
/// behind the command that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A message in the command is at fault.
    Message,
    /// The topic is at fault, or we may not publish to it.
    Topic,
    /// Nothing was taken, and no message is at fault: this nsqd does not take commands from us now.
    Unusable,
    /// nsqd failed half way: some of it may have been taken.
    Doubtful,
}

/// Reads an error frame's text, `E_CODE description`.
pub(super) fn meaning(text: &str) -> Meaning {
    // nsqd missed its own read deadline or the stream was cut: what was to be read was not taken.
    if text.contains("failed to read") || text.contains("in current state") {
        return Meaning::Unusable;
    }
    match text.split(' ').next().unwrap_or_default() {
        "E_BAD_MESSAGE" | "E_BAD_BODY" | "E_INVALID" => Meaning::Message,
        "E_BAD_TOPIC" | "E_UNAUTHORIZED" => Meaning::Topic,
        "E_AUTH_FIRST" | "E_AUTH_FAILED" | "E_BAD_PROTOCOL" => Meaning::Unusable,
        // E_PUB_FAILED and E_MPUB_FAILED: the topic is closing, or its disk queue took only some. A
        // code that we do not know: nothing is certain.
        _ => Meaning::Doubtful,
    }
}

/// The limit in `E_BAD_MESSAGE PUB message too big 2000 > 1024`.
pub(super) fn msg_size_limit(text: &str) -> Option<usize> {
    let (_, sizes) = text.split_once("message too big ")?;
    sizes.split_once(" > ")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_the_limit_of_a_message() {
        let limit = |text| msg_size_limit(text);
        assert_eq!(
            limit("E_BAD_MESSAGE MPUB message too big 2000 > 1024"),
            Some(1024)
        );
        assert_eq!(limit("E_BAD_BODY MPUB body too big 9 > 8"), None);
        assert_eq!(limit("E_BAD_MESSAGE PUB message too big"), None);
        assert_eq!(limit("E_BAD_MESSAGE PUB message too big 1 > x"), None);
    }

    #[test]
    fn errors_of_nsqd_are_understood() {
        let cases = [
            (
                "E_BAD_MESSAGE MPUB message too big 2000 > 1024",
                Meaning::Message,
            ),
            ("E_BAD_BODY MPUB body too big 9 > 8", Meaning::Message),
            (
                "E_BAD_MESSAGE PUB invalid message body size 0",
                Meaning::Message,
            ),
            (
                "E_BAD_TOPIC E_BAD_TOPIC MPUB topic name \"x y\" is not valid",
                Meaning::Topic,
            ),
            (
                "E_UNAUTHORIZED AUTH failed for PUB on \"t\" \"\"",
                Meaning::Topic,
            ),
            (
                "E_BAD_MESSAGE PUB failed to read message body",
                Meaning::Unusable,
            ),
            (
                "E_INVALID cannot PUB in current state (TLS required)",
                Meaning::Unusable,
            ),
            ("E_AUTH_FIRST AUTH required before PUB", Meaning::Unusable),
            ("E_MPUB_FAILED MPUB failed exiting", Meaning::Doubtful),
            ("E_PUB_FAILED PUB failed exiting", Meaning::Doubtful),
            ("E_NEW_IN_2030", Meaning::Doubtful),
            ("", Meaning::Doubtful),
        ];
        for (text, expected) in cases {
            assert_eq!(meaning(text), expected, "{text}");
        }
    }
}
