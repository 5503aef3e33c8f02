//! Files that are not ours to remove or to write to, on a real daemon, with an agent that may move disks and cleans up by itself.
//! What the images hold is read by `qemu-io` and by guests.

mod disks;
mod neighbours;
mod orphans;
mod records;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::status::from_status;
use proto::v1::OperationState;
use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Create, DeleteScope, Request, RunAfter};
use snapshot_core::snapshot::Storage;

use crate::drift::Scene;
use crate::guest::{Guest, run};
use crate::images::marker;
use crate::served::{create, id};

const MOVES_DISKS: &str = "[policy]\nstable_paths = false";
/// Within this an agent that is told of a change has looked at it and cleaned up, many times over.
const CLEANED_UP: Duration = Duration::from_secs(3);

struct Desk {
    scene: Scene,
    guest: Guest,
}

impl Desk {
    async fn new(name: &str, disks: usize) -> Self {
        let mut scene = Scene::start_with(name, MOVES_DISKS).await;
        let guest = scene.guest(disks).await;
        Self { scene, guest }
    }

    async fn done(&self, request: Request) {
        let ended = self.scene.agent.run(self.guest.vm, request).await.unwrap();
        assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    }

    /// Why it is refused, with the message.
    async fn refused(&self, request: Request) -> (Reason, String) {
        let refusal = self.scene.agent.run(self.guest.vm, request).await.unwrap_err();
        let error = from_status(&refusal, Reason::HostProtocol);
        (error.reason(), error.message().to_owned())
    }

    /// The ids of the snapshots that are listed.
    fn listed(&self) -> usize {
        let names = self.scene.virsh(&["snapshot-list", &self.guest.vm.to_string(), "--name"]);
        names.split_whitespace().count()
    }

    async fn take(&self) -> SnapshotId {
        let id = id();
        self.done(Request::Create(Create { storage: Some(Storage::External), ..create(&id) })).await;
        id
    }

    async fn revert(&self, id: &SnapshotId) {
        self.done(Request::Revert { snapshot: id.clone(), run_after: RunAfter::Off, save_current: None }).await;
    }

    async fn delete(&self, id: &SnapshotId) {
        self.done(Request::Delete { snapshot: id.clone(), scope: DeleteScope::Only, force: false }).await;
    }

    /// Has the guest write this, and switches it off.
    fn write(&self, marker: char) {
        self.guest.start();
        self.guest.write(marker);
        self.guest.domain().destroy().unwrap();
    }

    /// What the guest reads on its first disk.
    fn reads(&self) -> char {
        self.guest.start();
        let report = self.guest.report();
        self.guest.domain().destroy().unwrap();
        report.disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.guest.dir.join(name)
    }

    /// The definition that the next start uses.
    fn xml(&self) -> String {
        self.guest.domain().xml_desc(2).unwrap()
    }

    /// The active image of a disk.
    fn active(&self, target: &str) -> PathBuf {
        let xml = self.xml();
        let disk = xml.split("<disk ").find(|disk| disk.contains(&format!("<target dev='{target}'"))).unwrap();
        PathBuf::from(disk.split("<source file='").nth(1).unwrap().split('\'').next().unwrap())
    }

    /// Takes the disk out of the definition.
    fn detach(&self, target: &str) {
        self.scene.virsh(&["detach-disk", &self.guest.vm.to_string(), target, "--config"]);
    }

    fn attach(&self, image: &Path, target: &str) {
        let vm = self.guest.vm.to_string();
        let image = image.display().to_string();
        let args = ["attach-disk", &vm, &image, target, "--config", "--driver", "qemu", "--subdriver", "qcow2"];
        self.scene.virsh(&args);
    }

    /// Gives the disk another image.
    fn swap(&self, target: &str, image: &Path) {
        let active = self.active(target).display().to_string();
        self.guest.define(&self.xml().replace(&active, &image.display().to_string()));
    }

    fn qemu_img(&self, args: &[&str]) {
        run(&self.guest.dir, "qemu-img", args);
    }

    /// Waits until the agent has seen to everything, and checks that this file is as it was.
    async fn keeps(&self, image: &Path, holds: char) {
        tokio::time::sleep(CLEANED_UP).await;
        assert!(image.exists(), "{} was removed", image.display());
        assert_eq!(marker(image), holds, "{}", image.display());
    }
}
