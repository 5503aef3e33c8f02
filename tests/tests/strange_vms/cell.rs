//! One operation on one VM: it works, or it is refused beforehand and nothing changes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use proto::v1;
use tests::client::{Client, Refusal};
use tests::images;
use tests::lab::key;
use tests::libvirtd::Libvirtd;

use super::draft::Machine;

/// How long GetVm may take to agree with a plan: what other tools do is seen at the agent's next comparison at the latest.
const AGREED: Duration = Duration::from_secs(20);

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// It worked, and the right data was read afterwards.
    Works,
    /// It was refused with this reason, and nothing was changed.
    Refused(String),
    /// It was not tried.
    NotTried,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("yes"),
            Self::Refused(reason) => write!(f, "`{reason}`"),
            Self::NotTried => f.write_str("-"),
        }
    }
}

/// An operation that can be asked for as a plan and for real.
#[derive(Debug, Clone)]
pub enum Ask {
    /// A snapshot with this content.
    Create(v1::SnapshotContent),
    /// A revert to this snapshot.
    Revert(String),
    /// A deletion of this snapshot.
    Delete(String, v1::DeleteScope),
    /// A purge.
    Purge,
}

impl Ask {
    async fn send(&self, client: &Client, vm: &str, validate_only: bool) -> Result<v1::Operation, Refusal> {
        let request_id = key();
        match self {
            Self::Create(content) => {
                let snapshot = Some(v1::Snapshot { display_name: "matrix".to_owned(), ..Default::default() });
                let (parent, content) = (vm.to_owned(), (*content).into());
                let request = v1::CreateSnapshotRequest {
                    parent,
                    snapshot,
                    content,
                    request_id,
                    validate_only,
                    ..Default::default()
                };
                client.create_as(request).await
            }
            Self::Revert(name) => {
                let name = name.clone();
                let request = v1::RevertToSnapshotRequest { name, request_id, validate_only, ..Default::default() };
                client.revert_as(request).await
            }
            Self::Delete(name, scope) => {
                let (name, scope) = (name.clone(), (*scope).into());
                let request =
                    v1::DeleteSnapshotRequest { name, scope, request_id, validate_only, ..Default::default() };
                client.delete_as(request).await
            }
            Self::Purge => {
                let name = vm.to_owned();
                client.purge(v1::PurgeVmRequest { name, request_id, validate_only, ..Default::default() }).await
            }
        }
    }

    fn capability(&self) -> Option<v1::CapabilityKind> {
        match self {
            Self::Create(v1::SnapshotContent::DisksAndMemory) => Some(v1::CapabilityKind::CreateDisksAndMemory),
            Self::Create(_) => Some(v1::CapabilityKind::CreateDisks),
            Self::Revert(_) => Some(v1::CapabilityKind::Revert),
            Self::Delete(..) => Some(v1::CapabilityKind::Delete),
            Self::Purge => None,
        }
    }
}

/// Everything about a VM that a refused operation must leave as it is.
#[derive(Debug, PartialEq)]
struct Fingerprint {
    state: String,
    definition: String,
    snapshots: String,
    pid: Option<String>,
    files: BTreeMap<PathBuf, String>,
}

impl Fingerprint {
    fn of(daemon: &Libvirtd, machine: &Machine) -> Result<Self> {
        let state = machine.virsh(daemon, "domstate", &["--reason"])?;
        let off = state.starts_with("shut off");
        let pid = daemon.folder().join("run/qemu").join(format!("{}.pid", machine.name));
        let mut files = BTreeMap::new();
        // A running guest may write; its images are compared by what it reads.
        let own = machine.disks.iter().filter(|_| off).flat_map(|disk| &disk.files);
        for file in own.chain(machine.neighbours.iter().chain(&machine.late_neighbours).flat_map(|image| &image.files))
        {
            if file.is_file() {
                files.insert(file.clone(), images::sha256(file)?);
            }
        }
        Ok(Self {
            definition: machine.virsh(daemon, "dumpxml", &["--inactive", "--security-info"])?,
            snapshots: machine.virsh(daemon, "snapshot-list", &["--tree"])?,
            pid: if off { None } else { std::fs::read_to_string(pid).ok() },
            state,
            files,
        })
    }
}

/// Asks for a plan and for the operation. The two and GetVm have to agree; what is planned has to succeed, and what is refused
/// must change nothing. Returns the operation where it worked.
pub async fn attempt(
    client: &Client,
    daemon: &Libvirtd,
    machine: &Machine,
    ask: &Ask,
) -> Result<(Cell, Option<v1::Operation>)> {
    let vm = format!("vms/{}", machine.uuid);
    let planned = ask.send(client, &vm, true).await;
    agree(client, &vm, ask, &planned).await?;
    match planned {
        Err(refusal) => {
            ensure!(!refusal.reason.is_empty(), "a plan failed without a reason: {refusal}");
            ensure!(!["INTERNAL", "HYPERVISOR_FAILED"].contains(&refusal.reason.as_str()), "not a refusal: {refusal}");
            let before = Fingerprint::of(daemon, machine)?;
            match ask.send(client, &vm, false).await {
                Ok(operation) => bail!("the plan is refused ({refusal}) and the operation is accepted: {operation:?}"),
                Err(error) => ensure!(error.reason == refusal.reason, "refused with {error}; the plan with {refusal}"),
            }
            let after = Fingerprint::of(daemon, machine)?;
            ensure!(before == after, "a refused operation changed something:\n{before:#?}\n{after:#?}");
            Ok((Cell::Refused(refusal.reason), None))
        }
        Ok(_) => {
            let ended = client.ended(ask.send(client, &vm, false).await?).await?;
            let state = ended.state();
            ensure!(state == v1::OperationState::Succeeded, "offered, then {state:?}: {:?}", ended.error);
            Ok((Cell::Works, Some(ended)))
        }
    }
}

/// GetVm says what the plan says. Of reverts and deletions it says whether there is one for some snapshot.
async fn agree(client: &Client, vm: &str, ask: &Ask, planned: &Result<v1::Operation, Refusal>) -> Result<()> {
    let Some(kind) = ask.capability() else { return Ok(()) };
    let reason = planned.as_ref().err().map(|refusal| refusal.reason.clone()).unwrap_or_default();
    let begun = Instant::now();
    loop {
        let told = client.vm(vm).await?.capabilities.into_iter().find(|one| one.kind() == kind).unwrap_or_default();
        let agrees = match ask {
            Ask::Create(_) | Ask::Purge => told.available == planned.is_ok() && told.reason == reason,
            // Another snapshot may be to be had where this one is not.
            Ask::Revert(_) | Ask::Delete(..) => told.available || told.reason == reason,
        };
        if agrees {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < AGREED,
            "GetVm says {kind:?} available={} {}, the plan says {planned:?}",
            told.available,
            told.reason
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
