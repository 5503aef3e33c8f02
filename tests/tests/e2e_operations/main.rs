//! What surrounds the story: operations and their replays, watches, pages, changes of what is written about a snapshot,
//! other tools' snapshots, and what an operator sees.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use proto::v1;
use tests::client::{Client, OPERATIONS, Refusal, SNAPSHOTS};
use tests::guest::Guest;

mod changes;
mod hosts;
mod replays;
mod traces;
mod watches;

fn create(guest: &Guest, name: &str, request_id: &str) -> v1::CreateSnapshotRequest {
    let snapshot = v1::Snapshot { display_name: name.to_owned(), ..Default::default() };
    let request_id = request_id.to_owned();
    v1::CreateSnapshotRequest { parent: guest.vm(), snapshot: Some(snapshot), request_id, ..Default::default() }
}

async fn snapshot_page(client: &Client, guest: &Guest, size: i32, token: &str) -> v1::ListSnapshotsResponse {
    let page_token = token.to_owned();
    let request = v1::ListSnapshotsRequest { parent: guest.vm(), page_size: size, page_token };
    client.call((SNAPSHOTS, "ListSnapshots"), &request).await.unwrap()
}

async fn operations(
    client: &Client,
    request: v1::ListOperationsRequest,
) -> Result<v1::ListOperationsResponse, Refusal> {
    client.call((OPERATIONS, "ListOperations"), &request).await
}

async fn operations_of(client: &Client, guest: &Guest) -> Vec<v1::Operation> {
    let request = v1::ListOperationsRequest { vm: guest.vm(), ..Default::default() };
    operations(client, request).await.unwrap().operations
}
