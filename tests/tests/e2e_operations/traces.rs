//! What an operator sees of it: logs that one call can be followed through, and metrics.

use std::process::Command;

use tests::client::Client;
use tests::cluster::signature_and_secret;
use tests::lab::Lab;
use tests::tools::run;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_follows_the_call_through_all_three_processes() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    for face in tests::client::faces(&lab.cluster).unwrap() {
        let request_id = format!("e2e-{}", face.name().to_lowercase().replace(' ', "-"));
        // The API's public port is none of the gateway's business.
        let through_gateway = !face.name().ends_with("to the API");
        let client = Client::new(face, lab.cluster.identity().admin_token().unwrap()).traced(&request_id);
        let taken = client.done(client.create(&guest.vm(), "traced", "").await).await.unwrap();
        for (process, log) in lab.cluster.logs().unwrap() {
            let expected = through_gateway || process != "snapshot-gateway";
            assert_eq!(log.contains(&request_id), expected, "{process}'s log and {request_id}:\n{log}");
        }
        client.done(client.delete(&taken.snapshot, proto::v1::DeleteScope::Only).await).await.unwrap();
    }
    let token = lab.cluster.identity().admin_token().unwrap();
    Client::grpc(&lab.cluster, token.clone()).unwrap().vms().await.unwrap();
    for (process, log) in lab.cluster.logs().unwrap() {
        assert!(!signature_and_secret(&token).any(|private| log.contains(private)), "{process} logs tokens");
        assert!(!log.contains("panicked"), "{process}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_there_for_every_process() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    lab.take(&guest, "counted").await.unwrap();
    let ports = lab.cluster.ports();
    let agent = lab.cluster.host(tests::lab::HOST).unwrap().metrics_port();
    for (port, metric) in [
        (ports.gateway_metrics, "snapshot_gateway_calls_total"),
        (ports.api_metrics, "snapshot_api_requests_total"),
        (agent, "snapshot_agent_"),
    ] {
        let text = run(Command::new("curl").args(["-sf", &format!("http://127.0.0.1:{port}/metrics")])).unwrap();
        assert!(text.lines().any(|line| line.starts_with(metric)), "{metric} in:\n{text}");
    }
}
