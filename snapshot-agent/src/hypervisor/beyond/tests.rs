use std::process::Command;

use super::*;

#[test]
fn images_of_other_formats_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.qcow2");
    let image = |arguments: &[&str]| {
        let done = Command::new("qemu-img").arg("create").arg("-q").args(arguments).current_dir(dir.path()).status();
        assert!(done.unwrap().success(), "{arguments:?}");
    };
    image(&["-f", "qcow2", "base.qcow2", "1M"]);
    let base = base.canonicalize().unwrap();
    let json =
        format!("json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}", base.display());
    for (format, backing) in
        [("qcow", "base.qcow2"), ("qed", "base.qcow2"), ("qcow2", "base.qcow2"), ("qcow2", json.as_str())]
    {
        image(&["-f", format, "-b", backing, "-F", "qcow2", "clone"]);
        let clone = dir.path().join("clone");
        assert!(depends_on(&clone, format).contains(&base), "{format} {backing}");
        // One that is over it, by a link and by the other format.
        image(&["-f", "qcow2", "-b", "clone", "-F", format, "above"]);
        assert!(depends_on(&dir.path().join("above"), "qcow2").contains(&base), "{format} {backing}");
    }
    // What a guest has written at the beginning of a raw image names nothing.
    let qcow = dir.path().join("clone");
    assert!(!depends_on(&qcow, "raw").contains(&base));
}

/// A revert that changes what an image depends on must not be allowed because of what it depended on before.
#[test]
fn an_image_that_was_changed_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("clone");
    let qemu_img = |arguments: &[&str]| {
        assert!(Command::new("qemu-img").args(arguments).arg(&image).status().unwrap().success());
    };
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-o", "size=1M", "-F", "qcow2", "-b", "a"]);
    assert_eq!(version(&image), None, "it may be changed again without another time");
    assert_eq!(remembered(&image).unwrap().as_deref(), Some("a"));
    let begun = std::time::Instant::now();
    while version(&image).is_none() {
        assert!(begun.elapsed().as_secs() < 60, "a file that nobody writes to has settled");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(begun.elapsed().as_secs() + 1 >= SETTLED.unsigned_abs());
    for _ in 0..2 {
        assert_eq!(remembered(&image).unwrap().as_deref(), Some("a"));
    }
    let before = version(&image);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "b"]);
    assert_eq!((version(&image), remembered(&image).unwrap().as_deref()), (None, Some("b")));
    while version(&image).is_none() {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_ne!(version(&image), before);
    assert_eq!(remembered(&image).unwrap().as_deref(), Some("b"));
    assert_eq!(version(&dir.path().join("none")), None);
}

#[test]
fn a_vmdk_names_its_parent() {
    let text = b"# Disk DescriptorFile\nversion=1\nparentFileNameHint=\"/images/base.vmdk\"\n";
    assert_eq!(in_header(text).as_deref(), Some("/images/base.vmdk"));
    assert_eq!(in_header(b"# Disk DescriptorFile\nparentFileNameHint=\"\"\n"), None);
    assert_eq!(in_header(b"QED\0"), None);
}

/// Of a chain that cannot be read to its end it is not known what it depends on.
#[test]
fn a_chain_that_cannot_be_read_is_told_so() {
    let [top, base] = ["/none/top", "/none/base"].map(PathBuf::from);
    let chain = |is_readable: bool| {
        depends_on_by(&top, "qcow2", &|path| match path == top {
            true if is_readable => Ok(Some("base".to_owned())),
            true => Err(ErrorKind::PermissionDenied.into()),
            false => Ok(None),
        })
    };
    assert_eq!(chain(true), (BTreeSet::from([top.clone(), base]), true));
    assert_eq!(chain(false), (BTreeSet::from([top.clone()]), false));
    // The error is of the first, and what comes after it can be read.
    let behind_it = depends_on_by(&top, "qcow2", &|path| match path.ends_with("top") {
        true => Ok(Some("base".to_owned())),
        false => Err(ErrorKind::PermissionDenied.into()),
    });
    assert!(!behind_it.1);
}

#[test]
fn a_file_that_is_not_there_depends_on_nothing_and_another_error_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(backing_file(&dir.path().join("none")).unwrap(), None);
    assert_ne!(backing_file(&file.join("below")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(backing_file(&file).unwrap(), None, "it is no image");
}

#[test]
fn images_of_other_formats_and_devices_may_depend_on_others_in_such_a_form() {
    let start = |path: &str, format| start(Path::new(path), format);
    for (path, format) in [("/images/a", "vmdk"), ("/dev/loop0", "raw"), ("/dev/vg/a", "qcow2"), ("/dev/a", "qed")] {
        assert_eq!(start(path, format), Some((PathBuf::from(path), format.to_owned())));
    }
    assert_eq!((start("/images/a", "qcow2"), start("/images/a", "raw")), (None, None));
}

/// One that is written twice within a second must not pass for what it was.
#[test]
fn a_file_has_settled_once_its_time_has_passed() {
    assert!(!is_settled(1000, 1000) && !is_settled(1000, 1000 + SETTLED));
    assert!(is_settled(1000, 1001 + SETTLED) && is_settled(1000, 5000));
    assert!(!is_settled(i64::MAX, i64::MAX));
}

#[test]
fn devices_are_found_by_number_or_by_name() {
    let number = rustix::fs::makedev(7, 3);
    let at = |path: &str, found| in_sysfs(Path::new(path), found);
    assert_eq!(at("/dev/loop3", Ok(Some(number))), Some(PathBuf::from("/sys/dev/block/7:3")));
    assert_eq!(at("/images/a", Ok(None)), None, "a file");
    let unseen = || Err(ErrorKind::NotFound.into());
    assert_eq!(at("/dev/loop3", unseen()), Some(PathBuf::from("/sys/class/block/loop3")));
    assert_eq!((at("/dev/mapper/a", unseen()), at("/images/a", unseen())), (None, None));
    assert_eq!(behind(Path::new("/dev/null")), Vec::<PathBuf>::new(), "it is a device of characters");
}

/// As in sysfs: a mapping over a partition of a loop device, and over another one whose file was removed.
#[test]
fn the_files_of_loop_devices_are_found_through_partitions_and_mappings() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, content: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("loop0/loop/backing_file", "/images/a\n");
    write("loop0/loop0p1/partition", "1\n");
    write("loop1/loop/backing_file", "/images/b (deleted)\n");
    std::fs::create_dir_all(dir.path().join("dm-0/slaves")).unwrap();
    for (name, to) in [("loop0p1", "loop0/loop0p1"), ("loop1", "loop1")] {
        std::os::unix::fs::symlink(dir.path().join(to), dir.path().join("dm-0/slaves").join(name)).unwrap();
    }
    let files = |device: &str| beneath_device(&dir.path().join(device)).into_iter().collect::<BTreeSet<_>>();
    let [a, b] = ["/images/a", "/images/b"].map(PathBuf::from);
    assert_eq!(files("dm-0"), BTreeSet::from([a.clone(), b.clone()]));
    assert_eq!((files("loop0"), files("loop1")), (BTreeSet::from([a]), BTreeSet::from([b])));
    assert!(files("none").is_empty());
}
