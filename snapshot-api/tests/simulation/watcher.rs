//! One who watches a machine through everything, and resumes where the stream broke.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::v1::snapshot_service_client::SnapshotServiceClient;
use proto::v1::watch_vm_response::Event;
use proto::{names, v1};
use tokio::time::{sleep, timeout};

use crate::net;
use crate::world::{API, World};

/// How often it looks whether it is over.
const LOOK: Duration = Duration::from_millis(500);

/// What the watcher knows, from the stream alone.
#[derive(Debug, Default)]
pub struct Mirror {
    pub vm: Option<v1::Vm>,
    pub snapshots: BTreeMap<String, v1::Snapshot>,
}

pub async fn run(world: Arc<World>) {
    let mut client = SnapshotServiceClient::new(net::channel(API));
    let mut resume_token = String::new();
    while !world.over.load(Ordering::Relaxed) {
        let name = names::vm(World::machines()[0]);
        let request = v1::WatchVmRequest { name, resume_token: resume_token.clone() };
        let opened = timeout(Duration::from_secs(10), client.watch_vm(world.request(request))).await;
        if let Ok(Ok(stream)) = opened {
            let mut stream = stream.into_inner();
            while !world.over.load(Ordering::Relaxed) {
                match timeout(LOOK, stream.message()).await {
                    Err(_) => {}
                    Ok(Ok(Some(message))) => {
                        if !message.resume_token.is_empty() {
                            resume_token.clone_from(&message.resume_token);
                        }
                        take_over(&mut world.mirror.lock().unwrap(), message);
                    }
                    Ok(Ok(None) | Err(_)) => break,
                }
            }
        }
        sleep(LOOK).await;
    }
}

fn take_over(mirror: &mut Mirror, message: v1::WatchVmResponse) {
    match message.event {
        Some(Event::Reset(_)) => *mirror = Mirror::default(),
        Some(Event::Vm(vm)) => mirror.vm = Some(vm),
        Some(Event::Snapshot(snapshot)) => {
            mirror.snapshots.insert(snapshot.name.clone(), snapshot);
        }
        Some(Event::RemovedSnapshot(name)) => {
            mirror.snapshots.remove(&name);
        }
        Some(Event::Operation(_) | Event::Synced(_)) | None => {}
    }
}
