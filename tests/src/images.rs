//! What the image files hold, read by `qemu-img` and not through anything under test.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::tools::run;

/// The names (tags) of the snapshots inside a qcow2 image, oldest first. Works while a guest has the image open.
pub fn internal_snapshots(image: &Path) -> Result<Vec<String>> {
    let info = info(image)?;
    let snapshots = info.get("snapshots").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let name = |snapshot: &Value| snapshot.get("name").and_then(Value::as_str).map(str::to_owned);
    snapshots.iter().map(|snapshot| name(snapshot).context("a snapshot without a name")).collect()
}

/// The image's backing file as it is written in the image.
pub fn backing_file(image: &Path) -> Result<Option<String>> {
    Ok(info(image)?.get("backing-filename").and_then(Value::as_str).map(str::to_owned))
}

/// Everything that `qemu-img info` tells, with `-U`: without taking the lock that a running guest holds.
pub fn info(image: &Path) -> Result<Value> {
    let text = run(Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(image))?;
    serde_json::from_str(&text).context("qemu-img's JSON")
}

/// Fails when the image is corrupt or has leaked clusters. The guest must be off.
pub fn check(image: &Path) -> Result<()> {
    run(Command::new("qemu-img").args(["check", "-q"]).arg(image)).map(drop)
}

/// Fails when the image is corrupt. Clusters may have leaked, as they do when a QEMU is killed. The guest must be off.
pub fn check_consistent(image: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    let output = command.args(["check"]).arg(image).output().context("cannot run qemu-img")?;
    // 0 is whole, 3 is leaked clusters alone: qemu-img(1).
    anyhow::ensure!(
        matches!(output.status.code(), Some(0 | 3)),
        "qemu-img check of {}: {} {}",
        image.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The file's SHA-256 in hexadecimal: two equal ones mean not a byte has changed.
pub fn sha256(file: &Path) -> Result<String> {
    let text = run(Command::new("sha256sum").arg("--").arg(file))?;
    Ok(text.split_whitespace().next().context("sha256sum's answer")?.to_owned())
}

/// A byte range of what a guest would see on the disk, for disks that are off.
pub fn read(image: &Path, format: &str, offset: u64, length: u64) -> Result<String> {
    let command = format!("read -v {offset} {length}");
    run(Command::new("qemu-io").args(["-r", "-f", format, "-c", &command]).arg(image))
}
