//! A small HTTP client that blocks: what it sends is what the test wrote.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take before the test is given up.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// One answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// Header names in lower case, and values.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, whole.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.status, self.text()))
    }

    /// The first header with this name (in lower case).
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A connection that is kept for many requests, one after the other.
#[derive(Debug)]
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    /// Connects to `host:port`.
    pub(crate) fn connect(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends one request and reads its answer. An error says nothing about what was done.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.get_mut().write_all(&bytes)?;
        self.read_answer()
    }

    /// Sends JSON.
    pub(crate) fn json(
        &mut self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> std::io::Result<Answer> {
        let headers = [("Content-Type", "application/json")];
        self.request(method, path, &headers, body.to_string().as_bytes())
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Closes the sending half.
    pub(crate) fn half_close(&self) {
        // The server may have reset the connection already.
        drop(self.stream.get_ref().shutdown(Shutdown::Write));
    }

    /// Reads one answer.
    pub(crate) fn read_answer(&mut self) -> std::io::Result<Answer> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let mut answer = Answer {
            status: status.ok_or_else(|| bad(format!("not a status line: {status_line:?}")))?,
            ..Answer::default()
        };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            let value = value.trim().to_owned();
            answer.headers.push((name.to_ascii_lowercase(), value));
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            self.read_chunks(&mut answer.body)?;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|error| bad(format!("{error}")))?;
            answer.body = vec![0; length];
            self.stream.read_exact(&mut answer.body)?;
        } else if answer.status != 204 && answer.status != 304 {
            self.stream.read_to_end(&mut answer.body)?;
        }
        Ok(answer)
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> std::io::Result<()> {
        loop {
            let size = self.line()?;
            let size = usize::from_str_radix(&size, 16).map_err(|error| bad(format!("{error}")))?;
            let start = body.len();
            body.resize(start + size, 0);
            self.stream.read_exact(&mut body[start..])?;
            self.line()?;
            if size == 0 {
                return Ok(());
            }
        }
    }

    /// One line without its end.
    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn bad(what: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

/// One GET on its own connection.
#[track_caller]
pub(crate) fn get(address: &str, path: &str) -> Answer {
    once(address, "GET", path, b"")
}

/// One POST on its own connection.
#[track_caller]
pub(crate) fn post(address: &str, path: &str, body: &[u8]) -> Answer {
    once(address, "POST", path, body)
}

/// One POST of JSON on its own connection.
#[track_caller]
pub(crate) fn post_json(address: &str, path: &str, body: &Value) -> Answer {
    Http::connect(address)
        .and_then(|mut http| http.json("POST", path, body))
        .unwrap_or_else(|error| panic!("POST {address}{path}: {error}"))
}

/// One request on its own connection.
#[track_caller]
pub(crate) fn once(address: &str, method: &str, path: &str, body: &[u8]) -> Answer {
    Http::connect(address)
        .and_then(|mut http| http.request(method, path, &[], body))
        .unwrap_or_else(|error| panic!("{method} {address}{path}: {error}"))
}
