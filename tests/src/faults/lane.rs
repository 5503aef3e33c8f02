//! What happens to one machine in a round: one act after another, each followed by a look.
//!
//! 1. **Settle.** virsh says what the machine does, the guest (or, when it is off, `qemu-io`) says what is on its disks;
//!    the checker judges that against the model, which then knows it for certain.
//! 2. **Act.** By the API as a careful caller, by virsh as the harness (guest writes, power) or as another tool.
//! 3. **Tell the model** what was answered.

mod create;
mod look;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use proto::v1;
use tokio::task::block_in_place;

use super::ask::{Answer, Caller, Change};
use super::judge::{Kind, Violation, content};
use super::model::{End, Existence, Label, Machine};
use super::script::{Act, Acts, Manner, Meddling, Step};
use super::world::World;
use crate::client::Client;
use crate::guest::Guest;
use crate::lab::{Power, id, key};

/// A machine with this many snapshots gets no more of them.
const MOST: usize = 5;

/// What drives a machine.
pub struct Lane {
    world: Arc<World>,
    /// The machine's number.
    machine: usize,
    /// What must be true of it.
    pub model: Machine,
    acts: Acts,
    json: Client,
    grpc: Client,
    storage: v1::StorageKind,
    /// Whether the host takes disks live and goes back in place.
    live: bool,
    /// Crashes that the model knows of.
    crashes: u64,
    /// How many markers and names were used up.
    used: u32,
    /// What another caller did after the act that is under way.
    rival: Option<(Label, bool, Answer)>,
}

impl Lane {
    /// For a machine that was started; waits for its boot.
    pub async fn new(
        world: Arc<World>,
        machine: usize,
        acts: Acts,
        (storage, live): (v1::StorageKind, bool),
    ) -> Result<Self> {
        let (json, grpc) = world.callers()?;
        let guest = &world.machines[machine].guest;
        let first = block_in_place(|| guest.report())?;
        let first = content(&first).map_err(anyhow::Error::msg)?;
        grpc.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
        let model = Machine::new(guest.name(), first);
        Ok(Self { world, machine, model, acts, json, grpc, storage, live, crashes: 0, used: 0, rival: None })
    }

    /// Acts until told to stop.
    pub async fn run(mut self, stop: Arc<AtomicBool>) -> Result<Self> {
        while !stop.load(Ordering::SeqCst) {
            let step = self.acts.next_step();
            tokio::time::sleep(step.pause).await;
            self.settle().await?;
            self.act(&step).await?;
        }
        Ok(self)
    }

    fn guest(&self) -> &Guest {
        &self.world.machines[self.machine].guest
    }

    fn tell(&self, what: &str) {
        self.world.history.tell(&self.model.name, what);
    }

    /// Does one act and tells the model.
    pub(super) async fn act(&mut self, step: &Step) -> Result<()> {
        let done = self.act_alone(step).await;
        if let Some((label, live, answer)) = self.rival.take() {
            self.rivalled(label, live, &answer);
        }
        done
    }

    async fn act_alone(&mut self, step: &Step) -> Result<()> {
        self.world.history.count(&format!("act {}", word(step.act)));
        let living: Vec<String> = self.model.living().into_iter().cloned().collect();
        let chosen = (!living.is_empty()).then(|| living[(step.which % living.len() as u64) as usize].clone());
        match (step.act, chosen) {
            (Act::Write, _) => self.write().await,
            (Act::PowerOff, _) => self.power(Power::Off).await,
            (Act::PowerOn | Act::Resume, _) => self.power(Power::Running).await,
            (Act::Pause, _) => self.power(Power::Paused).await,
            (Act::Create { .. } | Act::Meddle(Meddling::Create), Some(chosen)) if living.len() >= MOST => {
                self.delete(step, &chosen, v1::DeleteScope::Only).await
            }
            (Act::Create { protected }, _) => self.create(step, protected).await,
            (Act::Revert { run_after, save_current }, Some(chosen)) => {
                self.revert(step, &chosen, run_after, save_current && living.len() < MOST).await
            }
            (Act::Delete(scope), Some(chosen)) => self.delete(step, &chosen, scope).await,
            (Act::Purge, Some(_)) => self.purge(step).await,
            (Act::Update, Some(chosen)) => self.update(step, &chosen).await,
            (Act::Meddle(meddling), chosen) if self.world.machines[self.machine].meddled => {
                self.meddle(meddling, chosen).await
            }
            (Act::Revert { .. } | Act::Delete(_) | Act::Purge | Act::Update | Act::Meddle(_), _) => self.write().await,
        }
    }

    async fn write(&mut self) -> Result<()> {
        if !self.model.is(Power::Running) {
            self.power(Power::Running).await?;
            self.settle().await?;
        }
        if !self.model.is(Power::Running) {
            return Ok(());
        }
        let marker = self.marker();
        let written = block_in_place(|| self.guest().write(marker));
        self.tell(&format!("the guest writes {marker:?}: {}", if written.is_ok() { "done" } else { "no answer" }));
        match written {
            Ok(_) => self.model.wrote(marker),
            Err(_) => {
                self.model.may_have_written(marker);
                // A line that broke after the "w" makes the next question the marker.
                self.model.may_have_written('r');
            }
        }
        Ok(())
    }

    /// A printable character that the guest's protocol does not use; they come round again after 88.
    fn marker(&mut self) -> char {
        self.used += 1;
        let plain: Vec<char> = ('!'..='~').filter(|c| !"rw_DMBX=".contains(*c)).collect();
        plain[self.used as usize % plain.len()]
    }

    /// The harness switches, as a person with virsh does.
    pub(super) async fn power(&mut self, wanted: Power) -> Result<()> {
        let command = match (self.model.powers.as_slice(), wanted) {
            ([Power::Off], Power::Running) => "start",
            ([Power::Paused], Power::Running) => "resume",
            ([Power::Running], Power::Paused) => "suspend",
            ([Power::Running | Power::Paused], Power::Off) => "destroy",
            _ => return Ok(()),
        };
        let done = block_in_place(|| self.world.virsh(&[command, self.guest().name()]));
        self.tell(&format!(
            "virsh {command}: {}",
            done.as_ref().map_or_else(|error| format!("{error:#}"), |_| "done".to_owned())
        ));
        match done {
            Ok(_) => self.model.powered(wanted),
            Err(_) => self.model.may_be(wanted),
        }
        if wanted == Power::Off {
            // A QEMU that is stopped just then is killed.
            self.model.crashed();
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        self.used += 1;
        format!("{}-{}", self.model.name, self.used)
    }

    /// Asks the API. What the model is told of the present comes after what QEMU went through meanwhile.
    async fn ask(&mut self, step: &Step, change: Change) -> Option<Answer> {
        let rivals = Label { name: self.name(), protected: false };
        let caller = Caller {
            world: &self.world,
            machine: Some(self.machine),
            name: &self.model.name,
            json: &self.json,
            grpc: &self.grpc,
        };
        let (answer, rival) = if step.manner == Manner::Rivalled {
            let other = Step { manner: Manner::Follow, json: !step.json, ..*step };
            let (theirs, live) = self.create_request(&rivals);
            let (answer, rival) = tokio::join!(caller.ask(step, &change, true), caller.ask(&other, &theirs, false));
            (answer, rival.map(|rival| (live, rival)))
        } else {
            (caller.ask(step, &change, true).await, None)
        };
        self.note_crashes();
        if let Some((live, rival)) = rival {
            let ours = answer.as_ref().and_then(|answer| answer.operation.as_ref());
            self.tell(&format!("the rival's {} ended {:?}", rivals.name, rival.end));
            self.world.history.count("act of a rival");
            // The service does one after the other, and says when it began each.
            if ours.is_some_and(|ours| begun(ours) < rival.operation.as_ref().map_or((0, 0), begun)) {
                self.rival = Some((rivals, live, rival));
            } else {
                self.rivalled(rivals, live, &rival);
            }
        }
        let ended = match &answer {
            None => "abandoned",
            Some(Answer { end: End::Done, .. }) => "succeeded",
            Some(Answer { end: End::Failed(_), .. }) => "failed",
            Some(Answer { end: End::Refused, .. }) => "refused",
            Some(Answer { end: End::Unknown, .. }) => "unknown",
        };
        self.world.history.count(&format!("{} {ended}", word(step.act)));
        if let Some(answer) = &answer
            && !answer.reason.is_empty()
        {
            self.world.history.count(&format!("reason {}", answer.reason));
        }
        answer
    }

    async fn revert(&mut self, step: &Step, to: &str, run_after: v1::RunAfter, save_current: bool) -> Result<()> {
        let label = Label { name: self.name(), protected: false };
        self.tell(&format!("revert {to} {run_after:?} save_current={save_current} {:?}", step.manner));
        let request = v1::RevertToSnapshotRequest {
            name: format!("{}/snapshots/{to}", self.guest().vm()),
            save_current,
            save_current_display_name: if save_current { label.name.clone() } else { String::new() },
            run_after: run_after.into(),
            request_id: key(),
            ..Default::default()
        };
        let Some(answer) = self.ask(step, Change::Revert(request)).await else { return Ok(()) };
        self.missed(to, &answer);
        let saved = answer.operation.as_ref().map(|operation| id(&operation.saved_snapshot).to_owned());
        let saved = saved.filter(|saved| !saved.is_empty());
        if save_current && answer.end == End::Done && saved.is_none() {
            self.violated(
                Kind::Lost,
                format!("the present was to be kept at the revert to {to}, and no snapshot was told"),
            );
        }
        let crashed = self.model.contents.torn;
        self.model.reverted(to, run_after, save_current.then_some((saved.as_deref(), label)), &answer.end);
        if crashed {
            self.model.crashed();
        }
        Ok(())
    }

    async fn delete(&mut self, step: &Step, doomed: &str, scope: v1::DeleteScope) -> Result<()> {
        let force = !step.which.is_multiple_of(3);
        self.tell(&format!("delete {doomed} {scope:?} force={force} {:?}", step.manner));
        let request = v1::DeleteSnapshotRequest {
            name: format!("{}/snapshots/{doomed}", self.guest().vm()),
            scope: scope.into(),
            force,
            request_id: key(),
            ..Default::default()
        };
        // A create may have become this deletion, and only creates are given up.
        let manner = if matches!(step.manner, Manner::Abandon(_)) { Manner::Follow } else { step.manner };
        let Some(answer) = self.ask(&Step { manner, ..*step }, Change::Delete(request)).await else { return Ok(()) };
        self.missed(doomed, &answer);
        self.model.deleted(doomed, scope, &answer.end);
        Ok(())
    }

    async fn purge(&mut self, step: &Step) -> Result<()> {
        self.tell(&format!("purge {:?}", step.manner));
        let (name, request_id) = (self.guest().vm(), key());
        let request = v1::PurgeVmRequest { name, force: true, request_id, ..Default::default() };
        let Some(answer) = self.ask(step, Change::Purge(request)).await else { return Ok(()) };
        self.model.purged(&answer.end);
        Ok(())
    }

    async fn update(&mut self, step: &Step, which: &str) -> Result<()> {
        let Some(known) = self.model.snapshots.get(which) else { return Ok(()) };
        // Those of other tools get a label of ours, too.
        let protected = known.labels.last().is_some_and(|label| label.protected);
        let label = Label { name: self.name(), protected };
        self.tell(&format!("update {which} to {} {:?}", label.name, step.manner));
        let snapshot = v1::Snapshot {
            name: format!("{}/snapshots/{which}", self.guest().vm()),
            display_name: label.name.clone(),
            ..Default::default()
        };
        let request = v1::UpdateSnapshotRequest {
            snapshot: Some(snapshot),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] }),
            request_id: key(),
            ..Default::default()
        };
        let Some(answer) = self.ask(step, Change::Update(request)).await else { return Ok(()) };
        self.missed(which, &answer);
        if !known_is_foreign(&self.model, which) {
            self.model.labelled(which, label, &answer.end);
        }
        Ok(())
    }

    /// A snapshot that must be there was said not to be.
    fn missed(&self, which: &str, answer: &Answer) {
        let must = self
            .model
            .snapshots
            .get(which)
            .is_some_and(|known| known.existence == Existence::Must && !known.labels.is_empty());
        if must && matches!(answer.reason.as_str(), "SNAPSHOT_NOT_FOUND" | "SNAPSHOT_BROKEN" | "VM_NOT_FOUND") {
            self.violated(Kind::Lost, format!("{which} must be there, and the answer was {}", answer.reason));
        }
    }

    fn violated(&self, kind: Kind, what: String) {
        self.world.history.violated(vec![Violation { kind, machine: self.model.name.clone(), what }]);
    }

    /// What another tool does, undisturbed but for what hits the service alone.
    async fn meddle(&mut self, meddling: Meddling, chosen: Option<String>) -> Result<()> {
        let world = Arc::clone(&self.world);
        let Some(_calm) = world.calm.meddle().await else { return Ok(()) };
        self.settle().await?;
        let fresh = format!("virsh-{}", self.name());
        let (verb, which) = match (meddling, &chosen) {
            (Meddling::Delete, Some(chosen)) => ("snapshot-delete", chosen),
            (Meddling::Revert, Some(chosen)) => ("snapshot-revert", chosen),
            (Meddling::Create | Meddling::Delete | Meddling::Revert, _) => ("snapshot-create-as", &fresh),
        };
        let done = block_in_place(|| world.virsh(&[verb, self.guest().name(), which]));
        self.tell(&format!(
            "virsh {verb} {which}: {}",
            done.as_ref().map_or_else(|error| format!("{error:#}"), |_| "done".to_owned())
        ));
        if done.is_err() {
            // Nothing of ours was in the way: an abandoned create may be, and virsh then gave up without having begun.
            return Ok(());
        }
        match verb {
            "snapshot-delete" => self.model.deleted(which, v1::DeleteScope::Only, &End::Done),
            "snapshot-revert" => self.model.reverted_elsewhere(which),
            _ => self.model.created_elsewhere(which),
        }
        Ok(())
    }
}

/// When an operation was recorded.
fn begun(operation: &v1::Operation) -> (i64, i32) {
    operation.create_time.map_or((0, 0), |time| (time.seconds, time.nanos))
}

fn known_is_foreign(model: &Machine, which: &str) -> bool {
    model.snapshots.get(which).is_none_or(|known| known.labels.is_empty())
}

fn word(act: Act) -> &'static str {
    match act {
        Act::Write => "write",
        Act::PowerOff | Act::PowerOn | Act::Pause | Act::Resume => "power",
        Act::Create { .. } => "create",
        Act::Revert { .. } => "revert",
        Act::Delete(_) => "delete",
        Act::Purge => "purge",
        Act::Update => "update",
        Act::Meddle(_) => "meddle",
    }
}
