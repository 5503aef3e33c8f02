//! gRPC: through the gateway without TLS, and straight to the API's public port with TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::bytes::{Buf as _, BufMut as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use tower::service_fn;

use super::{Call, Face, Refusal};
use crate::cluster::Leaf;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CONNECT: Duration = Duration::from_secs(10);

/// gRPC over HTTP/2. Clones share the connection.
#[derive(Clone)]
pub struct Grpc {
    name: &'static str,
    channel: Channel,
}

impl Grpc {
    /// To the gateway, without TLS. Connects at the first call.
    pub fn plain(port: u16) -> Result<Self> {
        Self::plain_from(LOCALHOST, port)
    }

    /// As [`Grpc::plain`], calling from a certain address.
    pub fn plain_from(from: IpAddr, port: u16) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.connect_timeout(CONNECT);
        let channel = endpoint.local_address(Some(from)).connect_lazy();
        Ok(Self { name: "gRPC through the gateway", channel })
    }

    /// To the API's public port, trusting the CAs in the file `ca` alone. Connects at the first call.
    pub fn tls(port: u16, ca: &Path) -> Result<Self> {
        Self::tls_from(LOCALHOST, port, ca)
    }

    /// As [`Grpc::tls`], calling from a certain address.
    pub fn tls_from(from: IpAddr, port: u16, ca: &Path) -> Result<Self> {
        Self::secure("gRPC to the API", from, port, ca, None)
    }

    /// To a port of the inner hops, with a certificate. Connects at the first call.
    pub fn mutual(port: u16, ca: &Path, leaf: &Leaf) -> Result<Self> {
        Self::secure("gRPC with a certificate", LOCALHOST, port, ca, Some(leaf))
    }

    fn secure(name: &'static str, from: IpAddr, port: u16, ca: &Path, leaf: Option<&Leaf>) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let unread = || format!("cannot read {}", ca.display());
        for certificate in CertificateDer::pem_file_iter(ca).with_context(unread)? {
            roots.add(certificate.with_context(unread)?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots);
        let mut config = match leaf {
            None => config.with_no_client_auth(),
            Some(leaf) => {
                let certificate = CertificateDer::from_pem_file(&leaf.certificate)?;
                config.with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_file(&leaf.key)?)?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let server = ServerName::try_from("localhost")?;
        // tonic's own TLS is a feature that no server of ours uses; this keeps it out of the build.
        let connect = service_fn(move |_: Uri| {
            let (connector, server) = (connector.clone(), server.clone());
            async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(from, 0))?;
                let tcp = socket.connect(SocketAddr::new(LOCALHOST, port)).await?;
                tcp.set_nodelay(true)?;
                std::io::Result::Ok(TokioIo::new(connector.connect(server, tcp).await?))
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://localhost:{port}"))?.connect_timeout(CONNECT);
        Ok(Self { name, channel: endpoint.connect_with_connector_lazy(connect) })
    }

    /// The connection, for a caller with calls of its own.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A call with a stream of answers, to be read as they come.
    pub async fn open(&self, call: Call<'_>) -> Result<Streaming<Vec<u8>>, Refusal> {
        let (mut client, request, path) = self.ready(call).await?;
        Ok(client.server_streaming(request, path, Bytes).await?.into_inner())
    }

    async fn ready(
        &self,
        call: Call<'_>,
    ) -> Result<(tonic::client::Grpc<Channel>, Request<Vec<u8>>, PathAndQuery), Refusal> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Refusal::harness(format!("{}: {error:?}", self.name)))?;
        let mut request = Request::new(call.request.to_vec());
        for (name, value) in call.headers() {
            request.metadata_mut().insert(name, value.parse().map_err(Refusal::harness)?);
        }
        Ok((client, request, format!("/{}", call.path()).parse().map_err(Refusal::harness)?))
    }
}

#[async_trait]
impl Face for Grpc {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn unary(&self, call: Call<'_>) -> Result<Vec<u8>, Refusal> {
        let (mut client, request, path) = self.ready(call).await?;
        Ok(client.unary(request, path, Bytes).await?.into_inner())
    }

    async fn stream(&self, call: Call<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
        let mut stream = self.open(call).await?;
        let mut all = Vec::new();
        while let Some(message) = stream.message().await? {
            all.push(message);
        }
        Ok(all)
    }
}

/// Messages as they are on the wire: [`super::Client`] encodes and decodes them for every face alike.
#[derive(Debug, Clone, Copy)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}
