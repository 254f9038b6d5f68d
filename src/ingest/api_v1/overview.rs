//! Topics: what is pending of each, and whether it is paused. And what is pending altogether.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::Json;

use crate::ingest::http::Shared;
use crate::ingest::problem::Problem;
use crate::message::TopicName;

use super::view::{Stats, TopicCount, TopicState, Topics};
use super::{Params, path_topic, serving};

/// `GET /v1/topics`
pub(super) async fn topics(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Topics>, Problem> {
    Params::none(request.uri())?;
    let store = &shared.state.intake.store;
    let pending = store.pending().await?;
    let paused = store.paused().await?;
    let mut topics: BTreeMap<TopicName, u64> = pending.by_topic.into_iter().collect();
    for topic in &paused {
        topics.entry(topic.clone()).or_default();
    }
    let count = |(topic, pending): (TopicName, u64)| TopicCount {
        topic: topic.as_str().to_owned(),
        pending,
        paused: paused.contains(&topic),
    };
    let topics = topics.into_iter().map(count).collect();
    Ok(Json(Topics { topics }))
}

/// `POST /v1/topics/{topic}/pause`
pub(super) async fn pause(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<TopicState>, Problem> {
    set_paused(&shared, request.uri(), true).await
}

/// `POST /v1/topics/{topic}/resume`
pub(super) async fn resume(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<TopicState>, Problem> {
    set_paused(&shared, request.uri(), false).await
}

async fn set_paused(shared: &Shared, uri: &Uri, paused: bool) -> Result<Json<TopicState>, Problem> {
    Params::none(uri)?;
    let topic = path_topic(uri)?;
    serving(shared)?;
    let store = &shared.state.intake.store;
    store.set_paused(topic.clone(), paused).await?;
    let topic = topic.as_str().to_owned();
    Ok(Json(TopicState { topic, paused }))
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
