//! Before any route: whether a browser asks for somebody else, and on whose behalf the store will be
//! asked. Knows headers and the store's guard, not what the routes do.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::is_v1;
use crate::ingest::access::{Access, Alien, Denied, Grants, Hosts, Role, Secret, Visitor};
use crate::ingest::nsqd_http;
use crate::ingest::problem::{Code, Problem};

/// What needs no token: it tells the machinery and clients whether and what we are.
const OPEN: [&str; 6] = [
    "/ping",
    "/info",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/openapi.json",
];

/// Who is let in.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    pub(super) access: Option<Arc<Access>>,
    pub(super) hosts: Hosts,
}

impl Gate {
    /// On whose behalf the request is; `None`: nobody's. Or the refusal.
    pub(super) async fn admit<B>(
        &self,
        request: &axum::http::Request<B>,
        visitor: &Visitor,
    ) -> Result<Option<Arc<Grants>>, Box<Response>> {
        let path = request.uri().path();
        let refuse = |code, word| Err(Box::new(refusal(path, code, word)));
        match self.hosts.check(request.method(), request.headers()) {
            Ok(()) => {}
            Err(Alien::Host) => return refuse(Code::HostNotAllowed, "HOST_NOT_ALLOWED"),
            Err(Alien::Origin) => return refuse(Code::OriginNotAllowed, "ORIGIN_NOT_ALLOWED"),
        }
        let Some(access) = &self.access else {
            return Ok(None);
        };
        if OPEN.contains(&path) {
            return Ok(None);
        }
        let Some(secret) = bearer(request.headers().get(header::AUTHORIZATION)) else {
            return refuse(Code::Unauthenticated, "AUTH_REQUIRED");
        };
        match access.ask_again(&secret, visitor).await {
            Ok(grants)
                if Role::ALL
                    .iter()
                    .any(|(role, _)| grants.may_somewhere(*role)) =>
            {
                Ok(Some(grants))
            }
            Ok(_nothing) => refuse(Code::Forbidden, "FORBIDDEN"),
            Err(Denied::Refused(_)) => refuse(Code::Unauthenticated, "AUTH_FAILED"),
            Err(Denied::Unavailable(_)) => refuse(Code::AuthUnavailable, "AUTH_UNAVAILABLE"),
        }
    }
}

/// The secret of `Authorization: Bearer …`.
fn bearer(value: Option<&HeaderValue>) -> Option<Secret> {
    let (scheme, secret) = value?.as_bytes().split_at_checked(b"Bearer ".len())?;
    let secret = secret.trim_ascii();
    let known = scheme.eq_ignore_ascii_case(b"Bearer ") && !secret.is_empty();
    known.then(|| Secret(secret.to_vec()))
}

/// In the words of the door that was knocked at.
fn refusal(path: &str, code: Code, word: &'static str) -> Response {
    let mut response = if is_v1(path) {
        let detail = match code {
            Code::Unauthenticated => {
                "Send the header Authorization: Bearer with a token that is known here."
            }
            Code::AuthUnavailable => "No auth server answers; try again.",
            Code::HostNotAllowed => {
                "The header Host names nothing of ours; add the name to allowed_hosts if it should."
            }
            Code::OriginNotAllowed => "A page of another site may change nothing here.",
            _ => "The token grants nothing.",
        };
        Problem::new(code, detail).into_response()
    } else {
        nsqd_http::error(code.status(), word)
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, bearer);
    }
    response
}
