//! A host that has been taken over, as far as the API can tell: it has the certificate of the host's agent, keeps all that it is
//! sent, and passes each call on to the real agent, so that nobody notices.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::client::Grpc;
use crate::cluster::{Cluster, Leaf};
use crate::ports;

/// One call as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// `/{service}/{method}`.
    pub path: String,
    /// The request's headers, `authorization` included.
    pub headers: HeaderMap,
    /// The messages, framed as gRPC does; of a call that goes on, those so far.
    pub body: Vec<u8>,
}

impl Received {
    /// What stands in `authorization` after `Bearer`; empty when there is none.
    pub fn token(&self) -> &str {
        let value = self.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        value.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default()
    }
}

type Calls = Arc<Mutex<Vec<Received>>>;

/// The host. Dropping it closes its port.
#[derive(Debug)]
pub struct Recorder {
    calls: Calls,
    serving: JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Recorder {
    /// Takes the place of a host's agent, which is started again at a port that the API does not know.
    pub async fn in_front_of(cluster: &mut Cluster, host: &str) -> Result<Self> {
        let (port, behind) = (cluster.host(host)?.port(), ports::free()?);
        let config = cluster.agent_config(host);
        let (text, listen) = (fs::read_to_string(&config)?, format!("listen = \"127.0.0.1:{port}\""));
        anyhow::ensure!(text.contains(&listen), "{listen} is not in {text}");
        fs::write(&config, text.replace(&listen, &format!("listen = \"127.0.0.1:{behind}\"")))?;
        cluster.host_mut(host)?.agent().stop()?;

        let identity = cluster.identity();
        let acceptor = TlsAcceptor::from(Arc::new(tls(&identity.agent(host))?));
        let agent = Grpc::mutual(behind, &identity.ca(), &identity.api())?.channel();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("the agent's port")?;
        let calls = Calls::default();
        let serving = tokio::spawn(serve(listener, acceptor, agent, Arc::clone(&calls)));
        cluster.host_mut(host)?.start_agent_again()?;
        Ok(Self { calls, serving })
    }

    /// All that has arrived so far.
    pub fn received(&self) -> Vec<Received> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn tls(leaf: &Leaf) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let certificate = CertificateDer::from_pem_file(&leaf.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&leaf.key)?;
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, agent: Channel, calls: Calls) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, agent, calls) = (acceptor.clone(), agent.clone(), Arc::clone(&calls));
        tokio::spawn(async move {
            // Whoever looks whether the port is open says nothing.
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let service = tower::service_fn(move |request| pass_on(request, agent.clone(), Arc::clone(&calls)));
            let builder = Builder::new(TokioExecutor::new()).http2_only();
            let _ended = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
        });
    }
}

async fn pass_on(
    request: Request<Incoming>,
    agent: Channel,
    calls: Calls,
) -> Result<Response<Body>, tonic::transport::Error> {
    let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
    let number = {
        let mut all = calls.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Received { path, headers, body: Vec::new() });
        all.len() - 1
    };
    let request = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let (Some(data), Ok(mut all)) = (frame.data_ref(), calls.lock()) {
                all[number].body.extend_from_slice(data);
            }
            frame
        }))
    });
    agent.oneshot(request).await
}
