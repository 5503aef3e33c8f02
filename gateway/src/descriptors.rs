//! What can be called, read from descriptors: the public package, gRPC health and reflection.

use std::collections::HashMap;
use std::sync::Arc;

use connectrpc::MethodKind;
use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor, ServiceDescriptor};

/// The public package with all it imports, as an encoded `google.protobuf.FileDescriptorSet`.
pub static PUBLIC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.fds"));

const PUBLIC_PACKAGE: &str = "ravada.snapshot.v1";

/// Why the built-in descriptors cannot be used. A test holds that it does not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A descriptor set does not decode.
    #[error("the built-in descriptors do not decode: {0}")]
    Pool(#[from] prost_reflect::DescriptorError),
    /// A method's name does not make a path.
    #[error("a method's name does not make a path: {0}")]
    Path(#[from] http::uri::InvalidUri),
    /// The reflection service does not take the descriptors.
    #[error("the reflection service does not take the descriptors: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Who answers a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answerer {
    /// The API.
    Api,
    /// The gateway itself: reflection, so that it shows what can be reached through it and nothing else.
    Reflection,
    /// The gateway itself: the older reflection service that grpcurl speaks.
    ReflectionV1Alpha,
}

/// A method that can be called through the gateway.
#[derive(Debug)]
pub struct Method {
    /// Its path, such as `/ravada.snapshot.v1.SnapshotService/GetVm`.
    pub path: PathAndQuery,
    /// The path without the leading slash, as the label of metrics and logs.
    pub name: Arc<str>,
    /// Unary or streaming.
    pub kind: MethodKind,
    /// What it takes.
    pub input: MessageDescriptor,
    /// What it answers.
    pub output: MessageDescriptor,
    /// Who answers it.
    pub answerer: Answerer,
}

/// Every method that can be called, and the types of messages and of error details.
#[derive(Debug, Clone)]
pub struct Methods {
    by_name: Arc<HashMap<Arc<str>, Arc<Method>>>,
    pool: DescriptorPool,
}

impl Methods {
    /// Reads the built-in descriptors.
    ///
    /// # Errors
    /// When they do not decode, which a test rules out.
    pub fn load() -> Result<Self, Error> {
        let mut pool = DescriptorPool::decode(PUBLIC)?;
        pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)?;
        pool.decode_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)?;
        pool.decode_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)?;
        pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)?;

        let mut by_name = HashMap::new();
        for service in pool.services() {
            let Some(answerer) = answerer(&service) else { continue };
            for method in service.methods() {
                let method = Arc::new(describe(&method, answerer)?);
                by_name.insert(Arc::clone(&method.name), method);
            }
        }
        Ok(Self { by_name: Arc::new(by_name), pool })
    }

    /// The method of this name, `{package}.{Service}/{Method}`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Method>> {
        self.by_name.get(name)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Method>> {
        self.by_name.values()
    }

    /// The types that they, and the details of errors, are made of.
    #[must_use]
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }
}

/// Who answers a service's methods, and none for a service that is not reached through the gateway.
fn answerer(service: &ServiceDescriptor) -> Option<Answerer> {
    match service.full_name() {
        "grpc.health.v1.Health" => Some(Answerer::Api),
        "grpc.reflection.v1.ServerReflection" => Some(Answerer::Reflection),
        "grpc.reflection.v1alpha.ServerReflection" => Some(Answerer::ReflectionV1Alpha),
        _ if service.package_name() == PUBLIC_PACKAGE => Some(Answerer::Api),
        _ => None,
    }
}

fn describe(method: &MethodDescriptor, answerer: Answerer) -> Result<Method, Error> {
    let name = format!("{}/{}", method.parent_service().full_name(), method.name());
    Ok(Method {
        path: PathAndQuery::try_from(format!("/{name}"))?,
        name: name.into(),
        kind: match (method.is_client_streaming(), method.is_server_streaming()) {
            (false, false) => MethodKind::Unary,
            (false, true) => MethodKind::ServerStreaming,
            (true, false) => MethodKind::ClientStreaming,
            (true, true) => MethodKind::BidiStreaming,
        },
        input: method.input(),
        output: method.output(),
        answerer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_services_and_the_standard_ones_can_be_called() {
        let methods = Methods::load().expect("the built-in descriptors");
        let mut services: Vec<_> = methods.iter().map(|m| m.name.split('/').next().unwrap_or_default()).collect();
        services.sort_unstable();
        services.dedup();
        assert_eq!(
            services,
            [
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
                "ravada.snapshot.v1.AuditService",
                "ravada.snapshot.v1.HostService",
                "ravada.snapshot.v1.OperationService",
                "ravada.snapshot.v1.SnapshotService",
            ]
        );
        let watch = methods.get("ravada.snapshot.v1.SnapshotService/WatchVm").expect("WatchVm");
        assert_eq!(watch.kind, MethodKind::ServerStreaming);
    }
}
