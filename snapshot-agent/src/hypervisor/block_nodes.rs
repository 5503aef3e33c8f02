//! What QEMU tells of the files that a machine runs on: its answers to `query-block` and `query-named-block-nodes`
//! (<https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html>).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};

use super::domain_xml::Attached;
use crate::qcow2;

/// A disk as QEMU has it: the top of its chain.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Block {
    /// The device: its id, or its place in QEMU's tree of objects.
    #[serde(default)]
    qdev: String,
    #[serde(default)]
    inserted: Option<Inserted>,
}

#[derive(Debug, Clone, Deserialize)]
struct Inserted {
    #[serde(rename = "node-name", default)]
    node: String,
    #[serde(rename = "drv", default)]
    driver: String,
    #[serde(deserialize_with = "path")]
    file: String,
    image: Image,
}

#[derive(Debug, Clone, Deserialize)]
struct Image {
    #[serde(rename = "backing-image")]
    backing: Option<Backing>,
}

#[derive(Debug, Clone, Deserialize)]
struct Backing {
    #[serde(deserialize_with = "path")]
    filename: String,
}

/// A node of QEMU's block graph. A qcow2 file has two: one of its format, and below it one of its bytes.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Node {
    #[serde(rename = "node-name", default)]
    name: String,
    #[serde(rename = "drv")]
    driver: String,
    #[serde(deserialize_with = "path")]
    file: String,
}

/// QEMU calls a file by its path, or by all the options that it has it with; what is no local file keeps its name.
fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(qcow2::local_path(&name).unwrap_or(name))
}

impl Node {
    /// Whether it is one of bytes, with nothing below it.
    fn is_storage(&self) -> bool {
        matches!(self.driver.as_str(), "file" | "host_device")
    }
}

/// A disk that is on a file which it should not be on: that file, its node, and the node of the one below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ahead {
    /// The path of the file.
    pub(super) overlay: String,
    /// The node on top.
    pub(super) top: String,
    /// The node below it.
    pub(super) base: String,
}

/// The disks whose top file is one of these; an error names what QEMU's answers leave open.
pub(super) fn ahead(blocks: &[Block], nodes: &[Node], is_made: impl Fn(&str) -> bool) -> Result<Vec<Ahead>, String> {
    let tops = blocks.iter().filter_map(|block| block.inserted.as_ref()).filter(|top| is_made(&top.file));
    tops.map(|top| {
        let below = top.image.backing.as_ref().ok_or_else(|| format!("{} lies on nothing", top.file))?;
        let mut candidates: Vec<&Node> = nodes.iter().filter(|node| node.file == below.filename).collect();
        candidates.sort_by_key(|node| node.is_storage());
        let base = candidates.first().ok_or_else(|| format!("QEMU has no node of {}", below.filename))?;
        Ok(Ahead { overlay: top.file.clone(), top: top.node.clone(), base: base.name.clone() })
    })
    .collect()
}

/// The nodes of those of these qcow2 images that QEMU has open, by path. `name` gives a path of QEMU's the form that those
/// have.
pub(super) fn image_nodes<'a>(
    nodes: &[Node],
    images: impl IntoIterator<Item = &'a str>,
    name: impl Fn(&str) -> String,
) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for image in images {
        let mut of_image = nodes.iter().filter(|node| node.driver == "qcow2" && name(&node.file) == image);
        match (of_image.next(), of_image.next()) {
            (None, _) => {}
            (Some(node), None) => _ = found.insert(image.to_owned(), node.name.clone()),
            (Some(_), Some(_)) => return Err(format!("QEMU has {image} open twice")),
        }
    }
    Ok(found)
}

/// The node on top of each of these disks, by target. Each has to be the qcow2 image that libvirt has the disk on: what QEMU
/// is told about another node would be done to another disk.
pub(super) fn tops(
    blocks: &[Block],
    disks: impl IntoIterator<Item = Attached>,
) -> Result<BTreeMap<String, String>, String> {
    let node = |disk: &Attached| {
        let is_it = |block: &&Block| block.qdev.split('/').any(|part| part == disk.device);
        let mut found = blocks.iter().filter(is_it);
        let (Some(block), None) = (found.next(), found.next()) else {
            return Err(format!("QEMU does not have one device {} for disk {}", disk.device, disk.target));
        };
        let Some(top) = &block.inserted else { return Err(format!("nothing is in disk {}", disk.target)) };
        if Path::new(&top.file) != disk.path || top.driver != "qcow2" || top.node.is_empty() {
            return Err(format!("QEMU has {} ({}) in disk {}", top.file, top.driver, disk.target));
        }
        Ok(top.node.clone())
    };
    disks.into_iter().map(|disk| Ok((disk.target.clone(), node(&disk)?))).collect()
}

/// The nodes of these files, each before what lies below it.
pub(super) fn nodes_of(nodes: &[Node], is_made: impl Fn(&str) -> bool) -> Vec<&str> {
    let mut found: Vec<&Node> = nodes.iter().filter(|node| is_made(&node.file)).collect();
    found.sort_by_key(|node| node.is_storage());
    found.into_iter().map(|node| node.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two disks, as QEMU 10 tells of them: the first is ahead, the second is where it should be.
    const BLOCKS: &str = r#"[
        {"qdev": "/machine/peripheral/virtio-disk0/virtio-backend", "device": "", "inserted": {
            "node-name": "libvirt-4-format", "drv": "qcow2", "file": "/i/vda.snap-1",
            "image": {"filename": "/i/vda.snap-1", "backing-image": {"filename": "/i/vda.qcow2"}}}},
        {"qdev": "/machine/peripheral/virtio-disk1/virtio-backend", "device": "", "inserted": {
            "node-name": "libvirt-1-format", "drv": "qcow2", "file": "/i/vdb.qcow2", "image": {"filename": "/i/vdb.qcow2"}}},
        {"qdev": "ide0-0-0", "device": ""}
    ]"#;
    const NODES: &str = r#"[
        {"node-name": "libvirt-4-storage", "drv": "file", "file": "/i/vda.snap-1"},
        {"node-name": "libvirt-4-format", "drv": "qcow2", "file":
            "json:{\"backing\": null, \"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"/i/vda.snap-1\"}}"},
        {"node-name": "libvirt-2-storage", "drv": "file", "file": "/i/vda.qcow2"},
        {"node-name": "libvirt-2-format", "drv": "qcow2", "file": "/i/vda.qcow2"},
        {"node-name": "libvirt-1-format", "drv": "qcow2", "file": "/i/vdb.qcow2"},
        {"node-name": "libvirt-1-storage", "drv": "file", "file": "/i/vdb.qcow2"}
    ]"#;

    fn parsed() -> (Vec<Block>, Vec<Node>) {
        (serde_json::from_str(BLOCKS).unwrap(), serde_json::from_str(NODES).unwrap())
    }

    #[test]
    fn a_disk_that_is_ahead_is_found_with_what_is_below_it() {
        let (blocks, nodes) = parsed();
        let found = ahead(&blocks, &nodes, |path| path.ends_with(".snap-1")).unwrap();
        let (overlay, top) = ("/i/vda.snap-1".to_owned(), "libvirt-4-format".to_owned());
        assert_eq!(found, [Ahead { overlay, top, base: "libvirt-2-format".to_owned() }]);
        assert!(ahead(&blocks, &nodes, |path| path.ends_with(".snap-2")).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        let (blocks, mut nodes) = parsed();
        nodes.retain(|node| node.file != "/i/vda.qcow2");
        assert!(ahead(&blocks, &nodes, |path| path.ends_with(".snap-1")).unwrap_err().contains("/i/vda.qcow2"));
        let all = ahead(&blocks, &nodes, |_| true);
        assert!(all.is_err(), "{all:?}");
    }

    fn attached(target: &str, device: &str, path: &str) -> Attached {
        Attached { target: target.to_owned(), device: device.to_owned(), path: path.into() }
    }

    #[test]
    fn a_disk_is_found_by_its_device_and_has_to_be_on_its_file() {
        let (blocks, _) = parsed();
        let (vda, vdb) =
            (attached("vda", "virtio-disk0", "/i/vda.snap-1"), attached("vdb", "virtio-disk1", "/i/vdb.qcow2"));
        let found = tops(&blocks, [vda.clone(), vdb.clone()]).unwrap();
        let node = |target: &str, name: &str| (target.to_owned(), name.to_owned());
        assert_eq!(found, BTreeMap::from([node("vda", "libvirt-4-format"), node("vdb", "libvirt-1-format")]));
        let elsewhere = Attached { path: "/i/vda.qcow2".into(), ..vda.clone() };
        for wrong in
            [elsewhere, Attached { device: "virtio-disk".to_owned(), ..vda }, attached("sda", "ide0-0-0", "/i/x")]
        {
            assert!(tops(&blocks, [vdb.clone(), wrong.clone()]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_is_let_go_from_the_top() {
        let (_, nodes) = parsed();
        assert_eq!(nodes_of(&nodes, |path| path.ends_with(".snap-1")), ["libvirt-4-format", "libvirt-4-storage"]);
    }
}
