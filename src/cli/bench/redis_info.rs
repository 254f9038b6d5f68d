//! What Redis says of itself, and asking it to rewrite its append-only file. Two inline commands: a client
//! library is the store's alone.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::cli::Failure;

/// How long Redis may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Redis's `INFO`, field by field.
#[derive(Debug, Clone, Default)]
pub(super) struct Info(HashMap<String, String>);

impl Info {
    /// A whole number; 0 when there is none of this name.
    pub(super) fn number(&self, name: &str) -> u64 {
        self.0
            .get(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    }

    /// A field as it is.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(
            fields
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }
}

/// Asks the Redis at `address`.
pub(super) fn info(address: &str) -> Result<Info, Failure> {
    ask(address, "INFO\r\n")
        .map(|text| Info::parse(&text))
        .map_err(|error| Failure::Failed(format!("redis at {address} does not answer: {error}")))
}

/// Begins a rewrite of the append-only file, unless one is under way: Redis also begins them by itself.
pub(super) fn rewrite(address: &str) -> Result<(), Failure> {
    match ask(address, "BGREWRITEAOF\r\n") {
        Err(error) if !error.to_string().contains("already in progress") => Err(Failure::Failed(
            format!("redis at {address} does not rewrite its file: {error}"),
        )),
        _ => Ok(()),
    }
}

fn ask(address: &str, command: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(command.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.trim_end();
    if let Some(status) = line.strip_prefix('+') {
        return Ok(status.to_owned());
    }
    let len = line.strip_prefix('$').and_then(|len| len.parse().ok());
    let len: usize = len.ok_or_else(|| io::Error::other(line.to_owned()))?;
    let mut text = vec![0; len];
    reader.read_exact(&mut text)?;
    String::from_utf8(text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::Info;

    #[test]
    fn fields_are_found() {
        let info = Info::parse("# Memory\r\nused_memory:12\r\nredis_version:7.0.15\r\n");
        assert_eq!(info.number("used_memory"), 12);
        assert_eq!(info.number("nothing"), 0);
        assert_eq!(info.text("redis_version"), "7.0.15");
    }
}
