//! Counts: by topic, and altogether.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Json;

use crate::ingest::http::Shared;
use crate::ingest::problem::Problem;

use super::Params;
use super::view::{Stats, TopicCount, Topics};

/// `GET /v1/topics`
pub(super) async fn topics(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Topics>, Problem> {
    Params::none(request.uri())?;
    let pending = shared.state.intake.store.pending().await?;
    let mut topics: Vec<_> = pending.by_topic.into_iter().collect();
    topics.sort();
    let count = |(topic, pending): (crate::message::TopicName, u64)| TopicCount {
        topic: topic.as_str().to_owned(),
        pending,
    };
    let topics = topics.into_iter().map(count).collect();
    Ok(Json(Topics { topics }))
}

/// `GET /v1/stats`
pub(super) async fn stats(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Stats>, Problem> {
    Params::none(request.uri())?;
    let state = &shared.state;
    let pending = state.intake.store.pending().await?;
    Ok(Json(Stats {
        version: state.start.version.clone(),
        start_time: state.start.start_time_unix_s,
        now_ms: state.intake.store.now().0,
        topics: pending.by_topic.len(),
        pending: pending.by_topic.values().sum(),
        dead_letters: pending.dead,
        clients: state.clients.snapshot().len(),
    }))
}
