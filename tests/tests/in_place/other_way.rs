//! Where it cannot be in place, libvirt's own revert does it, and the operation says so.

use proto::v1;
use tests::guest::{Disk, Format, Guest};
use tests::lab::{Lab, Power, id};

use crate::{back, define, define_with, planned, revert_capability};

/// What plans say of each case.
const SAID: [(&str, &str); 7] = [
    ("a disk more", "other disks"),
    ("more RAM", "memory"),
    ("a CPU more", "vcpu"),
    ("another CPU", "cpu"),
    ("another next start", "watchdog"),
    ("another tool's", "another tool took the snapshot"),
    ("the policy", "policy"),
];

/// Goes back by libvirt's own revert: another process, and the guest is right. The plan says so before, and why.
async fn by_libvirt(lab: &Lab, guest: &Guest, snapshot: &v1::Snapshot, why: &str) {
    let daemon = lab.daemon().unwrap();
    let plan = planned(lab, snapshot).await;
    assert_eq!((plan.method(), plan.pauses), (v1::OperationMethod::Libvirt, false), "{why}: {plan:?}");
    let said = &plan.method_message;
    let known = SAID.iter().find(|(case, _)| *case == why).unwrap().1;
    assert!(said.starts_with("not in place: ") && said.contains(known), "{why}: {said}");
    let pid = daemon.qemu_pid(guest).unwrap();
    let done = lab.return_to(snapshot).await.unwrap();
    assert_eq!(done.method(), v1::OperationMethod::Libvirt, "{why}: {done:?}");
    assert_ne!(daemon.qemu_pid(guest).unwrap(), pid, "{why}");
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('A', 'A'), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_other_hardware_is_left_to_libvirt() {
    let lab = Lab::start().unwrap();
    let (daemon, folder) = (lab.daemon().unwrap(), lab.images().unwrap());
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let taken = lab.take(&guest, "A").await.unwrap();
    let restart = async || {
        lab.set(&guest, Power::Off).await.unwrap();
        lab.set(&guest, Power::Running).await.unwrap();
        guest.write('B').unwrap();
    };
    let disk = Disk::empty(&folder.join("more.qcow2"), Format::Qcow2).unwrap();
    let source = format!("<driver name='qemu' type='qcow2'/><source file='{}'/>", disk.path().display());
    define_with(&lab, &guest, &format!("<disk type='file'>{source}<target dev='vdb' bus='virtio'/></disk>"));
    restart().await;
    by_libvirt(&lab, &guest, &taken, "a disk more").await;
    // libvirt has put the machine back as it was, with that.
    back(&lab, &taken, v1::OperationMethod::InPlace).await;
    assert_eq!(guest.report().unwrap().disk, 'A');
    // More RAM, and another CPU, from the next start on.
    let xml = guest.xml().unwrap();
    let changes = [
        ("<memory unit='MiB'>16<", "<memory unit='MiB'>24<", "more RAM"),
        ("<vcpu>1<", "<vcpu>2<", "a CPU more"),
        ("<os>", "<cpu mode='custom'><model>Nehalem</model></cpu><os>", "another CPU"),
    ];
    for (from, to, why) in changes {
        assert!(xml.contains(from), "{from} in {xml}");
        define(&lab, &guest, &xml.replace(from, to));
        restart().await;
        by_libvirt(&lab, &guest, &taken, why).await;
    }
    // The next start alone counts: a revert brings that back, too.
    define_with(&lab, &guest, "<watchdog model='i6300esb'/>");
    by_libvirt(&lab, &guest, &taken, "another next start").await;
    let next = daemon.virsh(&["dumpxml", "--inactive", guest.name()]).unwrap();
    assert!(!next.contains("i6300esb"), "{next}");
    back(&lab, &taken, v1::OperationMethod::InPlace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_another_tools_snapshot_is_left_to_libvirt() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    lab.daemon().unwrap().virsh(&["snapshot-create-as", guest.name(), "theirs"]).unwrap();
    let listed = lab.agreed_soon(&guest).await.unwrap();
    assert_eq!(id(&listed[0].name), "theirs");
    guest.write('B').unwrap();
    by_libvirt(&lab, &guest, &listed[0], "another tool's").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_is_what_the_policy_allows() {
    let lab = Lab::with_policy("in_place_reverts = false").unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let taken = lab.take(&guest, "A").await.unwrap();
    guest.write('B').unwrap();
    let capability = revert_capability(&lab, &guest).await;
    assert!(capability.available && !capability.pauses, "{capability:?}");
    assert_eq!(capability.method(), v1::OperationMethod::Libvirt);
    assert!(capability.method_message.contains("policy"), "{capability:?}");
    by_libvirt(&lab, &guest, &taken, "the policy").await;
}

/// libvirt refuses it too; and QEMU would load in place under the job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_waits_for_no_block_job_and_is_refused_beside_one() {
    let lab = Lab::start().unwrap();
    let daemon = lab.daemon().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let taken = lab.take(&guest, "A").await.unwrap();
    guest.write('B').unwrap();
    let copy = lab.images().unwrap().join("copy.qcow2").display().to_string();
    daemon.virsh(&["blockcopy", guest.name(), "vda", "--dest", &copy, "--transient-job"]).unwrap();
    let refusal = lab.client.revert(&taken.name).await.unwrap_err();
    assert_eq!((refusal.reason.as_str(), refusal.metadata["disk"].as_str()), ("BLOCK_JOB_ACTIVE", "vda"));
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('B', 'B'), "nothing was done");
    daemon.virsh(&["blockjob", guest.name(), "vda", "--abort"]).unwrap();
    back(&lab, &taken, v1::OperationMethod::InPlace).await;
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('A', 'A'));
}
