//! What is to be seen when everything is quiet: of the service, by virsh, by qemu-img, and from the guests themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use proto::v1;
use tokio::task::block_in_place;

use super::files::{Files, active, chain, files, living, on_disks};
use super::foreign::is_in_a_room;
use super::judge::{Kind, Return, Row, Seen, Violation, judge};
use super::lane::Lane;
use super::model::Label;
use super::world::World;
use crate::client::{Client, OPERATIONS};
use crate::guest::Guest;
use crate::images;
use crate::lab::{HOST, Power, as_listed, id, key};
use crate::libvirtd::Listed;

/// How long operations may take to end by themselves once everything is up again.
const QUIET: Duration = Duration::from_secs(150);
/// How long the catalogue may take to be as libvirt is: an agent compares every ten seconds.
const NOTICED: Duration = Duration::from_secs(40);
/// How long what an operation could not remove may take to be removed: it is tried again when its machine's turn comes.
const REMOVED: Duration = Duration::from_secs(90);
const AGAIN: Duration = Duration::from_millis(200);

/// Waits until the service is up and every operation has ended; those that have not after a while are returned.
pub async fn quiet(client: &Client) -> Result<Vec<v1::Operation>> {
    let begun = Instant::now();
    loop {
        let hosts = client.hosts().await;
        let open = open(client).await;
        let reachable = hosts.as_ref().is_ok_and(|hosts| hosts.iter().all(|host| host.reachable));
        match open {
            Ok(open) if open.is_empty() && reachable => return Ok(open),
            Ok(open) if begun.elapsed() > QUIET && reachable => return Ok(open),
            open if begun.elapsed() > QUIET => {
                anyhow::bail!("the service is not up {QUIET:?} after the last fault: {hosts:?} {open:?}")
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
}

async fn open(client: &Client) -> Result<Vec<v1::Operation>> {
    let request = v1::ListOperationsRequest { active_only: true, page_size: 1000, ..Default::default() };
    let answer: v1::ListOperationsResponse = client.call((OPERATIONS, "ListOperations"), &request).await?;
    Ok(answer.operations)
}

/// Looks at a machine in every way and judges it. The machine is off afterwards.
pub async fn check(world: &World, client: &Client, lane: &mut Lane, open: &[v1::Operation]) -> Result<()> {
    lane.settle().await?;
    let machine = world.machines.iter().position(|machine| machine.guest.name() == lane.model.name);
    let guest = &world.machines[machine.context("a machine of this world")?].guest;
    let (catalogue, libvirt) = agreement(world, client, guest).await?;
    let listed = block_in_place(|| world.virsh(&["snapshot-list", guest.name(), "--name"]))?;
    let known: BTreeSet<String> = listed.split_whitespace().map(str::to_owned).collect();
    let Files { tags, kept, .. } = settled(world, guest, &known).await?;
    let power = match lane.model.powers.first() {
        Some(power) => *power,
        None => Power::Off,
    };
    let present = (power != Power::Paused).then(|| lane.model.contents.any_of.first().copied()).flatten();
    let mut returns = BTreeMap::new();
    for row in catalogue.iter().filter(|row| row.state == "Ready") {
        let came = come_back(client, guest, &row.listed.name).await;
        world.history.tell(guest.name(), &format!("going back to {}: {came:?}", row.listed.name));
        world.history.count("snapshots read by a guest");
        returns.insert(row.listed.name.clone(), came);
    }
    let strangers = metadata_strangers(world, guest, &known);
    block_in_place(|| world.virsh(&["destroy", guest.name()])).ok();
    let damage = block_in_place(|| damage(world, guest));
    let open = open.iter().filter(|operation| operation.vm == guest.vm()).map(|operation| format!("{operation:?}"));
    let seen =
        Seen { catalogue, libvirt, tags, kept, power, present, returns, strangers, damage, open: open.collect() };
    world.history.violated(judge(&lane.model, &seen));
    Ok(())
}

/// What the catalogue and libvirt say, when they say the same, or after a while as they are.
async fn agreement(world: &World, client: &Client, guest: &Guest) -> Result<(Vec<Row>, Vec<Listed>)> {
    let begun = Instant::now();
    loop {
        let rows: Vec<Row> = client.snapshots(&guest.vm()).await?.iter().map(row).collect();
        let libvirt = block_in_place(|| {
            let listed = world.cluster().host(HOST)?.libvirtd()?.snapshot_tree(guest)?;
            living(world, guest, listed)
        })?;
        let mut listed: Vec<Listed> = rows.iter().map(|row| row.listed.clone()).collect();
        listed.sort();
        let unfinished = rows.iter().any(|row| row.state == "Creating" || row.state == "Deleting");
        if (listed == libvirt && !unfinished) || begun.elapsed() > NOTICED {
            return Ok((rows, libvirt));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The machine's files, once no image has other snapshots than libvirt's, or after a while as they are: what could not be
/// removed on a full disk is removed later.
async fn settled(world: &World, guest: &Guest, known: &BTreeSet<String>) -> Result<Files> {
    let begun = Instant::now();
    loop {
        let files = block_in_place(|| files(world, guest))?;
        if files.tags.iter().flatten().all(|tag| known.contains(tag)) || begun.elapsed() > REMOVED {
            return Ok(files);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn row(snapshot: &v1::Snapshot) -> Row {
    let label = Label { name: snapshot.display_name.clone(), protected: snapshot.protected };
    Row { listed: as_listed(snapshot), label, state: format!("{:?}", snapshot.state()) }
}

async fn come_back(client: &Client, guest: &Guest, to: &str) -> Return {
    let request = v1::RevertToSnapshotRequest {
        name: format!("{}/snapshots/{to}", guest.vm()),
        run_after: v1::RunAfter::Running.into(),
        request_id: key(),
        ..Default::default()
    };
    if let Err(error) = client.done(client.revert_as(request).await).await {
        return Return::Failed(format!("{error:#}"));
    }
    match block_in_place(|| guest.report()) {
        Ok(report) => Return::Said(report),
        Err(error) => Return::Failed(format!("{error:#}")),
    }
}

/// Removes all snapshots of a machine that is off: then there are none, and its disks are on their own images and hold what
/// they held.
pub async fn check_purge(world: &World, client: &Client, guest: &Guest) -> Result<()> {
    let before = block_in_place(|| on_disks(&active(world, guest)?))?;
    let request = v1::PurgeVmRequest { name: guest.vm(), force: true, request_id: key(), ..Default::default() };
    let purged = client.done(client.purge(request).await).await;
    world.history.tell(guest.name(), &format!("purged: {purged:?}"));
    let find = |kind, what: String| {
        world.history.violated(vec![Violation { kind, machine: guest.name().to_owned(), what }]);
    };
    if let Err(error) = purged {
        find(Kind::Stuck, format!("it cannot be purged: {error:#}"));
        return Ok(());
    }
    let files = block_in_place(|| files(world, guest))?;
    let own: Vec<PathBuf> = guest.disks().iter().map(|disk| disk.path().to_owned()).collect();
    if files.active != own {
        find(Kind::Orphaned, format!("after a purge it is on {:?} instead of {own:?}", files.active));
    }
    if files.kept.iter().any(|kept| !kept.is_empty()) {
        find(Kind::Orphaned, format!("after a purge there is {:?}", files.kept));
    }
    let after = block_in_place(|| on_disks(&files.active))?;
    if after != before {
        find(Kind::WrongData, format!("a purge made {after:?} of {before:?}"));
    }
    Ok(())
}

/// What is wrong with the images of a machine that is off.
fn damage(world: &World, guest: &Guest) -> Vec<String> {
    let mut wrong = Vec::new();
    let files = match files(world, guest) {
        Ok(files) => files,
        Err(error) => return vec![format!("{error:#}")],
    };
    // What libvirt wrote about a branch that was left names files that went with it.
    let is_image = |file: &&PathBuf| file.extension().is_none_or(|last| last != "mem") && file.exists();
    let images = files.all.iter().filter(is_image);
    wrong.extend(images.filter_map(|image| images::check_consistent(image).err()).map(|error| format!("{error:#}")));
    for (disk, active) in guest.disks().iter().zip(&files.active) {
        let base = (guest.name().starts_with("clone")).then(|| world.base().0.to_owned());
        let expected: Vec<PathBuf> = [disk.path().to_owned()].into_iter().chain(base).collect();
        let chain = chain(active);
        if !chain.as_ref().is_ok_and(|chain| chain.ends_with(&expected)) {
            wrong.push(format!("{} lies on {chain:?}, which must end in {expected:?}", active.display()));
        }
    }
    if !images::sha256(world.base().0).is_ok_and(|digest| digest == world.base().1) {
        wrong.push("the base of the clones was changed".to_owned());
    }
    wrong
}

fn metadata_strangers(world: &World, guest: &Guest, known: &BTreeSet<String>) -> Vec<String> {
    let folder = world.daemon_folder().join("lib/qemu/snapshot").join(guest.name());
    let files = files_below(&folder).into_iter();
    let strange = files.filter(|file| {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        !(known.contains(&stem) && file.extension().is_some_and(|extension| extension == "xml"))
    });
    strange.map(|file| file.display().to_string()).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// What belongs to no machine in particular: files between the images, and domains that nobody defined.
pub fn check_host(world: &World) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    let mut find = |kind, what: String| found.push(Violation { kind, machine: HOST.to_owned(), what });
    let mut expected: BTreeSet<PathBuf> = [world.base().0.to_owned()].into();
    for machine in &world.machines {
        let guest = &machine.guest;
        expected.extend(guest.disks().iter().map(|disk| disk.path().to_owned()));
        expected.extend([guest.xml_file(), guest.serial().to_owned()]);
        expected.extend(files(world, guest)?.all);
    }
    let is_ours = |file: &PathBuf| !expected.contains(file) && !is_in_a_room(&file.to_string_lossy());
    for file in files_below(&world.images()).into_iter().filter(is_ours) {
        find(Kind::Orphaned, format!("{} belongs to nothing", file.display()));
    }
    for file in files_below(&world.daemon_folder().join("lib/qemu/save")) {
        find(Kind::Orphaned, format!("{} was left by a save", file.display()));
    }
    let listed = world.virsh(&["list", "--all", "--name"])?;
    let listed: BTreeSet<&str> =
        listed.lines().map(str::trim).filter(|name| !name.is_empty() && !is_in_a_room(name)).collect();
    let defined: BTreeSet<&str> = world.machines.iter().map(|machine| machine.guest.name()).collect();
    if listed != defined {
        find(Kind::Disagree, format!("libvirt has the domains {listed:?}, and must have {defined:?}"));
    }
    Ok(found)
}

/// Operations that were told to have ended in one way and are now told to have ended in another.
pub async fn check_ends(client: &Client, told: &BTreeMap<String, v1::OperationState>) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for (name, state) in told {
        let now = client.operation(name).await.map(|operation| operation.state());
        if !now.as_ref().is_ok_and(|now| now == state) {
            let what = format!("{} ended {state:?}, and now it is {now:?}", id(name));
            found.push(Violation { kind: Kind::Disagree, machine: HOST.to_owned(), what });
        }
    }
    Ok(found)
}
