//! Doors for the fuzzers (`make fuzz`) to what is otherwise inside.

use std::convert::Infallible;
use std::net::IpAddr;

use bytes::Bytes;
use connectrpc::CodecFormat;
use http::{Request, Response};
use hyper::body::Incoming;
use prost_reflect::MessageDescriptor;
use tonic::body::Body;

use crate::{Gateway, transcode};

/// JSON to protobuf; `None` where it is refused.
pub fn from_json(message: &MessageDescriptor, json: Bytes) -> Option<Bytes> {
    transcode::request(CodecFormat::Json, message, json).ok()
}

/// Protobuf to JSON; `None` where it cannot be said in JSON.
pub fn to_json(message: &MessageDescriptor, proto: Bytes) -> Option<Bytes> {
    transcode::response(CodecFormat::Json, message, proto).ok()
}

/// What the gateway answers.
pub async fn answer(gateway: Gateway, peer: IpAddr, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    gateway.answer(public_port::fuzzing::received(peer, request)).await
}
