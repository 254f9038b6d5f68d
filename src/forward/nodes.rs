//! PURE. What nsqlookupd answers to `/nodes`, and what several of them say together. Remembers the
//! last answer of each, so that one that is away changes nothing.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

/// Most nsqds that are taken from one answer.
const NODES_MAX: usize = 4096;
/// Answers in a row that leave an nsqd out before it counts as gone. An nsqlookupd that has just
/// started knows nobody until the nsqds have registered again.
const GONE_AFTER: u32 = 2;

/// What is known of an nsqd's topics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Topics {
    /// Those that it has.
    pub(super) carried: HashSet<String>,
    /// Those that it is told to lose: nobody is to find them there.
    pub(super) tombstoned: HashSet<String>,
}

/// nsqds by `host:port` of their TCP doors.
pub(super) type Nodes = BTreeMap<String, Topics>;

/// The body is not an answer to `/nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an answer of nsqlookupd")]
pub(super) struct BadAnswer;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    producers: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct Producer {
    broadcast_address: String,
    tcp_port: u16,
    #[serde(default)]
    topics: Option<Vec<String>>,
    #[serde(default)]
    tombstones: Option<Vec<bool>>,
}

/// Reads the body of an answer. A producer that cannot be read, or that nobody can connect to, is
/// left out.
pub(super) fn parse(body: &[u8]) -> Result<Nodes, BadAnswer> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_not_json| BadAnswer)?;
    let producers = answer.producers.ok_or(BadAnswer)?;
    let mut nodes = Nodes::new();
    for producer in producers.into_iter().take(NODES_MAX) {
        let Ok(producer) = serde_json::from_value::<Producer>(producer) else {
            continue;
        };
        let Some(address) = address(&producer) else {
            continue;
        };
        let topics = nodes.entry(address).or_default();
        let tombstones = producer.tombstones.unwrap_or_default();
        for (index, topic) in producer.topics.unwrap_or_default().into_iter().enumerate() {
            if tombstones.get(index).copied().unwrap_or(false) {
                topics.tombstoned.insert(topic);
            } else {
                topics.carried.insert(topic);
            }
        }
    }
    Ok(nodes)
}

fn address(producer: &Producer) -> Option<String> {
    let host = producer.broadcast_address.as_str();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(legal) || producer.tcp_port == 0 {
        return None;
    }
    if host.contains(':') {
        return Some(format!("[{host}]:{}", producer.tcp_port));
    }
    Some(format!("{host}:{}", producer.tcp_port))
}

/// An nsqd of one nsqlookupd's answers.
#[derive(Debug, Clone)]
struct Seen {
    topics: Topics,
    /// Answers in a row that left it out.
    missed: u32,
}

/// The last answers of all nsqlookupds.
#[derive(Debug)]
pub(super) struct Directory {
    answers: Vec<BTreeMap<String, Seen>>,
}

impl Directory {
    /// Of so many, none of which has answered.
    pub(super) fn new(lookupds: usize) -> Self {
        Self {
            answers: vec![BTreeMap::new(); lookupds],
        }
    }

    /// Takes in what one of them says now.
    pub(super) fn answered(&mut self, lookupd: usize, nodes: Nodes) {
        let Some(answer) = self.answers.get_mut(lookupd) else {
            return;
        };
        answer.retain(|address, seen| {
            seen.missed += 1;
            seen.missed < GONE_AFTER || nodes.contains_key(address)
        });
        for (address, topics) in nodes {
            answer.insert(address, Seen { topics, missed: 0 });
        }
    }

    /// What they say together. A topic is tombstoned on an nsqd as soon as one says so.
    pub(super) fn nodes(&self) -> Nodes {
        let mut all = Nodes::new();
        for (address, seen) in self.answers.iter().flatten() {
            let topics = all.entry(address.clone()).or_default();
            topics.carried.extend(seen.topics.carried.iter().cloned());
            topics
                .tombstoned
                .extend(seen.topics.tombstoned.iter().cloned());
        }
        for topics in all.values_mut() {
            topics
                .carried
                .retain(|topic| !topics.tombstoned.contains(topic));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topics(carried: &[&str], tombstoned: &[&str]) -> Topics {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Topics {
            carried: set(carried),
            tombstoned: set(tombstoned),
        }
    }

    fn nodes(of: &[(&str, Topics)]) -> Nodes {
        of.iter()
            .map(|(address, topics)| ((*address).to_owned(), topics.clone()))
            .collect()
    }

    #[test]
    fn an_answer_of_nsqlookupd_is_read() {
        let body = br#"{"producers":[
            {"remote_address":"10.0.0.1:5","hostname":"h","broadcast_address":"n1","tcp_port":4150,
             "http_port":4151,"version":"1.3.0","tombstones":[false,true],"topics":["a","b"]},
            {"broadcast_address":"fd00::1","tcp_port":4150,"tombstones":[],"topics":null},
            {"broadcast_address":"","tcp_port":4150},
            {"broadcast_address":"n2","tcp_port":0},
            {"broadcast_address":"n3 x","tcp_port":1},
            {"broadcast_address":"n4","tcp_port":70000},
            7
        ]}"#;
        let expected = nodes(&[
            ("n1:4150", topics(&["a"], &["b"])),
            ("[fd00::1]:4150", Topics::default()),
        ]);
        assert_eq!(parse(body), Ok(expected));
        assert_eq!(parse(br#"{"producers":[]}"#), Ok(Nodes::new()));
        for bad in ["", "[]", "{}", "{\"producers\":null}", "<html>"] {
            assert_eq!(parse(bad.as_bytes()), Err(BadAnswer), "{bad}");
        }
    }

    #[test]
    fn what_several_say_is_put_together_and_a_tombstone_wins() {
        let mut directory = Directory::new(2);
        directory.answered(0, nodes(&[("n1:1", topics(&["a", "b"], &[]))]));
        directory.answered(
            1,
            nodes(&[
                ("n1:1", topics(&["c"], &["b"])),
                ("n2:1", topics(&["a"], &[])),
            ]),
        );
        let expected = nodes(&[
            ("n1:1", topics(&["a", "c"], &["b"])),
            ("n2:1", topics(&["a"], &[])),
        ]);
        assert_eq!(directory.nodes(), expected);
    }

    #[test]
    fn what_one_answer_leaves_out_stays_and_what_two_leave_out_is_gone() {
        let mut directory = Directory::new(1);
        let both = nodes(&[("n1:1", topics(&["a"], &[])), ("n2:1", topics(&["a"], &[]))]);
        let one = nodes(&[("n1:1", topics(&["b"], &[]))]);
        directory.answered(0, both.clone());
        directory.answered(0, one.clone());
        assert_eq!(directory.nodes().len(), 2);
        directory.answered(0, both);
        directory.answered(0, one.clone());
        assert_eq!(directory.nodes().len(), 2, "seen again in between");
        directory.answered(0, one.clone());
        assert_eq!(directory.nodes(), one);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_fall(body: Vec<u8>, text in ".{0,100}") {
            let _answer = parse(&body);
            let _answer = parse(format!(r#"{{"producers":[{{"broadcast_address":"{text}","tcp_port":1}}]}}"#).as_bytes());
        }
    }
}
