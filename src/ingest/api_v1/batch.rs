//! Many messages in one request, each accepted or refused for itself.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Json;
use futures_util::future::join_all;

use crate::ingest::budget::Share;
use crate::ingest::http::Shared;
use crate::ingest::problem::{Code, Problem};

use super::json::{Fields, Node};
use super::view::{BatchResult, ItemResult};
use super::{count_refused, draft, json_body, limits, messages, serving};

/// Most messages of one request.
pub(in crate::ingest) const ITEMS_MAX: usize = 1000;

/// `POST /v1/messages:batch`
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<BatchResult>, Problem> {
    let (items, _share) = items(&shared, request)
        .await
        .inspect_err(|problem| count_refused(&shared, problem))?;
    // Under way together, so that they share packs.
    let results = join_all(items.into_iter().enumerate().map(|(number, item)| {
        let shared = &shared;
        async move { one(shared, number, item).await }
    }));
    let results = results.await;
    let failed = results.iter().filter(|r| r.problem.is_some()).count();
    Ok(Json(BatchResult {
        successful: results.len() - failed,
        failed,
        results,
    }))
}

async fn items(shared: &Shared, request: Request) -> Result<(Vec<Node>, Share), Problem> {
    let (node, share) = json_body(shared, request).await?;
    let mut fields = Fields::of(node, "", &["messages"])?;
    let items = fields.need("messages")?.into_list("messages")?;
    bounded(&items, "messages", ITEMS_MAX)?;
    serving(shared)?;
    Ok((items, share))
}

/// Refuses a list that has nothing or too much in it.
pub(super) fn bounded<T>(items: &[T], field: &str, max: usize) -> Result<(), Problem> {
    if items.is_empty() {
        let detail = format!("{field} must have at least one item.");
        return Err(Problem::field(Code::EmptyBatch, field, detail));
    }
    if items.len() > max {
        let detail = format!("{field} has {} items; the limit is {max}.", items.len());
        return Err(Problem::field(Code::TooManyItems, field, detail));
    }
    Ok(())
}

async fn one(shared: &Shared, number: usize, item: Node) -> ItemResult {
    let path = format!("messages[{number}]");
    let size_max = shared.state.intake.config.max_msg_size;
    let stored = match draft::of_json(item, &path, limits(shared), size_max) {
        Ok(message) => messages::store(shared, message).await,
        Err(problem) => Err(problem),
    };
    match stored {
        Ok((status, accepted)) => ItemResult {
            status: status.as_u16(),
            message: Some(accepted),
            problem: None,
        },
        Err(problem) => {
            count_refused(shared, &problem);
            let problem = problem.details();
            ItemResult {
                status: problem.status,
                message: None,
                problem: Some(problem),
            }
        }
    }
}
