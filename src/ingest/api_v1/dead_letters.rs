//! Messages that nsqd refused: list, give back to the queue, drop.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Json;

use crate::ingest::http::Shared;
use crate::ingest::problem::Problem;
use crate::store::Reschedule;

use super::list::{paging, shown};
use super::messages::{cancelled, in_flight, moved};
use super::view::{MessagePage, Moved, Outcome, OutcomeName};
use super::{Params, not_found, path_id, serving};

/// `GET /v1/dead-letters`
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<MessagePage>, Problem> {
    let params = Params::of(request.uri(), &["page_size", "page_token"])?;
    let (token, size) = paging(&params)?;
    let store = &shared.state.intake.store;
    let page = store.dead_letters(token, size).await?;
    Ok(Json(shown(&shared, &page)))
}

/// `POST /v1/dead-letters/{id}/requeue`
pub(super) async fn requeue(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Moved>, Problem> {
    Params::none(request.uri())?;
    let id = path_id(&shared, request.uri())?;
    serving(&shared)?;
    let store = &shared.state.intake.store;
    let text = store.id_text(&id);
    match store.requeue(id).await? {
        Reschedule::Moved(due) => Ok(Json(moved(text, due))),
        Reschedule::InFlight => Err(in_flight()),
        Reschedule::Cancelled => Err(cancelled()),
        Reschedule::NotFound | Reschedule::Dead => Err(not_found()),
    }
}

/// `DELETE /v1/dead-letters/{id}`
pub(super) async fn drop_dead(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Outcome>, Problem> {
    Params::none(request.uri())?;
    let id = path_id(&shared, request.uri())?;
    serving(&shared)?;
    let store = &shared.state.intake.store;
    let text = store.id_text(&id);
    if store.drop_dead(id).await? {
        let result = OutcomeName::Dropped;
        Ok(Json(Outcome { id: text, result }))
    } else {
        Err(not_found())
    }
}
