//! The proxy before Redis with a planted defect: some inserts are replaced by a script that says what an insert
//! says, and stores nothing. So the reply is there before the write, which never comes.

use std::io::Error;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use redis::Script;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;

use super::{Ended, Shared};

/// One insert of so many is dropped.
const PLANT_EACH: usize = 10;
/// What answers in its place.
const SAYS_OK: &str = "local t = redis.call('TIME') \
    return {'ok', string.format('%.0f', t[1] * 1000000 + t[2])}";
/// Words of a request that are looked at: EVALSHA, the script.
const HEAD_WORDS: usize = 2;

/// The production script, of which only the hash is used.
static INSERT: LazyLock<Script> = LazyLock::new(|| {
    let (appear, insert) = (
        include_str!("../../../src/store/lua/appear.lua"),
        include_str!("../../../src/store/lua/insert.lua"),
    );
    Script::new(&format!("{appear}{insert}"))
});

/// Carries one connection.
pub(super) async fn pump(shared: &Shared, client: &mut TcpStream, server: &mut TcpStream) -> Ended {
    let (from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        let mut from = BufReader::new(from_client);
        let mut inserts = 0;
        loop {
            let (mut bytes, insert) = read_request(&mut from).await?;
            if insert {
                inserts += 1;
                if inserts % PLANT_EACH == PLANT_EACH / 2 {
                    shared.hits.fetch_add(1, Ordering::SeqCst);
                    let size = SAYS_OK.len();
                    bytes = format!("*3\r\n$4\r\nEVAL\r\n${size}\r\n{SAYS_OK}\r\n$1\r\n0\r\n")
                        .into_bytes();
                }
            }
            to_server.write_all(&bytes).await?;
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = tokio::io::copy(&mut from_server, &mut to_client) => ended.map(|_bytes| ()),
    }
}

/// One request as it came, and whether it runs the script of inserts.
async fn read_request(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    let words = read_number(from, &mut bytes).await?;
    let mut head: Vec<Vec<u8>> = Vec::new();
    for _ in 0..words {
        let size = read_number(from, &mut bytes).await?;
        let start = bytes.len();
        bytes.resize(start + size + 2, 0);
        from.read_exact(&mut bytes[start..]).await?;
        if head.len() < HEAD_WORDS {
            head.push(bytes[start..start + size].to_vec());
        }
    }
    let insert = head.first().is_some_and(|verb| verb == b"EVALSHA")
        && head
            .get(1)
            .is_some_and(|script| script == INSERT.get_hash().as_bytes());
    Ok((bytes, insert))
}

/// Reads `*3` or `$12`, which is appended to `bytes`.
async fn read_number(
    from: &mut (impl AsyncBufRead + Unpin),
    bytes: &mut Vec<u8>,
) -> std::io::Result<usize> {
    let start = bytes.len();
    from.read_until(b'\n', bytes).await?;
    let number = bytes
        .get(start + 1..)
        .and_then(|line| str::from_utf8(line).ok()?.trim_end().parse().ok());
    number.ok_or_else(|| Error::other("not a request of Redis"))
}
