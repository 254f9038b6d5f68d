//! nsqd's HTTP API at our door.

mod guarded;
mod oracle;
mod ours;

use crate::support::http_door::request;

fn post(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    request("POST", path, "", body)
}

fn mpub(count: i32, bodies: &[&[u8]]) -> Vec<u8> {
    let mut out = count.to_be_bytes().to_vec();
    for body in bodies {
        out.extend(i32::try_from(body.len()).unwrap().to_be_bytes());
        out.extend(*body);
    }
    out
}
