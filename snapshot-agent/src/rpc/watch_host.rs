//! WatchHost: the host, every machine on it, then every change.
//!
//! The stream begins once every machine has been looked at for it, and ends with an error when the hypervisor is lost: what was known
//! may then no longer be so, and the caller should not take it for the truth.
//!
//! It takes a token that may read every machine, which is the API's own, and ends when that does. The API opens the next stream
//! before, and is told everything anew.

use std::time::Duration;

use proto::agent::watch_host_response::{Event, Synced};
use proto::agent::{HostFacts, WatchHostRequest, WatchHostResponse};
use proto::v1::FileSystem;
use snapshot_core::authority::{Denied, authorize_inventory};
use snapshot_core::{Error, Reason};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::bounded::{files, jobs};
use crate::events::shutting_down;
use crate::machines::Change;
use crate::owned::Owned;
use crate::service::Agent;
use crate::{auth, clock};

/// How long a caller waits for the host to be seen as a whole.
const SYNC_WAIT: Duration = Duration::from_secs(10);
/// How often the host itself is told of, which is also the heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Messages that wait for a slow reader; what does not fit is told later, as it is then.
const WAITING: usize = 8;
/// The most machines that are gone that are told of. Few stay: most are gone with their images.
const LEFT_BEHIND: usize = 1000;

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<WatchHostRequest>,
) -> Result<ReceiverStream<Result<WatchHostResponse, Status>>, Error> {
    let now = clock::unix_now();
    let caller = auth::authenticate(&agent.verifier, request.metadata(), now)?;
    let permit = authorize_inventory(&caller).map_err(Denied::over_hosts)?;
    let until = auth::end_of_token(permit.expires_at_unix(), now);
    let mut synced = agent.machines.synced();
    let all_seen = timeout(SYNC_WAIT, synced.wait_for(|synced| *synced)).await;
    if !all_seen.is_ok_and(|result| result.is_ok()) {
        return Err(unreachable());
    }
    // What no event tells of, such as a snapshot that somebody took of a machine that is off, is found by looking.
    if timeout(SYNC_WAIT, agent.machines.reread()).await.is_err() {
        return Err(unreachable());
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    let agent = agent.clone();
    tokio::spawn(async move {
        if let Err(Some(error)) = tell(&agent, &sender, until).await {
            let _ = sender.send(Err(proto::status::to_status(&error))).await;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

fn unreachable() -> Error {
    Error::new(Reason::HypervisorUnavailable, "libvirt on the host does not answer")
}

type Sender = mpsc::Sender<Result<WatchHostResponse, Status>>;

/// Sends; `Err(None)` when nobody listens any more.
async fn send(sender: &Sender, event: Event) -> Result<(), Option<Error>> {
    sender.send(Ok(WatchHostResponse { event: Some(event) })).await.map_err(|_| None)
}

async fn tell(agent: &Agent, sender: &Sender, until: Instant) -> Result<(), Option<Error>> {
    let mut synced = agent.machines.synced();
    let changes = agent.machines.subscribe();
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.tick().await;
    send(sender, Event::Host(host_facts(agent).await)).await?;
    while let Some(change) = changes.try_next() {
        tell_change(agent, sender, change).await?;
    }
    send(sender, Event::Synced(Synced {})).await?;
    loop {
        tokio::select! {
            change = changes.next() => tell_change(agent, sender, change).await?,
            _ = heartbeat.tick() => send(sender, Event::Host(host_facts(agent).await)).await?,
            () = lost(&mut synced) => return Err(Some(unreachable())),
            () = sender.closed() => return Err(None),
            () = sleep_until(until) => return Err(Some(auth::expired())),
            () = agent.closing.cancelled() => return Err(Some(shutting_down())),
        }
    }
}

/// Before a machine is gone it has to be known what it left: a purge of it must find its way here.
async fn tell_change(agent: &Agent, sender: &Sender, change: Change) -> Result<(), Option<Error>> {
    if let Change::Gone(vm) = change
        && agent.machines.owned().is_some_and(|owned| owned.get(vm).is_some())
    {
        send(sender, Event::Host(host_facts(agent).await)).await?;
    }
    send(sender, event(change)).await
}

async fn lost(synced: &mut watch::Receiver<bool>) {
    let _ = synced.wait_for(|synced| !*synced).await;
}

fn event(change: Change) -> Event {
    match change {
        Change::Is(inventory) => Event::Vm((&*inventory).into()),
        Change::Gone(vm) => Event::RemovedVmId(vm.to_string()),
    }
}

async fn host_facts(agent: &Agent) -> HostFacts {
    let versions = agent.machines.versions();
    let policy = Some((&versions.limit(&agent.config.policy)).into());
    let dirs = agent.config.image_dirs.clone();
    let file_systems = spawn_blocking(move || dirs.iter().filter_map(|dir| file_system(dir)).collect()).await;
    HostFacts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        libvirt_version: versions.libvirt,
        qemu_version: versions.qemu,
        file_systems: file_systems.unwrap_or_default(),
        running_operation_ids: agent.locks.running().iter().map(ToString::to_string).collect(),
        policy,
        left_behind_vm_ids: left_behind(agent),
    }
}

/// The machines that are gone and whose snapshots are still in images.
fn left_behind(agent: &Agent) -> Vec<String> {
    let all = agent.machines.owned().map(Owned::left_behind).unwrap_or_default();
    all.iter().take(LEFT_BEHIND).map(ToString::to_string).collect()
}

fn file_system(dir: &std::path::Path) -> Option<FileSystem> {
    let asked = dir.to_owned();
    // One that does not respond is left out, and holds up neither the others nor the heartbeat.
    let space = jobs::run(&format!("file system of {}", dir.display()), move || files::space(&asked));
    let (free, total) = space.ok()?.ok()?;
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let path = dir.to_string_lossy().into_owned();
    Some(FileSystem { path, free_bytes: bytes(free), total_bytes: bytes(total) })
}
