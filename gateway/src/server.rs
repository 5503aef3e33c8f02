//! The listener: the gateway as a service of a public port (`public_port`), with the headers for pages of other origins.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request};
use limits::FORGET_EVERY;
use mtls::server::Acceptor;
use public_port::Received;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Layer;
use tower::util::BoxCloneSyncService;
use tower_http::cors::CorsLayer;

use crate::config::Config;
use crate::edge::Gateway;

const PREFLIGHT_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Serves the gateway on a listener until `stopping` is cancelled, and then until its calls have ended.
pub async fn serve(
    listener: TcpListener,
    acceptor: Option<Acceptor>,
    config: &Config,
    gateway: Gateway,
    stopping: CancellationToken,
) {
    let limiter = gateway.limiter().clone();
    let forget = async {
        let mut interval = tokio::time::interval(FORGET_EVERY);
        loop {
            interval.tick().await;
            limiter.forget_quiet();
        }
    };
    let inner = tower::service_fn(move |request: Request<Received>| gateway.clone().answer(request));
    let service = match cors(&config.allowed_origins) {
        None => BoxCloneSyncService::new(inner),
        Some(cors) => BoxCloneSyncService::new(cors.layer(inner)),
    };
    tokio::select! {
        () = public_port::serve(listener, acceptor, config.port(), service, stopping) => {}
        () = forget => {}
    }
}

/// Lets pages of the named origins call, and none when there is no name. Tokens are in a header and never in a cookie,
/// so no credentials are allowed.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::try_from(origin.as_str()).ok()).collect();
    if origins.is_empty() {
        return None;
    }
    let name = HeaderName::from_static;
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            name("connect-protocol-version"),
            name("connect-timeout-ms"),
            name("grpc-timeout"),
            name("traceparent"),
            name("x-grpc-web"),
            name("x-request-id"),
            name("x-user-agent"),
        ])
        .expose_headers([
            name("grpc-message"),
            name("grpc-status"),
            name("grpc-status-details-bin"),
            name("retry-after"),
            name("x-request-id"),
        ])
        .max_age(PREFLIGHT_AGE);
    Some(layer)
}
