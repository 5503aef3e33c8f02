//! Between protobuf and its JSON, by the descriptors of the public API.

use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use serde_json::{Deserializer, Value};

use super::Call;

/// The request of a call in JSON.
pub(super) fn request(call: &Call<'_>) -> Result<Value> {
    let message = DynamicMessage::decode(method(call)?.input(), call.request)?;
    let options = SerializeOptions::new().skip_default_fields(true);
    Ok(message.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// An answer in JSON as protobuf.
pub(super) fn answer(call: &Call<'_>, json: &Value) -> Result<Vec<u8>> {
    let text = json.to_string();
    let mut reader = Deserializer::from_str(&text);
    let message = DynamicMessage::deserialize(method(call)?.output(), &mut reader);
    Ok(message.with_context(|| format!("an answer to {}: {text}", call.path()))?.encode_to_vec())
}

fn method(call: &Call<'_>) -> Result<MethodDescriptor> {
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    let pool =
        POOL.get_or_init(|| DescriptorPool::decode(proto::PUBLIC_DESCRIPTORS).map_err(|error| error.to_string()));
    let pool = pool.as_ref().map_err(|error| anyhow!("the descriptors: {error}"))?;
    let service = pool.get_service_by_name(call.service).with_context(|| format!("no service {}", call.service))?;
    service.methods().find(|method| method.name() == call.method).with_context(|| format!("no method {}", call.path()))
}
