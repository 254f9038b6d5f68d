//! A connection with deadlines: the head of a request must come within a time-out from its first
//! byte, and a client must take what is written to it. Knows bytes only, not HTTP.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::target::RequestLine;

/// How long a client may take nothing of an answer.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

/// Whether a request is being answered; the server says so, the connection looks at it.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    /// Heads that have come whole: an answer can be ready before anything is read again.
    heads: AtomicU64,
    answering: AtomicBool,
    /// The last request line in which bytes were replaced, until its request comes.
    line: Mutex<Option<Vec<u8>>>,
}

impl Progress {
    /// Before the first request.
    pub(super) fn new() -> Self {
        Self(Arc::new(Shown {
            heads: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            line: Mutex::new(None),
        }))
    }

    /// A whole head has come.
    pub(super) fn head_complete(&self) {
        self.0.heads.fetch_add(1, Ordering::AcqRel);
        self.0.answering.store(true, Ordering::Release);
    }

    /// The request has its answer.
    pub(super) fn answered(&self) {
        self.0.answering.store(false, Ordering::Release);
    }

    /// The line of the request whose head was just completed, if bytes of it were replaced.
    pub(super) fn take_line(&self) -> Option<Vec<u8>> {
        self.line().take()
    }

    fn line(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        // It is only ever replaced whole.
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answering(&self) -> bool {
        self.0.answering.load(Ordering::Acquire)
    }

    fn heads(&self) -> u64 {
        self.0.heads.load(Ordering::Acquire)
    }
}

/// A connection that fails with `TimedOut` when a deadline passes.
#[derive(Debug)]
pub(super) struct TimedIo<S> {
    stream: S,
    progress: Progress,
    head_timeout: Duration,
    /// Runs from the first byte of a head, or from the accept, until the head is complete.
    head: Option<Pin<Box<Sleep>>>,
    /// How many heads were complete when `head` was last looked at.
    heads: u64,
    line: RequestLine,
    /// Runs while a write waits.
    write: Option<Pin<Box<Sleep>>>,
    broken: bool,
}

impl<S> TimedIo<S> {
    /// The first head is due within `head_timeout` from now.
    pub(super) fn new(stream: S, head_timeout: Duration, progress: Progress) -> Self {
        Self {
            stream,
            progress,
            head_timeout,
            head: Some(Box::pin(tokio::time::sleep(head_timeout))),
            heads: 0,
            line: RequestLine::default(),
            write: None,
            broken: false,
        }
    }

    /// The connection itself, unless it failed.
    pub(super) fn into_usable(self) -> Option<S> {
        (!self.broken).then_some(self.stream)
    }

    fn timed_out(&mut self) -> io::Error {
        self.broken = true;
        io::ErrorKind::TimedOut.into()
    }

    /// Passes a write's outcome on and minds the time while it waits.
    fn mind_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(outcome) => {
                self.write = None;
                self.broken |= outcome.is_err();
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                let deadline = self
                    .write
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL_MAX)));
                match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(self.timed_out())),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let heads = this.progress.heads();
        if heads != this.heads {
            this.heads = heads;
            this.head = None;
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let came = buf.filled().len() > before;
                // While a request is answered, what comes is its body: nothing of it is touched.
                if came && !this.progress.answering() {
                    if this.head.is_none() {
                        let deadline = Instant::now() + this.head_timeout;
                        this.head = Some(Box::pin(tokio::time::sleep_until(deadline)));
                        this.line.begin();
                    }
                    let bytes = buf.filled_mut().get_mut(before..).unwrap_or_default();
                    if let Some(line) = this.line.follow(bytes) {
                        *this.progress.line() = Some(line);
                    }
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                this.broken = true;
                Poll::Ready(Err(error))
            }
            Poll::Pending => match &mut this.head {
                Some(deadline) => match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(this.timed_out())),
                    Poll::Pending => Poll::Pending,
                },
                None => Poll::Pending,
            },
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.mind_write(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.mind_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
