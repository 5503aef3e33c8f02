//! A client that need not keep to HTTP/2: frames are bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tests::client::Grpc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const GET_VM: &str = "/ravada.snapshot.v1.SnapshotService/GetVm";

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A port under attack.
#[derive(Clone)]
pub struct Target {
    pub name: &'static str,
    port: u16,
    ca: Option<PathBuf>,
}

impl Target {
    pub fn plain(name: &'static str, port: u16) -> Self {
        Self { name, port, ca: None }
    }

    pub fn tls(name: &'static str, port: u16, ca: &Path) -> Self {
        Self { name, port, ca: Some(ca.to_owned()) }
    }

    /// An ordinary client, with a connection of its own.
    pub fn client(&self, from: Ipv4Addr) -> Grpc {
        match &self.ca {
            None => Grpc::plain_from(from.into(), self.port),
            Some(ca) => Grpc::tls_from(from.into(), self.port, ca),
        }
        .unwrap()
    }

    pub async fn tcp(&self, from: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.into(), 0)).unwrap();
        let tcp = socket.connect(SocketAddr::from(([127, 0, 0, 1], self.port))).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    }

    /// A connection whose TLS handshake is done, where there is one.
    pub async fn connect(&self, from: Ipv4Addr) -> std::io::Result<Box<dyn Io>> {
        let tcp = self.tcp(from).await;
        let Some(ca) = &self.ca else { return Ok(Box::new(tcp)) };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Box::new(connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await?))
    }

    /// An HTTP/2 connection: preface and settings are sent.
    pub async fn http2(&self, from: Ipv4Addr) -> Raw {
        let mut io = self.connect(from).await.unwrap();
        let begin = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
        io.write_all(&begin).await.unwrap();
        io.flush().await.unwrap();
        Raw { io, buffer: Vec::new() }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The head of a gRPC call, as literals without an index (RFC 7541, 6.2.2).
pub fn head(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "{text}");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A frame that has come.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub struct Raw {
    pub io: Box<dyn Io>,
    buffer: Vec<u8>,
}

impl Raw {
    pub async fn send(&mut self, frames: &[u8]) -> std::io::Result<()> {
        self.io.write_all(frames).await?;
        self.io.flush().await
    }

    /// The next frame; none once the connection has ended.
    pub async fn next(&mut self, within: Duration) -> Option<Frame> {
        loop {
            if let [a, b, c, kind, flags, id @ ..] = self.buffer.as_slice()
                && let (length, Some(id)) =
                    (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c), id.get(..4))
                && self.buffer.len() >= 9 + length
            {
                let stream = u32::from_be_bytes(id.try_into().unwrap());
                let (kind, flags) = (*kind, *flags);
                let payload = self.buffer[9..9 + length].to_vec();
                self.buffer.drain(..9 + length);
                return Some(Frame { kind, flags, stream, payload });
            }
            let mut bytes = [0; 4096];
            match timeout(within, self.io.read(&mut bytes)).await.expect("a frame, or the end, in time") {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.buffer.extend(&bytes[..read]),
            }
        }
    }
}

/// Whether the other side ends the connection in time. What it says meanwhile is read.
pub async fn ends(io: &mut (impl AsyncRead + Unpin + ?Sized), within: Duration) -> bool {
    let mut bytes = [0; 4096];
    let end = async {
        while let Ok(read) = io.read(&mut bytes).await {
            if read == 0 {
                return;
            }
        }
    };
    timeout(within, end).await.is_ok()
}
