//! Cancels many: those with the ids given, or those that a filter finds. A filter must say
//! something: nothing ever means 'all'.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Json;

use crate::id::MessageId;
use crate::ingest::http::Shared;
use crate::ingest::problem::{At, Code, Problem};
use crate::store::{Cancel, Query, State as MessageState};

use super::batch::bounded;
use super::json::{Fields, Node, Spot};
use super::messages::count_cancel;
use super::view::{CancelResult, Outcome, OutcomeName};
use super::{id_of, json_body, serving, topic};

/// Most ids of one request.
pub(in crate::ingest) const IDS_MAX: usize = 1000;
/// A request with a filter reads at most so many pages of so many messages.
const PAGES_MAX: usize = 10;
const PAGE_MESSAGES: usize = 1000;

/// `POST /v1/messages:cancel`
pub(super) async fn cancel(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<CancelResult>, Problem> {
    let (text, _share) = json_body(&shared, request).await?;
    let mut fields = Fields::of(
        Node::parse(&text)?,
        Spot::Top,
        &["ids", "filter", "page_token"],
    )?;
    let token = fields.text("page_token")?.map(Cow::into_owned);
    let result = match (fields.take("ids"), fields.take("filter")) {
        (Some(ids), None) if token.is_none() => by_ids(&shared, ids).await?,
        (None, Some(filter)) => by_filter(&shared, filter, token).await?,
        (None, None) => return Err(fields.missing("ids")),
        (Some(_), _) => {
            return Err(Problem::field(
                Code::ConflictingFields,
                "ids",
                "Give ids, or filter with page_token, not both.",
            ));
        }
    };
    Ok(Json(result))
}

async fn by_ids(shared: &Shared, ids: Node<'_>) -> Result<CancelResult, Problem> {
    let ids = ids.into_list("ids")?;
    bounded(&ids, "ids", IDS_MAX)?;
    let mut texts = Vec::with_capacity(ids.len());
    for (number, id) in ids.into_iter().enumerate() {
        texts.push(id.into_text(Spot::Item("ids", number))?);
    }
    serving(shared)?;
    // What is no id of ours, or of anybody, is answered in its place without asking the store.
    let mut outcomes: Vec<Option<OutcomeName>> = Vec::with_capacity(texts.len());
    let mut asked: Vec<MessageId> = Vec::new();
    for text in &texts {
        match id_of(shared, text.as_bytes()) {
            Ok(id) => {
                asked.push(id);
                outcomes.push(None);
            }
            Err(problem) if problem.code == Code::MessageNotFound => {
                outcomes.push(Some(OutcomeName::NotFound));
            }
            Err(_invalid) => outcomes.push(Some(OutcomeName::InvalidId)),
        }
    }
    let mut answers = cancel_all(shared, asked).await?.into_iter();
    let mut result = CancelResult::default();
    for (id, outcome) in texts.into_iter().zip(outcomes) {
        let answer = || answers.next().map_or(OutcomeName::NotFound, name_of);
        let outcome = outcome.unwrap_or_else(answer);
        result.count(outcome);
        let result_of_one = Outcome {
            id: id.into_owned(),
            result: outcome,
        };
        result.results.push(result_of_one);
    }
    Ok(result)
}

async fn by_filter(
    shared: &Shared,
    filter: Node<'_>,
    token: Option<String>,
) -> Result<CancelResult, Problem> {
    let query = query(filter)?;
    serving(shared)?;
    let store = &shared.state.intake.store;
    let mut result = CancelResult {
        next_page_token: token,
        ..CancelResult::default()
    };
    for _ in 0..PAGES_MAX {
        let token = result.next_page_token.take();
        let page = store.list(query.clone(), token, PAGE_MESSAGES).await;
        let page = page.map_err(|error| match Problem::from(error) {
            problem if problem.code == Code::InvalidPageToken => {
                problem.at(At::Field("page_token".to_owned()))
            }
            problem => problem,
        })?;
        result.next_page_token = page.next_page_token;
        let pending = page.messages.into_iter();
        let pending = pending.filter(|m| m.state != MessageState::Dead);
        for answer in cancel_all(shared, pending.map(|m| m.id).collect()).await? {
            result.count(name_of(answer));
        }
        if result.next_page_token.is_none() {
            break;
        }
    }
    result.more = result.next_page_token.is_some();
    Ok(result)
}

async fn cancel_all(shared: &Shared, ids: Vec<MessageId>) -> Result<Vec<Cancel>, Problem> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let answers = shared.state.intake.store.cancel(ids).await?;
    for answer in &answers {
        count_cancel(shared, *answer);
    }
    Ok(answers)
}

fn query(filter: Node<'_>) -> Result<Query, Problem> {
    let mut fields = Fields::of(
        filter,
        Spot::Field("filter"),
        &["topic", "due_from", "due_to"],
    )?;
    let at = |problem: Problem, name: &str| problem.at(At::Field(format!("filter.{name}")));
    let topic = match fields.text("topic")? {
        Some(name) => Some(topic(name.as_bytes()).map_err(|p| at(p, "topic"))?),
        None => None,
    };
    let mut moment = |name: &str| {
        let given = fields.given(name, Code::InvalidTime)?;
        let moment = given.map(|given| given.moment()).transpose();
        moment.map_err(|problem| at(problem, name))
    };
    let query = Query {
        topic,
        due_from: moment("due_from")?,
        due_to: moment("due_to")?,
    };
    if query == Query::default() {
        return Err(Problem::field(
            Code::EmptyFilter,
            "filter",
            "Give at least one of topic, due_from and due_to: no filter does not mean all.",
        ));
    }
    Ok(query)
}

fn name_of(answer: Cancel) -> OutcomeName {
    match answer {
        Cancel::Cancelled => OutcomeName::Cancelled,
        Cancel::InFlight => OutcomeName::InFlight,
        Cancel::NotFound => OutcomeName::NotFound,
        Cancel::Dead => OutcomeName::DeadLetter,
    }
}

impl CancelResult {
    fn count(&mut self, outcome: OutcomeName) {
        match outcome {
            OutcomeName::Cancelled => self.cancelled += 1,
            OutcomeName::InFlight => self.in_flight += 1,
            OutcomeName::NotFound => self.not_found += 1,
            OutcomeName::DeadLetter | OutcomeName::Dropped => self.dead_letters += 1,
            OutcomeName::InvalidId => self.invalid_ids += 1,
        }
    }
}
