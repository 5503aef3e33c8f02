//! A stop: calls end, streams are ended, nothing new begins.

use std::time::Instant;

use http::StatusCode;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{GET_VM, PATIENCE, WATCH_VM, World, api, detail, frame, frames};

#[tokio::test]
async fn calls_end_and_streams_are_told_to_come_back() {
    let world = World::start().await;
    let begun = Instant::now();
    let call = world.json(GET_VM, r#"{"name":"vms/brief"}"#);
    let body = frame(br#"{"name":"vms/brief"}"#);
    let watch = world.post(WATCH_VM, "application/connect+json", &body);
    let stop = async {
        let _both = api::BEGUN.acquire_many(2).await.expect("both have arrived");
        world.stopping.cancel();
    };
    let (call, watch, ()) = tokio::join!(call, watch, stop);
    assert_eq!(call.status, StatusCode::OK);
    let frames = frames(&watch.body);
    let end: Value = serde_json::from_slice(&frames.last().expect("an end").1).expect("JSON");
    assert_eq!(end["error"]["code"], "unavailable");
    assert_eq!(detail(&end["error"], "google.rpc.ErrorInfo")["reason"], "GATEWAY_SHUTTING_DOWN");

    let address = world.address;
    timeout(PATIENCE, world.server).await.expect("stopped in time").expect("no panic");
    assert!(begun.elapsed().as_secs() < 5);
    assert!(TcpStream::connect(address).await.is_err());
}
