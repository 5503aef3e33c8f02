//! A peer is let in once and may stay for days: what is known of it may change meanwhile.
//!
//! Every connection between services has a guard that verifies the peer's certificate again whenever the files have
//! changed, and every few seconds for what passes with time. A certificate that was revoked ends its connection at once.
//! One that fails in any other way (its CA was taken away, its time is over) has [`GRACE`]: by then a peer that has a good
//! one calls over a new connection (`client.rs`), and what was under way on the old one has ended.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use crate::reload::{LOOK_INTERVAL, Reloader};

/// How often a peer is verified again when no file has changed.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a connection goes on whose peer does not pass any more and was not revoked.
const GRACE: Duration = Duration::from_secs(10);

/// Resolves when the connection has to end.
type Verdict = Pin<Box<dyn Future<Output = io::Error> + Send>>;

/// A peer's certificate and what came after it.
pub(crate) type Chain = Vec<CertificateDer<'static>>;

/// A connection that ends when its peer does not pass any more.
pub(crate) struct Guarded<S> {
    io: S,
    verdict: Option<Verdict>,
}

impl<S> Guarded<S> {
    /// For a peer that proved nothing.
    pub(crate) fn free(io: S) -> Self {
        Self { io, verdict: None }
    }

    /// For a peer that was let in with `configs` as it is now.
    pub(crate) fn new<T: Send + Sync + 'static>(
        io: S,
        chain: Chain,
        configs: Arc<Reloader<T>>,
        verify: fn(&T, &Chain) -> Result<(), Error>,
    ) -> Self {
        Self { io, verdict: Some(Box::pin(watch(chain, configs, verify))) }
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.io
    }

    /// An error once the connection has to end; until then the caller is woken for it.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.verdict.as_mut().map(|verdict| verdict.as_mut().poll(cx)) {
            Some(Poll::Ready(error)) => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.verdict = Some(Box::pin(std::future::ready(again)));
                Err(error)
            }
            Some(Poll::Pending) | None => Ok(()),
        }
    }
}

async fn watch<T: Send + Sync>(
    chain: Chain,
    configs: Arc<Reloader<T>>,
    verify: fn(&T, &Chain) -> Result<(), Error>,
) -> io::Error {
    let mut seen = configs.current();
    let mut verified = Instant::now();
    let mut failing: Option<Instant> = None;
    loop {
        sleep(LOOK_INTERVAL).await;
        let now = configs.current();
        if Arc::ptr_eq(&now, &seen) && failing.is_none() && verified.elapsed() < AGAIN {
            continue;
        }
        verified = Instant::now();
        failing = match verify(&now, &chain) {
            Ok(()) => None,
            Err(error) => {
                let since = failing.unwrap_or_else(Instant::now);
                let revoked = error == Error::InvalidCertificate(CertificateError::Revoked);
                if revoked || since.elapsed() >= GRACE {
                    tracing::warn!(%error, "a connection ends: its peer's certificate does not pass any more");
                    return io::Error::new(io::ErrorKind::PermissionDenied, error);
                }
                Some(since)
            }
        };
        seen = now;
    }
}

impl<S: fmt::Debug> fmt::Debug for Guarded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("io", &self.io).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
