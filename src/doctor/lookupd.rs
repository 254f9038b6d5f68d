//! One nsqlookupd: whether it answers, and which nsqds it names.

use std::time::Duration;

use serde::Deserialize;

use crate::finding::{Finding, Level};
use crate::http_client::{Answer, Bounds, HttpClient};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer, in bytes: thousands of nsqds with hundreds of topics.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Answers without the envelope that nsqlookupds before 1.0 put around them.
const ACCEPT: &str = "application/vnd.nsq; version=1.0";

#[derive(Debug, Deserialize)]
struct Nodes {
    producers: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    broadcast_address: String,
    tcp_port: u16,
}

/// Asks for its nodes; answers their TCP addresses and what was found.
pub(super) async fn examine(address: &str, connect: Duration) -> (Vec<String>, Finding) {
    let nodes = match nodes(address, connect).await {
        Ok(nodes) => nodes,
        Err(why) => {
            let finding = Finding::new(
                Level::Error,
                "reachable",
                format!("no answer from {address}: {why}"),
                "the nsqds that only it knows get nothing",
                "start it, or set `lookupd_http_address` to its HTTP address",
            );
            return (Vec::new(), finding);
        }
    };
    let finding = if nodes.is_empty() {
        Finding::new(
            Level::Warning,
            "nodes",
            "it answers, and knows no nsqd",
            "nothing is delivered by way of it",
            "start the nsqds with --lookupd-tcp-address, its TCP address",
        )
    } else {
        Finding::ok(
            "nodes",
            format!("it answers, and names {}", nodes.join(", ")),
        )
    };
    let count = nodes.len();
    (nodes, finding.number("nsqds", count))
}

async fn nodes(address: &str, connect: Duration) -> Result<Vec<String>, String> {
    let client = HttpClient::new(
        Bounds {
            connect,
            request: ANSWER_TIMEOUT,
            body_bytes_max: ANSWER_BYTES_MAX,
        },
        None,
    );
    let client = client.map_err(|error| error.to_string())?;
    let url = format!("http://{address}/nodes");
    let answer = client.get(&url, &[], ACCEPT).await;
    let body = answer.and_then(Answer::success);
    let body = body.map_err(|error| error.to_string())?;
    let nodes: Nodes = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let of = |node: &Node| {
        let host = &node.broadcast_address;
        if host.contains(':') {
            format!("[{host}]:{}", node.tcp_port)
        } else {
            format!("{host}:{}", node.tcp_port)
        }
    };
    Ok(nodes.producers.iter().map(of).collect())
}
