//! Many messages in one request, each accepted or refused for itself.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::join_all;

use crate::ingest::budget::Share;
use crate::ingest::http::Shared;
use crate::ingest::problem::{Code, Problem};
use crate::message::{Message, TopicName};

use super::json::{Fields, Node, Spot};
use super::view::{Accepted, BatchResult, ItemResult};
use super::{count_refused, draft, json_body, limits, messages, serving};

/// Most messages of one request.
pub(in crate::ingest) const ITEMS_MAX: usize = 1000;

/// What one item of an answer takes, about.
const ITEM_BYTES: usize = 224;

/// `POST /v1/messages:batch`
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Problem> {
    let (drafts, _share) = drafts(&shared, request)
        .await
        .inspect_err(|problem| count_refused(&shared, problem))?;
    let results = store(&shared, drafts).await;
    let failed = results.iter().filter(|r| r.problem.is_some()).count();
    answer(&BatchResult {
        successful: results.len() - failed,
        failed,
        results,
    })
}

/// As JSON, into one piece of memory that it mostly fits into.
fn answer(result: &BatchResult) -> Result<Response, Problem> {
    let mut text = Vec::with_capacity((result.results.len() + 1) * ITEM_BYTES);
    serde_json::to_writer(&mut text, result)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], text).into_response())
}

/// The messages as far as they are sound.
async fn drafts(
    shared: &Shared,
    request: Request,
) -> Result<(Vec<Result<Message, Problem>>, Share), Problem> {
    let (text, share) = json_body(shared, request).await?;
    let mut fields = Fields::of(Node::parse(&text)?, Spot::Top, &["messages"])?;
    let items = fields.need("messages")?.into_list("messages")?;
    bounded(&items, "messages", ITEMS_MAX)?;
    serving(shared)?;
    let (limits, size_max) = (limits(shared), shared.state.intake.config.max_msg_size);
    let items = items.into_iter().enumerate();
    let drafts = items.map(|(number, item)| {
        draft::of_json(
            item,
            Spot::Item("messages", number),
            &text,
            limits,
            size_max,
        )
    });
    Ok((drafts.collect(), share))
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

/// Messages that go to the store together, and which items of the request they are.
#[derive(Debug, Default)]
struct Group {
    numbers: Vec<usize>,
    messages: Vec<Message>,
}

/// What becomes of each item. All are under way together, so that they share packs.
async fn store(shared: &Shared, drafts: Vec<Result<Message, Problem>>) -> Vec<ItemResult> {
    let mut results: Vec<Option<ItemResult>> = drafts.iter().map(|_| None).collect();
    let mut groups: Vec<Group> = Vec::new();
    // An id is accepted or refused for itself.
    let mut without_id: HashMap<TopicName, usize> = HashMap::new();
    for (number, (draft, result)) in drafts.into_iter().zip(&mut results).enumerate() {
        let message = match draft {
            Ok(message) => message,
            Err(problem) => {
                *result = Some(refused(shared, &problem));
                continue;
            }
        };
        let known = without_id
            .get(&message.topic)
            .filter(|_| message.id.is_none());
        let at = known.copied().unwrap_or(groups.len());
        if at == groups.len() {
            groups.push(Group::default());
            if message.id.is_none() {
                without_id.insert(message.topic.clone(), at);
            }
        }
        if let Some(group) = groups.get_mut(at) {
            group.numbers.push(number);
            group.messages.push(message);
        }
    }
    let stored = groups.into_iter().map(|group| async move {
        let stored = store_group(shared, group.messages).await;
        group.numbers.into_iter().zip(stored)
    });
    for (number, stored) in join_all(stored).await.into_iter().flatten() {
        if let Some(result) = results.get_mut(number) {
            *result = Some(match stored {
                Ok((status, accepted)) => ItemResult {
                    status: status.as_u16(),
                    message: Some(accepted),
                    problem: None,
                },
                Err(problem) => refused(shared, &problem),
            });
        }
    }
    results.into_iter().flatten().collect()
}

async fn store_group(
    shared: &Shared,
    messages: Vec<Message>,
) -> Vec<Result<(StatusCode, Accepted), Problem>> {
    if messages.len() > 1 {
        match messages::store_all(shared, messages.clone()).await {
            Ok(accepted) => {
                return accepted
                    .into_iter()
                    .map(|accepted| Ok((StatusCode::CREATED, accepted)))
                    .collect();
            }
            // Some of them may fit.
            Err(problem) if matches!(problem.code, Code::PendingFull | Code::TopicFull) => {}
            Err(problem) => return messages.iter().map(|_| Err(problem.clone())).collect(),
        }
    }
    let each = messages
        .into_iter()
        .map(|message| messages::store(shared, message));
    join_all(each).await
}

fn refused(shared: &Shared, problem: &Problem) -> ItemResult {
    count_refused(shared, problem);
    let problem = problem.details();
    ItemResult {
        status: problem.status,
        message: None,
        problem: Some(problem),
    }
}
