use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use super::*;

fn image(path: &Path) {
    let made = command().args(["create", "-q", "-f", "qcow2"]).arg(path).arg("1M").status().unwrap();
    assert!(made.success());
}

/// Has `qemu-img` take a snapshot in what has this name by then.
fn write(named: &Path, may: &Path) -> Result<(), String> {
    let mut command = command();
    command.args(["snapshot", "-c", "one"]).arg(named).stdout(Stdio::null()).stderr(Stdio::piped());
    let output =
        spawn(Beneath::anywhere(), command, &[may.to_str().unwrap()], &[]).map_err(|error| error.to_string())?;
    let output = output.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// As after a swap: it was found by one name, and by the time that `qemu-img` opens that name it leads to something else.
#[test]
fn it_opens_the_files_it_was_started_for_whatever_their_names_lead_to_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (own, other, link) = (dir.join("own"), dir.join("other"), dir.join("link"));
    image(&own);
    image(&other);
    symlink(&other, &link).unwrap();
    let before = fs::read(&other).unwrap();
    for named in [&other, &link] {
        let refusal = write(named, &own).unwrap_err();
        assert!(refusal.contains("Permission denied"), "{refusal}");
    }
    assert_eq!(fs::read(&other).unwrap(), before);
    write(&own, &own).unwrap();
    // Found under a new name it is the same file: the rule is about that.
    fs::rename(&own, dir.join("moved")).unwrap();
    write(&dir.join("moved"), &dir.join("moved")).unwrap();
    // Nothing else stood in the way of the others.
    write(&other, &other).unwrap();
    assert_ne!(fs::read(&other).unwrap(), before);
}

#[test]
fn an_image_that_is_a_link_or_has_another_name_is_not_given_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (own, link, second) = (dir.join("own"), dir.join("link"), dir.join("second"));
    image(&own);
    symlink(&own, &link).unwrap();
    assert!(write(&link, &link).unwrap_err().contains("is a link"));
    fs::hard_link(&own, &second).unwrap();
    assert!(write(&own, &own).unwrap_err().contains("another name"));
    fs::remove_file(&second).unwrap();
    write(&own, &own).unwrap();
}
