//! Keeps pages of other sites, and names that were bound anew to our address, from making a browser
//! change anything here. Programs other than browsers send none of the headers that this looks at.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, Method, header};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Names under which this instance is known.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Vec<String>);

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest) enum Alien {
    /// The name that the browser went to is not ours.
    Host,
    /// The page that asks is not ours.
    Origin,
}

impl Hosts {
    /// `localhost` and addresses are always ours: nobody can bind those anew.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(
            names
                .into_iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
        )
    }

    fn has(&self, authority: &str) -> bool {
        let host = host(authority).to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.ends_with(".localhost")
            || bare.parse::<IpAddr>().is_ok()
            || self
                .0
                .iter()
                .any(|name| *name == host || name.eq_ignore_ascii_case(authority))
    }

    /// Refuses a request that would change something, when a browser makes it for somebody else.
    pub(in crate::ingest) fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<(), Alien> {
        if method.is_safe() {
            return Ok(());
        }
        let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let (origin, site) = (text(&header::ORIGIN), text(&SEC_FETCH_SITE));
        if origin.is_none() && site.is_none() {
            return Ok(());
        }
        let asked = text(&header::HOST).unwrap_or_default();
        if !self.has(asked) {
            return Err(Alien::Host);
        }
        let ours = match (origin, site) {
            (Some(origin), _) => origin.split_once("://").is_some_and(|(_, authority)| {
                authority.eq_ignore_ascii_case(asked)
                    || self
                        .0
                        .iter()
                        .any(|name| name.eq_ignore_ascii_case(host(authority)))
            }),
            (None, Some(site)) => matches!(site, "same-origin" | "none"),
            (None, None) => true,
        };
        if ours { Ok(()) } else { Err(Alien::Origin) }
    }
}

/// Without the port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &str)]) -> Result<(), Alien> {
        let hosts = Hosts::new(["delay.example".to_owned()]);
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        hosts.check(&Method::POST, &headers.collect())
    }

    #[test]
    fn who_is_no_browser_may_name_us_as_it_likes() {
        assert_eq!(check(&[("host", "anything:1")]), Ok(()));
        assert_eq!(check(&[]), Ok(()));
    }

    #[test]
    fn our_own_pages_may() {
        for host in [
            "127.0.0.1:4141",
            "[::1]:4141",
            "localhost:4141",
            "delay.example",
            "10.1.2.3",
        ] {
            let origin = format!("http://{host}");
            assert_eq!(
                check(&[("host", host), ("origin", &origin)]),
                Ok(()),
                "{host}"
            );
        }
        assert_eq!(
            check(&[("host", "localhost:1"), ("sec-fetch-site", "same-origin")]),
            Ok(())
        );
    }

    #[test]
    fn names_bound_anew_and_other_pages_may_not() {
        let rebound = [("host", "evil.example"), ("origin", "http://evil.example")];
        assert_eq!(check(&rebound), Err(Alien::Host));
        for (host, origin) in [
            ("127.0.0.1:4141", "http://evil.example"),
            ("127.0.0.1:4141", "http://127.0.0.1:8080"),
            ("127.0.0.1:4141", "null"),
            ("localhost:4141", "http://localhost"),
        ] {
            assert_eq!(
                check(&[("host", host), ("origin", origin)]),
                Err(Alien::Origin),
                "{origin}"
            );
        }
        let foreign = [("host", "localhost:1"), ("sec-fetch-site", "cross-site")];
        assert_eq!(check(&foreign), Err(Alien::Origin));
    }

    #[test]
    fn what_changes_nothing_is_not_asked() {
        let headers = HeaderMap::from_iter([
            (header::HOST, "evil.example".parse().unwrap()),
            (header::ORIGIN, "http://evil.example".parse().unwrap()),
        ]);
        assert_eq!(Hosts::default().check(&Method::GET, &headers), Ok(()));
    }
}
