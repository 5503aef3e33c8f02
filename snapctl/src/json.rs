//! Messages of the public API as protobuf's JSON, by its descriptors: the same that the gateway answers.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use crate::failure::Failure;

/// One message, by its name in `ravada.snapshot.v1`, on one line.
pub(crate) fn of<M: Message>(name: &str, message: &M) -> Result<String, Failure> {
    let unknown = |why: String| Failure::Answer(format!("{name} cannot be printed as JSON: {why}"));
    let pool = DescriptorPool::decode(proto::PUBLIC_DESCRIPTORS).map_err(|error| unknown(error.to_string()))?;
    let descriptor = pool.get_message_by_name(&format!("ravada.snapshot.v1.{name}"));
    let descriptor = descriptor.ok_or_else(|| unknown("no such message".to_owned()))?;
    let bytes = message.encode_to_vec();
    let message = DynamicMessage::decode(descriptor, bytes.as_slice()).map_err(|error| unknown(error.to_string()))?;
    serde_json::to_string(&message).map_err(|error| unknown(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proto::v1;

    use super::*;

    #[test]
    fn messages_are_printed_as_the_gateway_does() {
        let snapshot = v1::Snapshot {
            name: "vms/1/snapshots/snap-1".to_owned(),
            size_bytes: 5,
            is_current: true,
            state: v1::SnapshotState::Ready.into(),
            ..Default::default()
        };
        let json = of("Snapshot", &snapshot).unwrap();
        let told =
            r#"{"name":"vms/1/snapshots/snap-1","isCurrent":true,"sizeBytes":"5","state":"SNAPSHOT_STATE_READY"}"#;
        assert_eq!(json, told);
        assert!(of("Snapshots", &snapshot).is_err());
    }
}
