//! gRPC as it is, as grpcurl and programs speak it.

use bytes::Bytes;
use gateway::codec::RawCodec;
use http::uri::PathAndQuery;
use serde_json::json;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::support::{GET_VM, WATCH_VM, World, proto, unproto};

async fn channel(world: &World) -> Channel {
    Endpoint::from_shared(format!("http://{}", world.address)).expect("a URI").connect().await.expect("a connection")
}

async fn client(world: &World) -> Grpc<Channel> {
    let mut client = Grpc::new(channel(world).await);
    client.ready().await.expect("ready");
    client
}

fn request(vm: &str) -> Request<Bytes> {
    Request::new(proto("ravada.snapshot.v1.GetVmRequest", json!({ "name": vm })))
}

async fn get(world: &World, path: &'static str, vm: &str) -> Result<Bytes, Status> {
    let path = PathAndQuery::from_static(path);
    client(world).await.unary(request(vm), path, RawCodec).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_call_passes() {
    let world = World::start().await;
    let vm = get(&world, GET_VM, "vms/1").await.expect("an answer");
    assert_eq!(unproto("ravada.snapshot.v1.Vm", &vm)["name"], "vms/1");
}

#[tokio::test]
async fn an_error_keeps_its_details() {
    let world = World::start().await;
    let status = get(&world, GET_VM, "vms/missing").await.expect_err("an error");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no such machine"));
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("ErrorInfo").reason, "VM_NOT_FOUND");
    assert!(details.retry_info().is_some() && details.bad_request().is_some());
    assert!(details.precondition_failure().is_some() && details.quota_failure().is_some());
}

#[tokio::test]
async fn a_stream_passes_and_so_does_its_error() {
    let world = World::start().await;
    let path = PathAndQuery::from_static(WATCH_VM);
    let answer = client(&world).await.server_streaming(request("vms/torn"), path, RawCodec).await.expect("a stream");
    let mut events = answer.into_inner();
    assert!(events.message().await.expect("an event").is_some());
    assert!(events.message().await.expect("an event").is_some());
    let status = events.message().await.expect_err("an error");
    assert_eq!(status.get_details_error_info().expect("ErrorInfo").reason, "VM_NOT_FOUND");
}

#[tokio::test]
async fn a_method_that_is_not_public_is_not_there() {
    let world = World::start().await;
    let status = get(&world, "/ravada.snapshot.agent.v1.AgentService/Execute", "vms/1").await.expect_err("an error");
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.get_details_error_info().expect("ErrorInfo").reason, "METHOD_UNKNOWN");
}

#[tokio::test]
async fn health_is_the_apis() {
    let world = World::start().await;
    let mut health = HealthClient::new(channel(&world).await);
    let answer = health.check(HealthCheckRequest::default()).await.expect("an answer");
    assert_eq!(answer.get_ref().status, 1);
}

/// The services that a reflection service lists; v1 and v1alpha differ in nothing but their names.
macro_rules! listed {
    ($world:expr, $version:ident) => {{
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::$version::{ServerReflectionRequest, ServiceResponse};

        let mut reflection = ServerReflectionClient::new(channel($world).await);
        let list = MessageRequest::ListServices(String::new());
        let question = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let answers = reflection.server_reflection_info(tokio_stream::once(question)).await.expect("a stream");
        let answer = answers.into_inner().message().await.expect("an answer").expect("one message");
        let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
            panic!("{answer:?}");
        };
        let mut names: Vec<_> = services.service.into_iter().map(|ServiceResponse { name }| name).collect();
        names.retain(|name| !name.starts_with("grpc.reflection."));
        names.sort_unstable();
        names
    }};
}

#[tokio::test]
async fn reflection_shows_what_can_be_reached() {
    let world = World::start().await;
    let public = [
        "grpc.health.v1.Health",
        "ravada.snapshot.v1.AuditService",
        "ravada.snapshot.v1.HostService",
        "ravada.snapshot.v1.OperationService",
        "ravada.snapshot.v1.SnapshotService",
    ];
    assert_eq!(listed!(&world, v1), public);
    assert_eq!(listed!(&world, v1alpha), public);
}
