//! Pending messages by topic and due time, in pages.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Json;

use crate::ingest::http::Shared;
use crate::ingest::problem::{At, Code, Problem};
use crate::message::UnixMs;
use crate::store::{Page, Query};

use super::Params;
use super::moment::Given;
use super::view::{MessagePage, Summary};

/// Messages of a page, unless asked otherwise.
pub(in crate::ingest) const PAGE_SIZE: usize = 100;
/// Most messages of a page.
pub(in crate::ingest) const PAGE_SIZE_MAX: usize = 1000;

/// `GET /v1/messages`
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<MessagePage>, Problem> {
    let params = ["topic", "due_from", "due_to", "page_size", "page_token"];
    let params = Params::of(request.uri(), &params)?;
    let query = Query {
        topic: params.topic()?,
        due_from: moment(&params, "due_from")?,
        due_to: moment(&params, "due_to")?,
    };
    let (token, size) = paging(&params)?;
    let store = &shared.state.intake.store;
    let page = store.list(query, token, size).await?;
    Ok(Json(shown(&shared, &page)))
}

/// A page as it is shown, without bodies: a thousand of them could be a gigabyte.
pub(super) fn shown(shared: &Shared, page: &Page) -> MessagePage {
    let store = &shared.state.intake.store;
    let messages = page.messages.iter();
    MessagePage {
        messages: messages.map(|m| Summary::of(m, &**store)).collect(),
        next_page_token: page.next_page_token.clone(),
    }
}

/// `page_token` and `page_size`.
pub(super) fn paging(params: &Params) -> Result<(Option<String>, usize), Problem> {
    let size = match params.text("page_size")? {
        None => PAGE_SIZE,
        Some(text) => {
            let size = text
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| text.parse());
            match size {
                Some(Ok(size)) if (1..=PAGE_SIZE_MAX).contains(&size) => size,
                _ => {
                    return Err(Problem::param(
                        Code::InvalidParameter,
                        "page_size",
                        format!("This must be a whole number from 1 to {PAGE_SIZE_MAX}."),
                    ));
                }
            }
        }
    };
    let token = params.text("page_token").map_err(|problem| Problem {
        code: Code::InvalidPageToken,
        ..problem
    })?;
    Ok((token, size))
}

fn moment(params: &Params, name: &str) -> Result<Option<UnixMs>, Problem> {
    let given = params.text(name)?.map(Given::of_query);
    let moment = given.map(|given| given.moment()).transpose();
    moment.map_err(|problem| problem.at(At::Param(name.to_owned())))
}
