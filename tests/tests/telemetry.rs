//! Traces by OpenTelemetry: what a collector gets, what it does not, and that nobody waits for it.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tests::client::Client;
use tests::cluster::{Cluster, HostPlan, Surroundings, signature_and_secret};
use tests::lab::{HOST, Lab};
use tonic::{Request, Response, Status};

/// How long until what happened is told.
const TOLD: Duration = Duration::from_secs(60);
/// What a process may take to end: its own bound, and the two seconds of the last spans, on a machine that is busy.
const ENDS: Duration = Duration::from_secs(14);

/// A collector's port.
struct Told(Option<u16>);

impl Surroundings for Told {
    fn collector(&self) -> Option<u16> {
        self.0
    }
}

fn lab(collector: Option<u16>) -> Lab {
    let cluster = Cluster::start_in(vec![HostPlan::daemon(HOST).unwrap()], &mut Told(collector)).unwrap();
    Lab { client: Client::admin(&cluster).unwrap(), cluster }
}

/// All that came, each with the name of the service that it is from.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Takes spans on a port of its own until the test ends.
    fn start() -> (Self, u16) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let collector = Self::default();
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)));
        (collector, port)
    }

    fn spans(&self) -> Vec<(String, Span)> {
        let all = self.0.lock().unwrap().clone();
        let from = all.into_iter().flat_map(|request| request.resource_spans).flat_map(|from| {
            let resource = from.resource.unwrap_or_default();
            let service = values(&resource.attributes).remove("service.name").unwrap_or_default();
            let spans = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |span| (service.clone(), span)).collect::<Vec<_>>()
        });
        from.collect()
    }

    /// The span of this service for this method, once it is there.
    async fn span(&self, service: &str, method: &str) -> Span {
        let begun = Instant::now();
        loop {
            let found = self.spans().into_iter().find(|(from, span)| from == service && span.name.ends_with(method));
            if let Some((_, span)) = found {
                return span;
            }
            assert!(begun.elapsed() < TOLD, "no {method} of {service} among {:#?}", self.spans());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn values(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |one: &KeyValue| match one.value.clone().and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        other => format!("{other:?}"),
    };
    attributes.iter().map(|one| (one.key.clone(), value(one))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_create_is_one_trace_and_tells_ids_alone() {
    let (collector, port) = Collector::start();
    let mut lab = lab(Some(port));
    let guest = lab.guest("student").await.unwrap();
    let begun = lab.client.create(&guest.vm(), "secretname", "secretdescription").await;
    let operation = lab.client.done(begun).await.unwrap();

    let gateway = collector.span("snapshot-gateway", "CreateSnapshot").await;
    let api = collector.span("snapshot-api", "CreateSnapshot").await;
    let agent = collector.span("snapshot-agent", "StartOperation").await;
    assert_eq!(gateway.trace_id.len(), 16);
    assert_eq!((&api.trace_id, &agent.trace_id), (&gateway.trace_id, &gateway.trace_id));
    assert!(gateway.parent_span_id.is_empty(), "{gateway:?}");
    assert_eq!((&api.parent_span_id, &agent.parent_span_id), (&gateway.span_id, &api.span_id));
    for span in [&api, &agent] {
        let told = values(&span.attributes);
        assert!(operation.name.ends_with(&told["ravada.operation"]), "{told:?}");
        assert!(guest.vm().ends_with(&told["ravada.vm"]), "{told:?}");
    }

    // The agent's came out although it may reach next to nothing.
    let log = std::fs::read_to_string(lab.cluster.host_mut(HOST).unwrap().agent().log()).unwrap();
    assert!(log.contains("reach is narrowed to what it needs"), "{log}");

    // Who asked, by what right, and what people wrote stay here.
    let known = ["otel.kind", "rpc.system", "rpc.method", "rpc.code", "request_id", "ravada.operation", "ravada.vm"];
    for (_, span) in collector.spans() {
        let told = values(&span.attributes);
        let strange: Vec<_> = told.keys().filter(|key| !known.contains(&key.as_str())).collect();
        assert!(strange.is_empty() && span.events.is_empty(), "{span:?}");
    }
    let identity = lab.cluster.identity();
    let token = identity.admin_token().unwrap();
    let mut private = identity.secrets().unwrap();
    private.extend(["secretname", "secretdescription", "Bearer", &operation.actor].map(str::to_owned));
    private.extend(signature_and_secret(&token).map(str::to_owned));
    assert!(!operation.actor.is_empty());
    for request in collector.0.lock().unwrap().iter() {
        let bytes = request.encode_to_vec();
        let text = String::from_utf8_lossy(&bytes);
        assert!(private.iter().all(|word| !text.contains(word.as_str())), "{text}");
    }
}

/// Creates, and then ends each process within its bound.
async fn works_and_ends(mut lab: Lab) {
    let guest = lab.guest("student").await.unwrap();
    let snapshot = lab.take(&guest, "one").await.unwrap();
    assert_eq!(lab.agreed(&guest).await.unwrap(), [snapshot]);
    let begun = Instant::now();
    assert!(lab.cluster.gateway().stop().unwrap().success());
    assert!(begun.elapsed() < ENDS, "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(lab.cluster.api().stop().unwrap().success());
    assert!(begun.elapsed() < ENDS, "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(lab.cluster.host_mut(HOST).unwrap().agent().stop().unwrap().success());
    assert!(begun.elapsed() < ENDS, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_keeps_nobody() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let held = std::thread::spawn({
        let silent = silent.try_clone().unwrap();
        move || silent.accept().map(|(connection, _)| connection)
    });
    works_and_ends(lab(Some(port))).await;
    // That it was connected to is what makes it the test that it is.
    assert!(held.join().unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_keeps_nobody() {
    let port = tests::ports::free().unwrap();
    works_and_ends(lab(Some(port))).await;
}
