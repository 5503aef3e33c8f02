//! Which files a machine is made of, by what virsh and qemu-img tell: the active ones, and those that its snapshots need.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use snapshot_core::description::Label;

use super::model::Content;
use super::world::World;
use crate::guest::Guest;
use crate::images;
use crate::lab::HOST;
use crate::libvirtd::Listed;
use crate::tools::run;

/// The files of a machine.
#[derive(Debug, Default)]
pub struct Files {
    /// What each disk is on when the machine is next started.
    pub active: Vec<PathBuf>,
    /// By disk, the snapshots whose data is there: inside the images, or as a whole chain of files.
    pub kept: Vec<BTreeSet<String>>,
    /// By disk, the snapshots inside the images, as often as they are there.
    pub tags: Vec<Vec<String>>,
    /// Every file that libvirt's word makes one of this machine.
    pub all: BTreeSet<PathBuf>,
}

/// Looks at all of them.
pub fn files(world: &World, guest: &Guest) -> Result<Files> {
    let mut files = Files { active: active(world, guest)?, ..Files::default() };
    for disk in &files.active {
        let tags = images::internal_snapshots(disk)?;
        files.kept.push(tags.iter().cloned().collect());
        files.tags.push(tags);
        files.all.extend(chain(disk)?);
    }
    for name in world.virsh(&["snapshot-list", guest.name(), "--name"])?.split_whitespace() {
        let xml = world.virsh(&["snapshot-dumpxml", guest.name(), name])?;
        files.all.extend(values(&xml, "file='").map(PathBuf::from));
        for (kept, frozen) in files.kept.iter_mut().zip(frozen(&xml)) {
            // A chain that is not whole has no end.
            if let Ok(chain) = chain(&frozen) {
                kept.insert(name.to_owned());
                files.all.extend(chain);
            }
        }
    }
    Ok(files)
}

/// What each disk is on, by its order: virsh lists a line a disk below two of a heading.
pub fn active(world: &World, guest: &Guest) -> Result<Vec<PathBuf>> {
    let list = world.virsh(&["domblklist", guest.name(), "--inactive"])?;
    let mut disks: Vec<(&str, &str)> =
        list.lines().filter_map(|line| line.trim().split_once(char::is_whitespace)).collect();
    disks.retain(|(_, path)| path.trim_start().starts_with('/'));
    disks.sort_unstable();
    Ok(disks.into_iter().map(|(_, path)| PathBuf::from(path.trim())).collect())
}

/// A file and all below it.
pub fn chain(file: &Path) -> Result<Vec<PathBuf>> {
    let text = run(Command::new("qemu-img").args(["info", "-U", "--backing-chain", "--output=json"]).arg(file))?;
    let layers: Vec<Value> = serde_json::from_str(&text).context("qemu-img's JSON")?;
    let names = layers.iter().map(|layer| layer.get("filename").and_then(Value::as_str).map(PathBuf::from));
    names.collect::<Option<_>>().context("a layer without a name")
}

/// What libvirt lists without the snapshots that are deleted and only not removed yet: for everybody they are gone, and
/// who was above them is so of those below.
pub fn living(world: &World, guest: &Guest, mut listed: Vec<Listed>) -> Result<Vec<Listed>> {
    let mut gone = Vec::new();
    for one in &listed {
        // One of virsh's has no description.
        let description = world.cluster().host(HOST)?.libvirtd()?.description(guest, &one.name);
        if description.is_ok_and(|description| Label::is_deleted(&description)) {
            gone.push(one.clone());
        }
    }
    listed.retain(|one| gone.iter().all(|gone| gone.name != one.name));
    let below = |mut name: Option<String>| {
        while let Some(deleted) = gone.iter().find(|gone| Some(&gone.name) == name.as_ref()) {
            name = deleted.parent.clone();
        }
        name
    };
    let current = gone.iter().find(|gone| gone.is_current).and_then(|gone| below(gone.parent.clone()));
    for one in &mut listed {
        one.parent = below(one.parent.take());
        one.is_current |= current.as_ref() == Some(&one.name);
    }
    listed.sort();
    Ok(listed)
}

/// What an external snapshot keeps of each disk, by the disks' order: the files that the machine was on.
fn frozen(xml: &str) -> Vec<PathBuf> {
    let external = xml.split("<disks>").nth(1).and_then(|rest| rest.split("</disks>").next()).unwrap_or_default();
    let domain = xml.split("<domain ").nth(1).and_then(|rest| rest.split("</domain>").next()).unwrap_or_default();
    let disks = domain.split("<disk ").skip(1).filter_map(|disk| disk.split("</disk>").next());
    let mut found: Vec<(&str, &str)> = disks
        .filter_map(|disk| Some((values(disk, "<target dev='").next()?, values(disk, "<source file='").next()?)))
        .filter(|(target, _)| external.contains(&format!("<disk name='{target}' snapshot='external'")))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| PathBuf::from(path)).collect()
}

fn values<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split('\'').next())
}

/// What is on the disks of a guest that is off, by their active files.
pub fn on_disks(disks: &[PathBuf]) -> Result<Content> {
    // The guest's sector: the marker, and how often it has booted.
    let sector = |path: &Path| -> Result<(char, u8)> {
        let told = images::read(path, "qcow2", 512, 512)?;
        let line = told.lines().next().context("qemu-io said nothing")?;
        let bytes: Vec<u8> =
            line.split_whitespace().skip(1).take(2).filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let [marker, boots] = bytes.as_slice() else { bail!("qemu-io said {line:?}") };
        Ok((if *marker < b' ' { '_' } else { char::from(*marker) }, *boots))
    };
    let (marker, boots) = sector(disks.first().context("a guest without a disk")?)?;
    let second = disks.get(1).map(|disk| sector(disk)).transpose()?.map(|(marker, _)| marker);
    Ok(Content { marker, boots, second })
}
