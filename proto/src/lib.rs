//! The wire: generated types of the public and the inner API, their conversions to and from the domain, and the one
//! mapping of errors to [`tonic::Status`].

mod generated {
    //! Laid out as the packages are, because the generated code refers from one to the other by relative paths.
    #![expect(
        missing_docs,
        clippy::allow_attributes_without_reason,
        clippy::large_enum_variant,
        reason = "generated; documented in the .proto files"
    )]

    pub mod agent {
        pub mod v1 {
            tonic::include_proto!("ravada.snapshot.agent.v1");
        }
    }
    pub mod v1 {
        tonic::include_proto!("ravada.snapshot.v1");
    }
}

pub use generated::agent::v1 as agent;
pub use generated::v1;

/// The descriptors of the public services, for reflection and for the gateway's routing: an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));

/// The descriptors of all services, the agents' too. They are not served: only tests have a use for them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod convert;
pub mod names;
pub mod status;

/// The names of the public services.
pub const SERVICES: [&str; 4] = [
    "ravada.snapshot.v1.SnapshotService",
    "ravada.snapshot.v1.OperationService",
    "ravada.snapshot.v1.HostService",
    "ravada.snapshot.v1.AuditService",
];
