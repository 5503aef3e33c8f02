//! Where calls go: the channel to the API, and the reflection services of the gateway's own.

use std::convert::Infallible;

use mtls::client::PeerChannel;
use tonic::body::Body;

use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::descriptors::{self, Answerer};

/// Any error of a transport.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The transport has no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(#[source] BoxError);

/// Anything that answers gRPC.
pub type Upstream = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, TransportError>;

/// The API behind a channel.
#[must_use]
pub fn from_channel(channel: impl Into<PeerChannel>) -> Upstream {
    BoxCloneSyncService::new(channel.into().map_err(|error| TransportError(error.into())))
}

fn local<S>(service: S) -> Upstream
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    BoxCloneSyncService::new(service.map_err(|never| match never {}))
}

/// All that answers a call.
#[derive(Clone)]
pub(crate) struct Upstreams {
    api: Upstream,
    reflection: Upstream,
    reflection_v1alpha: Upstream,
}

impl Upstreams {
    pub(crate) fn new(api: Upstream) -> Result<Self, descriptors::Error> {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors::PUBLIC)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // The details of errors, so that a caller that asks can read them.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        Ok(Self {
            api,
            reflection: local(builder().build_v1()?),
            reflection_v1alpha: local(builder().build_v1alpha()?),
        })
    }

    pub(crate) fn of(&self, answerer: Answerer) -> Upstream {
        match answerer {
            Answerer::Api => self.api.clone(),
            Answerer::Reflection => self.reflection.clone(),
            Answerer::ReflectionV1Alpha => self.reflection_v1alpha.clone(),
        }
    }
}
