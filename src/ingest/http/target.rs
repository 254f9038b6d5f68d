//! The request target as it was sent. Go takes bytes in it that hyper refuses or drops (a raw `#`,
//! `<`, `>`, quotes, braces, bytes beyond ASCII). They are replaced on the way in, one byte by one, so
//! that no length and no framing can change, and the original is kept beside. Pure.

use axum::http::Uri;

/// Stands for a byte that hyper does not take.
const STAND_IN: u8 = b'_';
/// Most bytes of a request line that are kept; hyper refuses a longer head anyway.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Follows the bytes of a connection from the start of a head to the end of its first line.
#[derive(Debug, Default)]
pub(super) struct RequestLine {
    line: Vec<u8>,
    replaced: bool,
    complete: bool,
}

impl RequestLine {
    /// A new head begins with the next byte.
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }

    /// Looks at the next bytes and replaces what must be. Gives the original line when it is
    /// complete and something of it was replaced.
    pub(super) fn follow(&mut self, bytes: &mut [u8]) -> Option<Vec<u8>> {
        if self.complete {
            return None;
        }
        for byte in bytes {
            if *byte == b'\n' || self.line.len() >= LINE_BYTES_MAX {
                self.complete = true;
                let line = std::mem::take(&mut self.line);
                return self.replaced.then_some(line);
            }
            self.line.push(*byte);
            let plain = stand_in(*byte);
            self.replaced |= plain != *byte;
            *byte = plain;
        }
        None
    }
}

fn stand_in(byte: u8) -> u8 {
    match byte {
        // What separates the parts of the line, and what may end it.
        b' ' | b'\r' => byte,
        b'#' | b'<' | b'>' | b'`' | b'"' | b'{' | b'}' | b'|' | b'\\' | b'^' => STAND_IN,
        printable if printable.is_ascii_graphic() => printable,
        _control_or_not_ascii => STAND_IN,
    }
}

/// The target of a request whose line had bytes replaced; an extension of the request.
#[derive(Debug, Clone)]
pub(in crate::ingest) struct RawTarget(Vec<u8>);

impl RawTarget {
    /// Takes the target out of the original line. `None`: `uri` is not what it became.
    pub(super) fn of(line: &[u8], uri: &Uri) -> Option<Self> {
        let target = line.split(|b| *b == b' ').nth(1)?;
        let became: Vec<u8> = target.iter().map(|b| stand_in(*b)).collect();
        (became == uri.to_string().as_bytes()).then(|| Self(target.to_vec()))
    }

    /// Whether it has control characters, which Go refuses too.
    pub(super) fn is_bad(&self) -> bool {
        self.0.iter().any(u8::is_ascii_control)
    }
}

/// Path and query of a request, still encoded.
#[derive(Debug)]
pub(in crate::ingest) struct Target {
    /// `http://host` of a target in absolute form, else empty.
    pub(in crate::ingest) origin: String,
    /// Up to the `?`.
    pub(in crate::ingest) path: Vec<u8>,
    /// After it, if there is one.
    pub(in crate::ingest) query: Option<Vec<u8>>,
}

impl Target {
    /// Of a request; as it was sent, where hyper was given something else.
    pub(in crate::ingest) fn of<B>(request: &axum::http::Request<B>) -> Self {
        let uri = request.uri();
        let origin = match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) => format!("{scheme}://{authority}"),
            _ => String::new(),
        };
        let Some(RawTarget(raw)) = request.extensions().get::<RawTarget>() else {
            return Self {
                origin,
                path: uri.path().as_bytes().to_vec(),
                query: uri.query().map(|query| query.as_bytes().to_vec()),
            };
        };
        let raw = raw.get(origin.len()..).unwrap_or_default();
        let mut parts = raw.splitn(2, |b| *b == b'?');
        Self {
            origin,
            path: parts.next().unwrap_or_default().to_vec(),
            query: parts.next().map(<[u8]>::to_vec),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(pieces: &[&[u8]]) -> (Vec<u8>, Option<Vec<u8>>) {
        let mut line = RequestLine::default();
        let mut seen = Vec::new();
        let mut original = None;
        for piece in pieces {
            let mut bytes = piece.to_vec();
            original = line.follow(&mut bytes).or(original);
            seen.extend(bytes);
        }
        (seen, original)
    }

    #[test]
    fn only_the_line_is_touched_and_no_length_changes() {
        let (seen, original) = follow(&[b"GET /a#", b"b?\xff HTTP/1.1\r\nX: #\r\n", b"#<>"]);
        assert_eq!(seen, b"GET /a_b?_ HTTP/1.1\r\nX: #\r\n#<>");
        assert_eq!(original.unwrap(), b"GET /a#b?\xff HTTP/1.1\r");
    }

    #[test]
    fn a_plain_line_stays_as_it_is() {
        let (seen, original) = follow(&[b"GET /a?b=%23 HTTP/1.1\r\nX: #\r\n"]);
        assert_eq!(seen, b"GET /a?b=%23 HTTP/1.1\r\nX: #\r\n");
        assert_eq!(original, None);
    }

    #[test]
    fn a_target_of_another_request_is_not_taken() {
        let uri = Uri::from_static("/a_b?x");
        assert!(RawTarget::of(b"GET /a#b?x HTTP/1.1\r", &uri).is_some());
        assert!(RawTarget::of(b"GET /a#c?x HTTP/1.1\r", &uri).is_none());
        assert!(RawTarget::of(b"#", &uri).is_none());
    }
}
