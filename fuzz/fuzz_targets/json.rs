//! JSON to protobuf and back, for every message that can be sent to the gateway.
//!
//! What was taken must mean the same when it is said in JSON again.

#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use gateway::descriptors::Methods;
use gateway::fuzzing::{from_json, to_json};
use libfuzzer_sys::fuzz_target;
use prost_reflect::{DynamicMessage, MessageDescriptor};

/// By name, so that a corpus keeps its meaning.
static MESSAGES: LazyLock<Vec<MessageDescriptor>> = LazyLock::new(|| {
    let methods = Methods::load().expect("the built-in descriptors");
    let mut messages: Vec<_> = methods.iter().flat_map(|method| [method.input.clone(), method.output.clone()]).collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    messages.dedup_by(|a, b| a.full_name() == b.full_name());
    messages
});

fuzz_target!(|data: &[u8]| {
    let [which, direction, body @ ..] = data else { return };
    let message = &MESSAGES[usize::from(*which) % MESSAGES.len()];
    let body = Bytes::copy_from_slice(body);
    if direction % 2 == 1 {
        let _ = to_json(message, body);
        return;
    }
    let Some(proto) = from_json(message, body) else { return };
    let Some(json) = to_json(message, proto.clone()) else { return };
    let again = from_json(message, json).expect("our own JSON");
    let read = |bytes: Bytes| DynamicMessage::decode(message.clone(), bytes).expect("our own protobuf");
    // NaN is not equal to itself.
    assert!(proto == again || read(proto) == read(again), "JSON says something else");
});
