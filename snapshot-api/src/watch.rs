//! What the watches share: a stream that ends with the token or the service, and wakes on changes.
//!
//! A watch reads what is newer than the last revision it sent, sends it, and sleeps until something changed. The wake-up
//! carries no data, so one that is lost in a burst costs nothing: the next read has everything.

use std::pin::Pin;
use std::time::Duration;

use snapshot_core::authority::Caller;
use snapshot_core::{Error, Reason};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::app::App;
use crate::limits::UserPlace;
use crate::store::Change;

/// The answer of a watch.
pub type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How many messages may wait for a slow client before the watch waits for it.
const BACKLOG: usize = 32;

/// One watch: where it sends, and when it ends.
pub struct Watch<T> {
    messages: mpsc::Sender<Result<T, Status>>,
    changes: broadcast::Receiver<Change>,
    stopping: CancellationToken,
    expiry: tokio::time::Instant,
    _place: UserPlace,
}

/// Why a watch ends.
pub enum End {
    /// The client went away.
    Gone,
    /// There is nothing more to tell.
    Done,
    /// It is to be told why.
    Failed(Error),
}

impl<T: Send + 'static> Watch<T> {
    /// Makes a watch for a caller, and the stream that its client reads; refused when the user has enough of them.
    pub fn new(app: &App, caller: &Caller) -> Result<(Self, Messages<T>), Error> {
        let place = app.limits.watch(caller.actor())?;
        let (messages, receiver) = mpsc::channel(BACKLOG);
        let left = u64::try_from(caller.expires_at_unix() - app.clock.now_s()).unwrap_or(0);
        let watch = Self {
            messages,
            changes: app.store.subscribe(),
            stopping: app.stopping.clone(),
            expiry: tokio::time::Instant::now() + Duration::from_secs(left),
            _place: place,
        };
        Ok((watch, Box::pin(ReceiverStream::new(receiver))))
    }

    /// Sends a message, waiting for a slow client, but not beyond the end of the token or the service.
    pub async fn send(&self, message: T) -> Result<(), End> {
        tokio::select! {
            sent = self.messages.send(Ok(message)) => sent.map_err(|_| End::Gone),
            end = self.over() => Err(end),
        }
    }

    /// Waits for a change that concerns this watch.
    pub async fn changed(&mut self, concerns: impl Fn(&Change) -> bool) -> Result<(), End> {
        loop {
            let (stopping, expiry) = (self.stopping.clone(), self.expiry);
            let messages = self.messages.clone();
            let change = tokio::select! {
                change = self.changes.recv() => change,
                () = messages.closed() => return Err(End::Gone),
                end = over(stopping, expiry) => return Err(end),
            };
            match change {
                Ok(change) if concerns(&change) => return Ok(()),
                Ok(_) => {}
                // Some were missed: one of them may have been for this watch.
                Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => return Err(End::Failed(stopping_error())),
            }
        }
    }

    /// Tells the client why the watch ends.
    pub async fn finish(self, end: End) {
        if let End::Failed(error) = end {
            // A client that does not read cannot be told.
            let status = Err(proto::status::to_status(&error));
            let _ = tokio::time::timeout(Duration::from_secs(5), self.messages.send(status)).await;
        }
    }

    async fn over(&self) -> End {
        over(self.stopping.clone(), self.expiry).await
    }
}

async fn over(stopping: CancellationToken, expiry: tokio::time::Instant) -> End {
    tokio::select! {
        () = stopping.cancelled() => End::Failed(stopping_error()),
        () = tokio::time::sleep_until(expiry) => {
            End::Failed(Error::new(Reason::TokenExpired, "the token has expired: go on with a new one"))
        }
    }
}

fn stopping_error() -> Error {
    Error::new(Reason::ShuttingDown, "the service is stopping")
}
