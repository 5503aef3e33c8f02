//! A request body with a time-out: whoever begins a request must also end it.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::notices::{Limit, Notices};

/// Why a request body has no end.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It did not come whole in time.
    #[error("the request body did not arrive within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The connection or its stream failed.
    #[error("the request ended early: {0}")]
    Failed(#[from] hyper::Error),
}

/// A request body that fails once its time-out has passed.
#[derive(Debug)]
pub struct Received {
    body: Incoming,
    limit: Duration,
    deadline: Instant,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    peer: IpAddr,
    notices: Arc<Notices>,
}

impl Received {
    pub(crate) fn new(body: Incoming, limit: Duration, peer: IpAddr, notices: Arc<Notices>) -> Self {
        Self { body, limit, deadline: Instant::now() + limit, timer: None, peer, notices }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(Some(Ok(frame))) if Instant::now() < this.deadline => return Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Pending => {
                let deadline = this.deadline;
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }
        this.notices.reached(Limit::Body, this.peer, this.limit.as_secs());
        Poll::Ready(Some(Err(ReceiveError::TimedOut(this.limit))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
