//! What the fuzz targets need of the HTTP doors: their pure readers, in one call each. Only built for
//! them.

use axum::http::Uri;
use bytes::Bytes;

use crate::ingest::http::{Query, go_int};
use crate::message::{Delay, Message, UnixMs};

use super::draft;
use super::json::{Node, Spot};
use super::moment::Limits;

/// The moment at which everything is asked.
pub const NOW: UnixMs = UnixMs(1_800_000_000_000);

fn limits(delay_max: Delay) -> Limits {
    Limits {
        delay_max,
        now: NOW,
    }
}

/// A create with a JSON body; `None`: refused.
pub fn create_of_json(body: &[u8], size_max: usize, delay_max: Delay) -> Option<Message> {
    let request = Bytes::copy_from_slice(body);
    let node = Node::parse(&request).ok()?;
    draft::of_json(node, Spot::Top, &request, limits(delay_max), size_max).ok()
}

/// A create with a raw body, which is not read here; `None`: refused.
pub fn create_of_query(query: &[u8], delay_max: Delay) -> Option<Message> {
    let target = [b"/v1/messages?".as_slice(), query].concat();
    let uri = Uri::try_from(target).ok()?;
    let params = draft::raw_params(&uri).ok()?;
    draft::of_query(&params, limits(delay_max)).ok()
}

/// The query of nsqd's `/pub`; its delay.
pub fn pub_of_query(query: &[u8]) -> Option<i64> {
    let query = Query::parse(query).ok()?;
    query.first("defer").and_then(go_int)
}
