//! A connection whose handshake is done, and who is at its other end.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::PeerIdentity;
use crate::guard::Guarded;

/// Who is at the other end of a connection. tonic puts it into the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    remote_addr: SocketAddr,
    identity: Option<PeerIdentity>,
}

impl PeerInfo {
    /// The address at the other end of the TCP connection.
    pub fn remote_addr(&self) -> SocketAddr {
        self.remote_addr
    }

    /// Who the peer proved to be. Always there with mutual TLS, never with server-only TLS.
    pub fn identity(&self) -> Option<&PeerIdentity> {
        self.identity.as_ref()
    }
}

/// A TLS connection, as accepted.
#[derive(Debug)]
pub struct TlsIo {
    tls: Guarded<TlsStream<TcpStream>>,
    peer: PeerInfo,
}

impl TlsIo {
    pub(super) fn new(tls: Guarded<TlsStream<TcpStream>>, remote_addr: SocketAddr) -> io::Result<Self> {
        // rustls keeps the certificates of a peer only once they are verified.
        let leaf = tls.get_ref().get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = leaf.map(PeerIdentity::from_certificate).transpose().map_err(io::Error::other)?;
        Ok(Self { tls, peer: PeerInfo { remote_addr, identity } })
    }

    /// Who is at the other end.
    pub fn peer_info(&self) -> &PeerInfo {
        &self.peer
    }

    /// Whether the client chose HTTP/2. Without a choice HTTP/1.1 is meant.
    pub fn is_http2(&self) -> bool {
        self.tls.get_ref().get_ref().1.alpn_protocol() == Some(super::H2)
    }
}

impl Connected for TlsIo {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
