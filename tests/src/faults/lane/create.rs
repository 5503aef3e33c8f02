//! Taking snapshots.

use anyhow::Result;
use proto::v1;

use super::super::ask::{Answer, Change};
use super::super::model::{End, Label};
use super::super::script::Step;
use super::Lane;
use crate::lab::{Power, id, key};

impl Lane {
    /// A request for a snapshot, and whether it takes the disks alone of a machine that runs: where the host takes them live, every
    /// second of a machine that surely runs asks for its memory, and the others for nothing in particular.
    pub(super) fn create_request(&self, label: &Label) -> (Change, bool) {
        let Label { name, protected } = label.clone();
        let mut request = v1::CreateSnapshotRequest {
            parent: self.guest().vm(),
            snapshot: Some(v1::Snapshot { display_name: name, protected, ..Default::default() }),
            request_id: key(),
            ..Default::default()
        };
        request.set_storage(self.storage);
        let memory = self.live && self.used.is_multiple_of(2) && self.model.is(Power::Running);
        if memory {
            request.set_content(v1::SnapshotContent::DisksAndMemory);
        }
        (Change::Create(request), self.live && !memory)
    }

    pub(super) fn rivalled(&mut self, label: Label, live: bool, answer: &Answer) {
        let made = answer.operation.as_ref().map(|operation| id(&operation.snapshot).to_owned());
        if answer.end == End::Unknown {
            self.model.abandon(label.name, true);
        } else {
            self.model.created(made.as_deref(), label, live, &answer.end);
        }
    }

    pub(super) async fn create(&mut self, step: &Step, protected: bool) -> Result<()> {
        let label = Label { name: self.name(), protected };
        self.tell(&format!("create {} protected={protected} {:?}", label.name, step.manner));
        let (request, live) = self.create_request(&label);
        match self.ask(step, request).await {
            None => self.model.abandon(label.name, true),
            Some(answer) => {
                let made = answer.operation.as_ref().map(|operation| id(&operation.snapshot).to_owned());
                self.model.created(made.as_deref(), label, live, &answer.end);
            }
        }
        Ok(())
    }
}
