//! Images that several VMs use. Case 5: a revert of one changes what the others read.

use super::*;
use snapshot_core::plan::PowerState;

/// A VM on an overlay of another one's first disk.
fn clone_of(case: &Case) -> Guest {
    let clone = Guest::new(1);
    let base = case.image("vda");
    let create = ["create", "-q", "-f", "qcow2", "-b", base.to_str().unwrap(), "-F", "qcow2", "vda.qcow2"];
    run(&clone.dir, "qemu-img", &create);
    clone
}

fn name(guest: &Guest) -> String {
    guest.vm.to_string()[..8].to_owned()
}

/// What a clone reads of its base, without being started.
fn through(clone: &Guest) -> char {
    marker(&clone.dir.join("vda.qcow2"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_revert_that_would_change_a_linked_clone_is_refused() {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    let clone = clone_of(&case);
    assert_eq!(through(&clone), 'B');
    // What happens where it is done all the same.
    let copy = fs::read(case.image("vda")).unwrap();
    case.libvirt.revert_internal(case.guest.vm, &ours, PowerState::Off).unwrap();
    assert_eq!(through(&clone), 'A', "the clone was rewritten");
    case.libvirt.revert_internal(case.guest.vm, &ours, PowerState::Off).unwrap();
    fs::write(case.image("vda"), copy).unwrap();
    case.look();
    case.see(&clone);
    let told = name(&clone);
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::ImageInUse, &told).await;
    assert_eq!(case.capability(CapabilityKind::Revert), Err(Reason::ImageInUse));
    assert_eq!(through(&clone), 'B');
    // What changes nothing that the clone reads is done: another snapshot, and a deletion.
    let other = case.take(Content::Disks).await;
    assert_eq!(through(&clone), 'B');
    case.done(delete(&other)).await;
    assert_eq!(through(&clone), 'B');
    // Both kinds of revert.
    case.guest.start();
    let with_memory = case.take(Content::DisksAndMemory).await;
    case.refused(revert(&with_memory, RunAfter::AsRecorded), Reason::ImageInUse, &told).await;
    assert_eq!(case.state(), VmState::Running);
    case.libvirt.power_off(case.guest.vm).unwrap();
    // The clone's own snapshots are its own.
    let of_clone = Case { guest: clone, ..Case::new(Guest::new(1)) };
    of_clone.write('K');
    let its = of_clone.take(Content::Disks).await;
    of_clone.write('L');
    of_clone.machines.saw(&case.look());
    of_clone.done(revert(&its, RunAfter::AsRecorded)).await;
    assert_eq!(of_clone.reads().0, 'K');
    // When it is gone, the base may go back.
    let vm = of_clone.guest.vm;
    drop(of_clone);
    case.machines.vanished(vm);
    assert_eq!(case.plan(revert(&ours, RunAfter::AsRecorded)).await, Ok(()));
    assert_eq!(case.capability(CapabilityKind::Revert), Ok(()));
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
}

/// A clone that runs locks its base as well, in a VM that is off.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_clone_that_runs_keeps_its_base_from_being_touched() {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    let clone = clone_of(&case);
    clone.start();
    case.see(&clone);
    for request in [revert(&ours, RunAfter::AsRecorded), creation(&id(), Content::Disks), delete(&ours)] {
        case.refused(request, Reason::ImageInUse, "disk vda").await;
    }
    assert_eq!(clone.report().disk, 'B');
    case.libvirt.power_off(clone.vm).unwrap();
    assert_eq!(case.reads(), ('B', Some('B')));
}

/// The same image as a disk of two VMs, and one that only a snapshot of the other leads to.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_is_a_disk_or_in_a_snapshot_of_another_vm_is_not_reverted() {
    let case = Case::new(Guest::new(1));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    let other = Guest::new(1);
    let theirs = other.domain().xml_desc(2).unwrap();
    let image = |guest: &Guest| guest.dir.join("vda.qcow2").display().to_string();
    let shared = theirs.replace(&image(&other), &image(&case.guest));
    let connection = other.domain().connect().unwrap();
    connection.define_domain_xml(&shared).unwrap();
    case.look();
    case.see(&other);
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::ImageInUse, &name(&other)).await;
    // It takes a snapshot there, and goes back to its own disk.
    let xml = "<domainsnapshot><name>theirs</name></domainsnapshot>";
    other.domain().create_snapshot_xml(xml, 0).unwrap();
    connection.define_domain_xml(&theirs).unwrap();
    case.see(&other);
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::ImageInUse, &name(&other)).await;
    other.domain().list_all_snapshots(0).unwrap()[0].delete(2).unwrap();
    case.see(&other);
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads().0, 'A');
}

/// Many clones of one golden image are in nobody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clones_of_a_golden_image_are_reverted() {
    let golden = Case::new(Guest::new(1));
    golden.write('G');
    let first = Case::new(clone_of(&golden));
    let second = clone_of(&golden);
    first.see(&golden.guest);
    first.see(&second);
    first.write('A');
    let ours = first.take(Content::Disks).await;
    first.write('B');
    first.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(first.reads().0, 'A');
    assert_eq!(through(&second), 'G');
}

/// A loop device over an image, until this is dropped.
struct Loop(String);

impl Loop {
    fn over(image: &Path) -> Self {
        let made = Command::new("losetup").args(["-f", "--show"]).arg(image).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(String::from_utf8(made.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Ways to depend on an image in which this service takes no snapshots.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_another_vm_depends_on_in_an_unusual_way_is_not_reverted() {
    let case = Case::new(Guest::new(1));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    let base = case.image("vda").display().to_string();
    let other = Guest::new(1);
    let theirs = other.domain().xml_desc(2).unwrap();
    let own = other.dir.join("vda.qcow2").display().to_string();
    let clone = other.dir.join("clone").display().to_string();
    let json = format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}"}}}}"#);
    let create = |arguments: &[&str]| run(&other.dir, "qemu-img", &[&["create", "-q"], arguments].concat());
    let on = |path: &str, format: &str| theirs.replace(&own, path).replace("type='qcow2'", &format!("type='{format}'"));
    let device = Loop::over(&case.image("vda"));
    let block =
        on(&device.0, "qcow2").replace("disk type='file'", "disk type='block'").replace("source file=", "source dev=");
    let below = format!(
        "<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore><target "
    );
    let over_json = other.dir.join("over-json").display().to_string();
    let forms: [(&str, &[&[&str]], String); 6] = [
        ("QCOW", &[&["-f", "qcow", "-b", &base, "-F", "qcow2", &clone]], on(&clone, "qcow")),
        ("QED", &[&["-f", "qed", "-b", &base, "-F", "qcow2", &clone]], on(&clone, "qed")),
        ("JSON", &[&["-f", "qcow2", "-b", &json, "-F", "qcow2", &clone]], on(&clone, "qcow2")),
        ("over JSON", &[&["-f", "qcow2", "-b", &clone, "-F", "qcow2", &over_json]], on(&over_json, "qcow2")),
        ("definition", &[&["-f", "qcow2", &clone, "64M"]], on(&clone, "qcow2").replacen("<target ", &below, 1)),
        ("loop device", &[], block),
    ];
    for (form, images, xml) in forms {
        images.iter().for_each(|arguments| create(arguments));
        other.define(&xml);
        case.look();
        case.see(&other);
        assert_eq!(case.capability(CapabilityKind::Revert), Err(Reason::ImageInUse), "{form}");
        case.refused(revert(&ours, RunAfter::AsRecorded), Reason::ImageInUse, &name(&other)).await;
        // A merge would take it into account, too.
        assert!(case.libvirt.elsewhere(case.guest.vm).unwrap().contains(&base), "{form}");
    }
    other.define(&theirs);
    case.see(&other);
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads().0, 'A');
}
