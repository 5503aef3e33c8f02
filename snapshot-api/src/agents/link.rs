//! The task that follows one host.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::error::Error as _;
use std::time::Duration;

use proto::agent::watch_host_response::Event;
use proto::agent::{HostFacts, VmInventory, WatchHostRequest, WatchHostResponse};
use proto::convert::Inventory;
use snapshot_core::ids::VmId;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::text::DisplayName;
use snapshot_core::vm::{VmFacts, VmState};
use snapshot_core::{Error, Reason};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::operations::{is_refusal_of_token, request};
use super::{ANSWER, Agent, CATALOGUE_AGAIN, SILENCE, unreachable};
use crate::store::{GRACE, StoreError};

/// Why a host counts as away whose words cannot be written down.
const UNWRITTEN: &str = "what it tells cannot be written to the catalogue now";
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(3);

/// Why the stream is not followed any further.
enum Lost {
    /// The agent or the way to it.
    Contact(String),
    /// The whole state is to be told again: somebody asked for it, the token of the stream is about to end, or calls go over a
    /// new connection.
    Resync,
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        Self::Contact(innermost(&status))
    }
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::Contact(error.to_string())
    }
}

impl From<StoreError> for Lost {
    fn from(error: StoreError) -> Self {
        Self::Contact(error.to_string())
    }
}

/// The words that say most: a status of the transport says "transport error", and its innermost source why.
fn innermost(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        words = cause.to_string();
        source = cause.source();
    }
    words
}

/// How far the whole state has been told.
#[derive(Default)]
struct Telling {
    vms: BTreeSet<VmId>,
    corrections: u32,
    done: bool,
}

impl Agent {
    /// Follows the host until the service stops.
    pub async fn follow(self) {
        let mut delay = FIRST_DELAY;
        // Since when the host has been away; until this is known to be so it counts as connected.
        let mut away = Some(Instant::now());
        loop {
            let lost = tokio::select! {
                () = self.stopping.cancelled() => return,
                lost = self.follow_once() => lost,
            };
            if self.is_reachable() {
                (delay, away) = (FIRST_DELAY, None);
            }
            match lost {
                Lost::Resync => continue,
                Lost::Contact(reason) => {
                    self.set_reachable(false, &reason);
                    away.get_or_insert_with(Instant::now);
                }
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            if away.is_some_and(|since| since.elapsed() >= GRACE) {
                match self.store.lost(self.host.clone(), self.clock.now_ms()).await {
                    Ok(()) => away = None,
                    Err(error) => {
                        tracing::warn!(host = %self.host, %error, "where its VMs are could not be decided anew");
                    }
                }
            }
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    async fn follow_once(&self) -> Lost {
        match self.follow_stream().await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }

    async fn follow_stream(&self) -> Result<Infallible, Lost> {
        let mut resync = self.resync.subscribe();
        let mut renewal = std::pin::pin!(self.channel.renewal());
        let mut client = self.client.clone();
        let token = self.own.reading()?;
        let open = client.watch_host(request(token.as_str(), "", WatchHostRequest {}));
        let answer = tokio::time::timeout(SILENCE, open).await.map_err(|_| silent())?;
        if answer.as_ref().is_err_and(is_refusal_of_token) {
            self.own.refused(&token);
        }
        let mut stream = answer?.into_inner();
        metrics::counter!("snapshot_api_host_streams_total", "host" => self.host.to_string()).increment(1);
        self.patiently(|| self.store.begin_telling(self.host.clone())).await?;
        let mut telling = Telling::default();
        loop {
            let message = tokio::select! {
                message = next(&mut stream) => message?,
                _ = resync.changed() => return Err(Lost::Resync),
                () = tokio::time::sleep_until(token.renew()) => return Err(Lost::Resync),
                // On the connection from before the stream would end with its certificates, and the host count as away.
                () = &mut renewal => return Err(Lost::Resync),
            };
            if let Some(event) = message.event {
                self.apply(event, &mut telling).await?;
            }
        }
    }

    async fn apply(&self, event: Event, telling: &mut Telling) -> Result<(), Lost> {
        let host = self.host.clone();
        match event {
            Event::Host(facts) => self.heard(facts).await?,
            Event::Vm(wire) => self.tell(&wire, telling).await?,
            Event::RemovedVmId(id) => {
                let Ok(vm) = id.parse() else {
                    self.not_understood("a VM that is gone has no id");
                    return Ok(());
                };
                telling.vms.remove(&vm);
                let now_ms = self.clock.now_ms();
                self.patiently(|| self.store.remove_vm(host.clone(), vm, now_ms)).await?;
            }
            Event::Synced(_) if !telling.done => {
                let now_ms = self.clock.now_ms();
                let write = || self.store.retain_vms(host.clone(), telling.vms.clone(), now_ms);
                telling.corrections += self.patiently(write).await?;
                telling.done = true;
                self.state.send_modify(|state| state.synced = (state.synced.0 + 1, telling.corrections));
                self.set_reachable(true, "");
                metrics::gauge!("snapshot_api_vm_conflicts").set(self.store.conflicts()? as f64);
                self.recover()?;
            }
            Event::Synced(_) => {}
        }
        Ok(())
    }

    /// Writes a VM down as the host tells it. One that makes no sense is kept apart, with the reason, and hides none of the others.
    async fn tell(&self, wire: &VmInventory, telling: &mut Telling) -> Result<(), Lost> {
        let now_ms = self.clock.now_ms();
        let write = |inventory: Inventory| async move {
            self.patiently(|| self.store.put_inventory(self.host.clone(), inventory.clone(), now_ms)).await
        };
        let mut written = match Inventory::try_from(wire.clone()) {
            Ok(inventory) => {
                telling.vms.insert(inventory.vm.id);
                write(inventory).await
            }
            Err(error) => Err(StoreError::Corrupt(error.to_string())),
        };
        if let Err(error @ (StoreError::Corrupt(_) | StoreError::Unwritable(_) | StoreError::Panicked)) = &written {
            let cause = error.to_string();
            self.not_understood(&cause);
            let Some(inventory) = unintelligible(wire, &cause) else { return Ok(()) };
            telling.vms.insert(inventory.vm.id);
            written = write(inventory).await;
        }
        telling.corrections += written?;
        Ok(())
    }

    /// Something that the host tells makes no sense here.
    fn not_understood(&self, cause: &str) {
        metrics::counter!("snapshot_api_host_not_understood_total", "host" => self.host.to_string()).increment(1);
        tracing::error!(host = %self.host, cause, "what the host tells is not understood");
    }

    async fn heard(&self, facts: HostFacts) -> Result<(), Lost> {
        let now = self.clock.now_ms();
        let known = self.state.borrow().facts.clone();
        // A heartbeat that tells nothing new costs no write.
        if known.as_ref() != Some(&facts) {
            let remembered = crate::view::host::Remembered::from(&facts).to_json();
            self.patiently(|| self.store.put_host(self.host.clone(), remembered.clone(), now)).await?;
        }
        self.state.send_modify(|state| {
            state.facts = Some(facts);
            state.observe_time = Some(now);
        });
        Ok(())
    }

    /// Writes what the host told. As long as the catalogue cannot be written this waits, and with it the stream: the host
    /// can be reached all the same, and nothing that it told is lost.
    async fn patiently<T, F>(&self, write: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        loop {
            match write().await {
                Err(StoreError::Sqlite(cause)) => {
                    // Waiting does not help where the catalogue never takes it.
                    if !StoreError::passes(&cause) {
                        return Err(StoreError::Unwritable(cause.to_string()));
                    }
                    tracing::warn!(host = %self.host, %cause, "what the host told could not be written down; trying again");
                    if !self.state.borrow().reachable {
                        // Who asks for a change is not to look for the fault on the host.
                        self.set_reachable(false, UNWRITTEN);
                    }
                    tokio::time::sleep(CATALOGUE_AGAIN).await;
                }
                other => return other,
            }
        }
    }

    /// Has the whole state told again, and answers with how many rows that corrected.
    pub async fn reconcile(&self) -> Result<u32, Error> {
        self.check_reachable()?;
        let mut state = self.state.subscribe();
        let before = state.borrow_and_update().synced.0;
        self.resync.send_modify(|count| *count += 1);
        let synced = state.wait_for(|state| state.synced.0 > before);
        match tokio::time::timeout(ANSWER, synced).await {
            Ok(Ok(state)) => Ok(state.synced.1),
            Ok(Err(_)) | Err(_) => Err(unreachable(&self.host, "it did not tell its state in time")),
        }
    }
}

/// A VM of which nothing but its id and its name was understood. What was known of it stays, and nothing can be asked of it.
fn unintelligible(wire: &VmInventory, cause: &str) -> Option<Inventory> {
    let told = wire.vm.as_ref()?;
    let id: VmId = told.vm_id.parse().ok()?;
    let name = match DisplayName::lossy(&told.name).to_string() {
        name if name.is_empty() => id.to_string(),
        name => name,
    };
    let message = format!(
        "what the host's agent tells of the VM is not understood ({cause}): its version may be newer than that of the API"
    );
    let restrictions = vec![Restriction::new(RestrictedOperation::ALL, Reason::HostProtocol, message)];
    let vm = VmFacts { restrictions, ..VmFacts::bare(id, name, VmState::Unknown) };
    Some(Inventory { vm, snapshots: Vec::new(), sequence: wire.sequence, unobserved: true })
}

async fn next(stream: &mut Streaming<WatchHostResponse>) -> Result<WatchHostResponse, Lost> {
    match tokio::time::timeout(SILENCE, stream.message()).await {
        Ok(message) => message?.ok_or_else(|| Lost::Contact("the agent ended the stream".to_owned())),
        Err(_) => Err(silent()),
    }
}

fn silent() -> Lost {
    Lost::Contact(format!("nothing was heard for {} s", SILENCE.as_secs()))
}
