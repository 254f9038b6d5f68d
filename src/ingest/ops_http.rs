//! For the machinery around the process: `/healthz`, `/readyz`, `/metrics`, without credentials.
//! Knows nothing of messages.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::time::Instant;

use crate::ingest::http::Shared;
use crate::phase::Phase;

/// How long Redis may take to answer before the instance counts as not ready.
const PING_MAX: Duration = Duration::from_secs(2);
/// How long counting what is pending may take; after that the numbers before are shown.
const COUNT_MAX: Duration = Duration::from_secs(1);
/// How long a count is good for: it reads a few keys of every shard, and many may scrape.
const COUNT_FRESH: Duration = Duration::from_secs(2);
const EXPOSITION_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/healthz", get(async || "OK\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let mut reasons = (shared.state.unready)();
    match shared.phase() {
        Phase::Serving => {}
        Phase::Starting => reasons.push("starting".to_owned()),
        Phase::Draining | Phase::Stopped => reasons.push("draining".to_owned()),
    }
    if let Err(reason) = redis_answers(&shared).await {
        reasons.push(reason.to_owned());
    }
    let ready = reasons.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let caching = [(header::CACHE_CONTROL, "no-store")];
    (status, caching, Json(Readiness { ready, reasons })).into_response()
}

/// Whether Redis answers in time; what it says is for the log, not for clients.
pub(super) async fn redis_answers(shared: &Shared) -> Result<(), &'static str> {
    match tokio::time::timeout(PING_MAX, shared.state.intake.store.ping()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "redis does not answer a ping");
            Err("redis is not reachable")
        }
        Err(_elapsed) => Err("redis does not answer"),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    count_pending(&shared).await;
    let in_flight = i64::try_from(shared.state.intake.budget.used()).unwrap_or(i64::MAX);
    shared.state.metrics.in_flight_bytes.set(in_flight);
    let kind = [(header::CONTENT_TYPE, EXPOSITION_TYPE)];
    (kind, (shared.state.exposition)()).into_response()
}

/// Asks Redis how much is pending, unless that was asked a moment ago.
async fn count_pending(shared: &Shared) {
    {
        let now = Instant::now();
        let mut counted = shared
            .counted
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if counted.is_some_and(|at| now.duration_since(at) < COUNT_FRESH) {
            return;
        }
        *counted = Some(now);
    }
    let pending = shared.state.intake.store.pending();
    match tokio::time::timeout(COUNT_MAX, pending).await {
        Ok(Ok(pending)) => {
            let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            let metrics = &shared.state.metrics;
            metrics.pending.set(gauge(pending.by_topic.values().sum()));
            let bytes = pending.bytes_by_topic.values().sum();
            metrics.pending_bytes.set(gauge(bytes));
            metrics.dead_letters.set(gauge(pending.dead));
        }
        Ok(Err(error)) => tracing::debug!(%error, "what is pending could not be counted"),
        Err(_elapsed) => tracing::debug!("redis took too long to count what is pending"),
    }
}
