//! JSON to protobuf and back, by descriptors.
//!
//! A field that the descriptor does not know is refused rather than ignored: a misspelt `validateOnly` or `scope` must
//! not turn a question into a deletion. So is a key that is there twice ([`duplicates`]).

mod duplicates;

use bytes::Bytes;
use connectrpc::CodecFormat;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor};

use crate::errors::Refusal;

/// The protobuf form of a request.
pub(crate) fn request(format: CodecFormat, message: &MessageDescriptor, body: Bytes) -> Result<Bytes, Refusal> {
    if format == CodecFormat::Proto {
        return Ok(body);
    }
    if let Some(path) = duplicates::find(&body, message) {
        return Err(Refusal::DuplicateKey { path });
    }
    let mut json = serde_json::Deserializer::from_slice(&body);
    let message = DynamicMessage::deserialize(message.clone(), &mut json)
        .and_then(|message| json.end().map(|()| message))
        .map_err(|error| Refusal::Malformed(error.to_string()))?;
    Ok(message.encode_to_vec().into())
}

/// The form of an answer that the caller asked for.
pub(crate) fn response(format: CodecFormat, message: &MessageDescriptor, body: Bytes) -> Result<Bytes, Refusal> {
    if format == CodecFormat::Proto {
        return Ok(body);
    }
    let message =
        DynamicMessage::decode(message.clone(), body).map_err(|error| Refusal::BadAnswer(error.to_string()))?;
    let json = serde_json::to_vec(&message).map_err(|error| Refusal::BadAnswer(error.to_string()))?;
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::Methods;

    fn input() -> MessageDescriptor {
        let methods = Methods::load().expect("the built-in descriptors");
        methods.get("ravada.snapshot.v1.SnapshotService/DeleteSnapshot").expect("the method").input.clone()
    }

    #[test]
    fn json_becomes_protobuf_and_back() {
        let json = br#"{"name":"vms/1","scope":"DELETE_SCOPE_SUBTREE","validate_only":true}"#;
        let proto = request(CodecFormat::Json, &input(), Bytes::from_static(json)).expect("a request");
        let back = response(CodecFormat::Json, &input(), proto).expect("an answer");
        assert_eq!(&back[..], br#"{"name":"vms/1","scope":"DELETE_SCOPE_SUBTREE","validateOnly":true}"#);
    }

    #[test]
    fn what_is_not_such_a_message_is_refused() {
        for json in [
            &br#"{"nmae":"vms/1"}"#[..],
            br#"{"name":1}"#,
            br#"{"name":"a"} x"#,
            br#"{"scope":"EVERYTHING"}"#,
            b"[]",
            b"",
            b"\xff",
        ] {
            let refusal = request(CodecFormat::Json, &input(), Bytes::from_static(json));
            assert!(matches!(refusal, Err(Refusal::Malformed(_))), "{json:?}: {refusal:?}");
        }
        let twice = request(CodecFormat::Json, &input(), Bytes::from_static(br#"{"name":"vms/1","name":"vms/2"}"#));
        assert_eq!(twice, Err(Refusal::DuplicateKey { path: "name".to_owned() }));
    }
}
