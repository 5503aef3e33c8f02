//! What a revert changes beside disks and memory: the plan names it, the host's policy may refuse it, the guest's clock is set
//! afterwards, and the default revert of the page is possible.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::v1;
use tests::client::Client;
use tests::guest::{Format, Guest};
use tests::lab::{Lab, Power, key};

/// How long GetVm may take to follow a change by virsh.
const TOLD: Duration = Duration::from_secs(10);
const CARD: &str = "52:54:00:00:14:01";

fn revert(snapshot: &v1::Snapshot) -> v1::RevertToSnapshotRequest {
    let run_after = v1::RunAfter::Running.into();
    v1::RevertToSnapshotRequest { name: snapshot.name.clone(), run_after, request_id: key(), ..Default::default() }
}

async fn plan(client: &Client, request: v1::RevertToSnapshotRequest) -> v1::OperationPlan {
    let asked = v1::RevertToSnapshotRequest { validate_only: true, request_id: key(), ..request };
    client.revert_as(asked).await.unwrap().plan.unwrap()
}

/// Redefines a guest, each first text replaced by the second.
fn redefine(lab: &Lab, guest: &Guest, edits: &[(&str, &str)]) {
    let mut xml = inactive(lab, guest);
    for (from, to) in edits {
        assert!(xml.contains(from), "{from} is not in {xml}");
        xml = xml.replacen(from, to, 1);
    }
    std::fs::write(guest.xml_file(), xml).unwrap();
    lab.daemon().unwrap().virsh(&["define", &guest.xml_file().display().to_string()]).unwrap();
}

fn inactive(lab: &Lab, guest: &Guest) -> String {
    lab.daemon().unwrap().virsh(&["dumpxml", "--inactive", guest.name()]).unwrap()
}

/// An administrator of the site limits the memory and isolates the network.
fn isolate(lab: &Lab, guest: &Guest) {
    let card = format!("<interface type='user'><mac address='{CARD}'/><link state='down'/></interface></devices>");
    redefine(
        lab,
        guest,
        &[
            ("16384</memory>", "65536</memory>"),
            ("16384</currentMemory>", "65536</currentMemory>"),
            ("<memory ", "<title>Exam</title><memory "),
            ("</devices>", &card),
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_9_the_plan_names_what_the_revert_then_does_to_the_definition() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("desk").await.unwrap();
    guest.write('A').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let before = inactive(&lab, &guest);
    let snapshot = lab.take(&guest, "plain").await.unwrap();
    let unchanged = plan(&lab.client, revert(&snapshot)).await;
    assert!(!unchanged.loss_details.iter().any(|loss| loss.kind() == v1::LossKind::Definition), "{unchanged:?}");
    isolate(&lab, &guest);

    let planned = plan(&lab.client, revert(&snapshot)).await;
    let changes: Vec<_> =
        planned.loss_details.iter().filter(|loss| loss.kind() == v1::LossKind::Definition).cloned().collect();
    let memory = changes.iter().find(|change| change.what == "memory").unwrap();
    assert_eq!((memory.from.as_str(), memory.to.as_str()), ("64 MiB", "16 MiB"));
    for expected in ["memory: 64 MiB \u{2192} 16 MiB", "title (Exam) is removed", &format!("network card {CARD}")] {
        assert!(planned.losses.iter().any(|loss| loss.starts_with(expected)), "{expected}: {:#?}", planned.losses);
    }

    lab.client.done(lab.client.revert_as(revert(&snapshot)).await).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    lab.set(&guest, Power::Off).await.unwrap();
    assert_eq!(inactive(&lab, &guest), before, "nothing else was changed");
}

/// A VM that is off, a snapshot of its disks, and a client that may revert and is no administrator.
async fn desk_of_a_student(lab: &Lab) -> (Guest, v1::Snapshot, Client) {
    let guest = lab.guest("desk").await.unwrap();
    guest.write('A').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let snapshot = lab.take(&guest, "plain").await.unwrap();
    let identity = lab.cluster.identity();
    let token = identity.token("student", &guest.uuid().to_string(), &["read", "create", "revert"]).unwrap();
    let student = Client::grpc(&lab.cluster, token).unwrap();
    (guest, snapshot, student)
}

/// Waits until GetVm says this of reverts: that one is available, or the reason.
async fn told(client: &Client, guest: &Guest, expected: &str) {
    let begun = Instant::now();
    loop {
        let vm = client.vm(&guest.vm()).await.unwrap();
        let revert = vm.capabilities.into_iter().find(|one| one.kind() == v1::CapabilityKind::Revert).unwrap();
        assert_eq!(revert.available, revert.reason.is_empty(), "{revert:?}");
        if revert.reason == expected {
            return;
        }
        assert!(begun.elapsed() < TOLD, "not {expected:?}: {revert:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_9_a_policy_leaves_the_definition_to_administrators() {
    let lab = Lab::with_policy("definition_on_revert = \"deny\"\n").unwrap();
    let (guest, snapshot, student) = desk_of_a_student(&lab).await;
    // As long as nothing differs, anybody may revert.
    told(&student, &guest, "").await;
    student.done(student.revert_as(revert(&snapshot)).await).await.unwrap();
    guest.write('B').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    isolate(&lab, &guest);
    let isolated = inactive(&lab, &guest);
    told(&student, &guest, "DEFINITION_CHANGE_DENIED").await;
    told(&lab.client, &guest, "").await;

    let asked = v1::RevertToSnapshotRequest { validate_only: true, ..revert(&snapshot) };
    let refused = student.revert_as(asked).await.unwrap_err();
    assert_eq!(refused.reason, "DEFINITION_CHANGE_DENIED", "{refused:?}");
    let refused = student.revert_as(revert(&snapshot)).await.unwrap_err();
    assert_eq!(refused.reason, "DEFINITION_CHANGE_DENIED", "{refused:?}");
    assert!(refused.message.contains("memory: 64 MiB \u{2192} 16 MiB"), "{refused:?}");
    assert_eq!(inactive(&lab, &guest), isolated, "nothing was changed");
    lab.set(&guest, Power::Running).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B', "nothing was changed");

    lab.client.done(lab.client.revert_as(revert(&snapshot)).await).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A', "an administrator may");
    told(&student, &guest, "").await;
    lab.set(&guest, Power::Off).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_9_a_policy_keeps_the_definition_and_reverts_the_disks() {
    let lab = Lab::with_policy("definition_on_revert = \"keep\"\n").unwrap();
    let (guest, snapshot, student) = desk_of_a_student(&lab).await;
    isolate(&lab, &guest);
    let isolated = inactive(&lab, &guest);
    for before in [Power::Running, Power::Off] {
        lab.set(&guest, Power::Running).await.unwrap();
        guest.write('B').unwrap();
        lab.set(&guest, before).await.unwrap();
        let planned = plan(&student, revert(&snapshot)).await;
        assert!(!planned.loss_details.iter().any(|loss| loss.kind() == v1::LossKind::Definition), "{planned:?}");
        student.done(student.revert_as(revert(&snapshot)).await).await.unwrap();
        assert_eq!(inactive(&lab, &guest), isolated, "the definition stays");
        assert_eq!(guest.report().unwrap().disk, 'A', "the VM runs, with the disks of the snapshot");
        let running = lab.daemon().unwrap().virsh(&["dumpxml", guest.name()]).unwrap();
        assert!(running.contains("65536</memory>") && running.contains(CARD), "{running}");
    }
    told(&student, &guest, "").await;
    // An administrator's revert restores the definition as well.
    lab.client.done(lab.client.revert_as(revert(&snapshot)).await).await.unwrap();
    assert_ne!(inactive(&lab, &guest), isolated);
    // A running state needs the definition that it was saved with.
    let (content, request_id) = (v1::SnapshotContent::DisksAndMemory.into(), key());
    let taken = v1::Snapshot { display_name: "running".to_owned(), content, ..Default::default() };
    let create =
        v1::CreateSnapshotRequest { parent: guest.vm(), snapshot: Some(taken), request_id, ..Default::default() };
    lab.client.done(lab.client.create_as(create).await).await.unwrap();
    lab.remove(&snapshot, v1::DeleteScope::Only).await.unwrap();
    told(&student, &guest, "").await;
    lab.set(&guest, Power::Off).await.unwrap();
    redefine(&lab, &guest, &[("<memory ", "<title>Lecture</title><memory ")]);
    told(&student, &guest, "DEFINITION_CHANGE_DENIED").await;
    told(&lab.client, &guest, "").await;
}

/// Seconds by which the guest's clock is before the host's.
fn behind(guest: &Guest) -> i64 {
    let told: i64 = guest.shell("date +%s").unwrap().ok().unwrap().trim().parse().unwrap();
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap() - told
}

async fn clock_after_reverts(policy: &str, method: v1::OperationMethod) {
    let lab = Lab::with_policy(policy).unwrap();
    let guest = Guest::linux(&lab.images().unwrap(), "linux", 1).unwrap();
    lab.run(&guest).await.unwrap();
    // The state that is saved is an hour old when it is gone back to, as after an hour.
    guest.shell("date -s @$(( $(date +%s) - 3600 ))").unwrap().ok().unwrap();
    assert!(behind(&guest) > 3500);
    let snapshot = lab.take(&guest, "an hour ago").await.unwrap();
    let done = lab.client.done(lab.client.revert_as(revert(&snapshot)).await).await.unwrap();
    assert_eq!(done.method(), method, "{done:?}");
    assert_eq!(done.notes, [], "{done:?}");
    assert!(behind(&guest).abs() < 60, "the clock is {} s behind", behind(&guest));

    // Without an agent the outcome says that it was not set.
    guest.shell("date -s @$(( $(date +%s) - 3600 )); killall qemu-ga").unwrap().ok().unwrap();
    let snapshot = lab.take(&guest, "without an agent").await.unwrap();
    let done = lab.client.done(lab.client.revert_as(revert(&snapshot)).await).await.unwrap();
    let kinds: Vec<_> = done.notes.iter().map(v1::OperationNote::kind).collect();
    assert_eq!(kinds, [v1::OperationNoteKind::GuestClockNotSet], "{done:?}");
    assert!(behind(&guest) > 3500, "and it says so rightly");
    assert_eq!(lab.client.operation(&done.name).await.unwrap().notes, done.notes, "it is kept");
    lab.set(&guest, Power::Off).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_9_the_guests_clock_is_set_after_a_revert_in_place() {
    clock_after_reverts("", v1::OperationMethod::InPlace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_9_the_guests_clock_is_set_after_libvirts_revert() {
    clock_after_reverts("in_place_reverts = false\n", v1::OperationMethod::Libvirt).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_11_with_raw_uefi_variables_the_default_revert_keeps_the_disks_and_says_that_the_running_state_is_lost() {
    let lab = Lab::live("").unwrap();
    let guest = Guest::uefi(&lab.images().unwrap(), "raw", Format::Raw).unwrap();
    lab.run(&guest).await.unwrap();
    guest.shell("echo old >/data/file && sync").unwrap().ok().unwrap();
    let old = lab.take(&guest, "old").await.unwrap();
    guest.shell("echo new >/data/file && sync").unwrap().ok().unwrap();
    let request = v1::RevertToSnapshotRequest { save_current: true, ..revert(&old) };
    let planned = plan(&lab.client, request.clone()).await;
    let kinds: Vec<_> = planned.loss_details.iter().map(v1::Loss::kind).collect();
    assert!(kinds.contains(&v1::LossKind::RunningState) && !kinds.contains(&v1::LossKind::Changes), "{planned:?}");
    assert!(planned.method_message.contains("running state is not saved"), "{planned:?}");
    let done = lab.client.done(lab.client.revert_as(request).await).await.unwrap();
    assert_eq!(guest.shell("cat /data/file").unwrap().ok().unwrap(), "old\n");
    let saved = lab.client.snapshot(&done.saved_snapshot).await.unwrap();
    assert_eq!(saved.content(), v1::SnapshotContent::Disks);
    lab.client.done(lab.client.revert_as(revert(&saved)).await).await.unwrap();
    assert_eq!(guest.shell("cat /data/file").unwrap().ok().unwrap(), "new\n", "what it was is there");
    lab.set(&guest, Power::Off).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_11_a_full_list_allows_the_default_revert_once() {
    let lab = Lab::with_policy("max_snapshots_per_vm = 2\n").unwrap();
    let guest = lab.guest("desk").await.unwrap();
    guest.write('A').unwrap();
    let first = lab.take(&guest, "first").await.unwrap();
    lab.take(&guest, "second").await.unwrap();
    assert_eq!(lab.client.create(&guest.vm(), "third", "").await.unwrap_err().reason, "SNAPSHOT_LIMIT");
    guest.write('B').unwrap();
    let request = v1::RevertToSnapshotRequest { save_current: true, ..revert(&first) };
    let done = lab.client.done(lab.client.revert_as(request.clone()).await).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    let refused =
        lab.client.revert_as(v1::RevertToSnapshotRequest { request_id: key(), validate_only: true, ..request });
    assert_eq!(refused.await.unwrap_err().reason, "SNAPSHOT_LIMIT");
    let saved = lab.client.snapshot(&done.saved_snapshot).await.unwrap();
    lab.client.done(lab.client.revert_as(revert(&saved)).await).await.unwrap();
    assert_eq!((guest.report().unwrap().disk, guest.report().unwrap().ram), ('B', 'B'), "nothing was lost");
    lab.agreed(&guest).await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
}
