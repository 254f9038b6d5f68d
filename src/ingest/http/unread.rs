//! What a request's body has left when its answer is ready. It is read to its end first, as Go does,
//! so that what comes next on the connection is the next request; or the connection ends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use bytes::Bytes;
use futures_util::future::poll_fn;
use hyper::body::{Frame, SizeHint};

/// Go closes a connection rather than read more of what nobody wants.
const UNREAD_BYTES_MAX: u64 = 256 * 1024;
/// How long the rest of a body may take.
const REST_MAX: Duration = Duration::from_secs(5);

/// A body that comes back when whoever had it is done with it.
#[derive(Debug)]
pub(super) struct Lent<B>(Arc<Mutex<B>>);

impl<B> Lent<B> {
    fn body(&self) -> MutexGuard<'_, B> {
        // A poll that panicked ends the connection; nobody looks at the body after it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Lent<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

/// The other half of a body that was lent.
#[derive(Debug)]
pub(super) struct Unread<B> {
    body: Lent<B>,
    /// The client waits for leave to send it, which it did not get.
    is_awaited: bool,
}

/// Lends the body of `request`.
pub(super) fn lend<B>(request: Request<B>) -> (Request<Lent<B>>, Unread<B>) {
    let is_awaited = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    let lent = Lent(Arc::clone(&body));
    let body = Lent(body);
    (Request::from_parts(head, lent), Unread { body, is_awaited })
}

impl<B: HttpBody<Data = Bytes> + Unpin> Unread<B> {
    /// Reads the rest, or has `response` say that the connection ends.
    pub(super) async fn finish(mut self, response: &mut Response<Body>) {
        if self.body.is_end_stream() || response.headers().contains_key(header::CONNECTION) {
            return;
        }
        let declared = self.body.size_hint().lower();
        let is_read = !self.is_awaited
            && declared <= UNREAD_BYTES_MAX
            && tokio::time::timeout(REST_MAX, self.read())
                .await
                .unwrap_or(false);
        if !is_read {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
    }

    /// Whether it came to its end.
    async fn read(&mut self) -> bool {
        let mut left = UNREAD_BYTES_MAX;
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            let piece = match frame {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => frame.into_data().map_or(0, |bytes| bytes.len()),
            };
            match left.checked_sub(u64::try_from(piece).unwrap_or(u64::MAX)) {
                Some(less) => left = less,
                None => return false,
            }
        }
    }
}
