//! Doors for the fuzzers (`make fuzz`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;

use crate::{Connection, Received, Settings, TrustedProxies};

/// A request as it would have come by a port without limits.
pub fn received(peer: IpAddr, request: Request<Incoming>) -> Request<Received> {
    let long = Duration::from_secs(3600);
    let settings = Settings {
        handshake: long,
        receive: long,
        idle: long,
        age: long,
        drain: long,
        http1: true,
        streams_per_connection: 1000,
        connections: 1000,
        connections_per_address: 1000,
        connections_per_proxy: 1000,
        control_frame_burst: 1000,
        control_frames_per_second: 1000,
        trusted_proxies: TrustedProxies::default(),
    };
    let connection = Connection::new(SocketAddr::new(peer, 1), None, Arc::new(settings));
    let mut request = request.map(|body| Received::new(body, long, peer, Arc::default()));
    request.extensions_mut().insert(connection);
    request
}
