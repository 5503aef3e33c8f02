//! A connection, decrypted, that ends when its client says nothing or sends too many control frames.
//!
//! 1. Until the HTTP/2 preface and the first frame, or a byte that cannot be of the preface, has come, the deadline of
//!    the preface runs. HTTP/1 is left alone from there: hyper has a time-out for its heads.
//! 2. In HTTP/2 each frame that counts takes from the budget. When nothing is left the client gets a GOAWAY with
//!    ENHANCE_YOUR_CALM, if one fits between the frames that hyper has written, and the connection ends.
//! 3. While a block of headers is incomplete, a deadline runs for it: until it is complete no other frame may come.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::Settings;
use crate::frames::{Budget, PREFACE, Scanner};
use crate::notices::{Limit, Notices};

/// GOAWAY of no particular stream, with ENHANCE_YOUR_CALM (RFC 9113, 6.8 and 7).
const GOAWAY: &[u8; 17] = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x0b";

/// What the client has begun to speak.
#[derive(Debug)]
enum Speech {
    /// So many bytes of the preface.
    Preface(usize),
    Http1,
    Http2 {
        begun: bool,
        continued: bool,
        headers: bool,
    },
}

/// The wrapper of a connection.
#[derive(Debug)]
pub(crate) struct GuardedIo<I> {
    io: I,
    peer: IpAddr,
    speech: Speech,
    received: Scanner,
    sent: Scanner,
    budget: Budget,
    /// Whether the peer sends the calls of many clients, each of which may cancel its own. Each call counts for its client.
    is_proxy: bool,
    burst: u32,
    /// Runs while the preface or a block of headers is incomplete.
    deadline: Option<(Limit, Pin<Box<Sleep>>)>,
    limit: Duration,
    notices: Arc<Notices>,
}

impl<I> GuardedIo<I> {
    pub(crate) fn new(io: I, peer: IpAddr, settings: &Settings, notices: Arc<Notices>) -> Self {
        Self {
            io,
            peer,
            speech: Speech::Preface(0),
            received: Scanner::default(),
            sent: Scanner::default(),
            budget: Budget::new(settings.control_frame_burst, settings.control_frames_per_second),
            is_proxy: settings.trusted_proxies.contains(peer.to_canonical()),
            burst: settings.control_frame_burst,
            deadline: Some((Limit::Preface, Box::pin(sleep(settings.receive)))),
            limit: settings.receive,
            notices,
        }
    }

    /// Counts what was received. An error when the budget is used up.
    fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Limit> {
        if let Speech::Preface(matched) = &mut self.speech {
            let expected = &PREFACE[*matched..];
            let common = expected.iter().zip(bytes).take_while(|(one, other)| one == other).count();
            *matched += common;
            let (complete, differs) = (common == expected.len(), common < expected.len().min(bytes.len()));
            bytes = &bytes[common..];
            if differs {
                (self.speech, self.deadline) = (Speech::Http1, None);
            } else if complete {
                self.speech = Speech::Http2 { begun: false, continued: false, headers: false };
            }
        }
        let Speech::Http2 { begun, continued, headers } = &mut self.speech else { return Ok(()) };
        self.budget.refill();
        let (budget, is_proxy, mut exceeded) = (&mut self.budget, self.is_proxy, false);
        self.received.scan(bytes, |head| {
            (*begun, *headers) = (true, head.is_headers());
            *continued = head.is_continued();
            let counts = head.is_control() && !(is_proxy && head.is_reset());
            exceeded |= counts && !budget.take();
        });
        let incomplete = *continued || (*headers && self.received.in_payload());
        if exceeded {
            return Err(Limit::ControlFrames);
        }
        match (&self.deadline, incomplete) {
            _ if !*begun => {}
            (_, false) => self.deadline = None,
            (Some((Limit::Headers, _)), true) => {}
            (_, true) => self.deadline = Some((Limit::Headers, Box::pin(sleep(self.limit)))),
        }
        Ok(())
    }

    /// Counts what was sent.
    fn send(&mut self, bytes: &[u8]) {
        if let Speech::Http2 { .. } = self.speech {
            let budget = &mut self.budget;
            self.sent.scan(bytes, |head| {
                if !head.is_control() {
                    budget.responded();
                }
            });
        }
    }
}

impl<I: AsyncWrite + Unpin> GuardedIo<I> {
    /// Ends the connection for a limit.
    fn end(&mut self, cx: &mut Context<'_>, limit: Limit) -> io::Error {
        let most = if limit == Limit::ControlFrames { self.burst.into() } else { self.limit.as_secs() };
        self.notices.reached(limit, self.peer, most);
        if matches!(self.speech, Speech::Http2 { .. }) && self.sent.at_boundary() {
            // As far as it goes: there is nobody to wait for.
            if let Poll::Ready(Ok(_)) = Pin::new(&mut self.io).poll_write(cx, GOAWAY) {
                let _ = Pin::new(&mut self.io).poll_flush(cx);
            }
        }
        let kind = if limit == Limit::ControlFrames { io::ErrorKind::InvalidData } else { io::ErrorKind::TimedOut };
        io::Error::new(kind, limit.as_str())
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for GuardedIo<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                if let Err(limit) = this.receive(&buf.filled()[before..]) {
                    return Poll::Ready(Err(this.end(cx, limit)));
                }
            }
            other => {
                let over = this.deadline.as_mut().is_some_and(|(_, sleep)| sleep.as_mut().poll(cx).is_ready());
                if let (Poll::Pending, Some((limit, _))) = (&other, this.deadline.take_if(|_| over)) {
                    return Poll::Ready(Err(this.end(cx, limit)));
                }
                return other;
            }
        }
        // What comes a byte at a time is late all the same.
        match this.deadline.take_if(|(_, sleep)| sleep.as_mut().poll(cx).is_ready()) {
            Some((limit, _)) => Poll::Ready(Err(this.end(cx, limit))),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for GuardedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            self.send(&buf[..count.min(buf.len())]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut left)) = written {
            for buf in bufs {
                let count = left.min(buf.len());
                self.send(&buf[..count]);
                left -= count;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
