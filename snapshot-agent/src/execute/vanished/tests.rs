use std::collections::BTreeMap;

use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layer, Parts};
use snapshot_core::operation::{Create, DeleteScope, RunAfter};
use snapshot_core::plan::PowerState;
use snapshot_core::restriction::RestrictedOperation;
use snapshot_core::text::{Description, DisplayName};
use snapshot_core::vm::VmState;

use super::*;
use crate::clock::Moment;
use crate::journal::Before;
use crate::owned::tests::{Fixture, id, seen};

/// A purge of an image that the VM does not have any more needs to know who else uses it.
#[test]
fn an_image_that_is_none_of_the_vms_disks_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let [disk, link, other, nvram] = ["disk", "link", "other", "nvram"].map(|name| dir.path().join(name));
    std::fs::write(&disk, "").unwrap();
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let mut seen = seen(&[], &[(&disk, None)]);
    seen.nvram = Some(nvram.clone());
    let has_left = |images: &[&PathBuf]| has_left(&seen, images.iter().copied());
    assert!(!has_left(&[]) && !has_left(&[&disk, &link, &nvram]));
    assert!(has_left(&[&disk, &other]) && has_left(&[&other]));
}

#[test]
fn what_is_out_of_reach_is_refused_but_for_words() {
    let mut seen = seen(&[], &[]);
    seen.layers.live.insert("vda".to_owned(), "/far/vda".to_owned());
    seen.layers.files.insert("/far/vda".to_owned(), Layer::default());
    let directories = Beneath::open(&[], &[]);
    let snapshot: SnapshotId = id(1);
    let update = Request::Update {
        snapshot: snapshot.clone(),
        display_name: DisplayName::parse("exam").unwrap(),
        description: Description::default(),
        protected: false,
    };
    check_reach(&directories, &seen, &update).unwrap();
    for request in
        [Request::Purge { force: true }, Request::Delete { snapshot, scope: DeleteScope::Only, force: false }]
    {
        let refusal = check_reach(&directories, &seen, &request).unwrap_err();
        assert_eq!(refusal.reason(), Reason::ImageOutOfReach);
        check_reach(Beneath::anywhere(), &seen, &request).unwrap();
    }
}

#[test]
fn what_a_vm_left_is_removed_only_by_a_purge_of_one_that_does_not_exist() {
    let purge = Request::Purge { force: true };
    let delete = Request::Delete { snapshot: id(1), scope: DeleteScope::Subtree, force: true };
    let [gone, other] = [Reason::VmNotFound, Reason::HypervisorFailed].map(|reason| Error::new(reason, "so"));
    assert!(is_purge(&purge) && !is_purge(&delete));
    let ends = |request: &Request, error: &Error| {
        let halt = unless_left_behind(request, Halt::Failed(error.clone()))?;
        let Halt::Failed(error) = halt else { panic!("it failed: {halt:?}") };
        Some(error.reason())
    };
    assert_eq!(ends(&purge, &gone), None);
    assert_eq!(ends(&purge, &other), Some(Reason::HypervisorFailed), "it may be there");
    assert_eq!(ends(&delete, &gone), Some(Reason::VmNotFound), "its files were not asked for");
    assert!(matches!(unless_left_behind(&purge, Halt::LeftOff), Some(Halt::LeftOff)));
    assert!(matches!(unless_left_behind(&purge, Halt::Cancelled), Some(Halt::Cancelled)));
}

/// A revert has to know whose images it changes.
#[test]
fn vms_that_are_new_are_waited_for_once_and_only_where_the_others_are_known() {
    let machines = Machines::default();
    let most = Duration::from_millis(30);
    let vms = || vec![crate::owned::tests::vm()];
    let since = Instant::now();
    // Nothing was looked at yet, and what is not known of them all the same is told elsewhere.
    await_new_vms(&machines, || panic!("nobody is waited for"), Duration::from_secs(60));
    machines.set_synced(true);
    await_new_vms(&machines, Vec::new, Duration::from_secs(60));
    assert!(since.elapsed() < Duration::from_secs(50));
    let since = Instant::now();
    await_new_vms(&machines, vms, most);
    assert!(since.elapsed() >= most, "it may be looked at in the meantime");
    assert!(!machines.has_new(&vms()), "it is waited for once");
    await_new_vms(&machines, vms, Duration::from_secs(60));
    assert!(since.elapsed() < Duration::from_secs(50));
}

#[test]
fn what_others_use_is_found_out_before_files_are_merged_or_removed() {
    let mut layers = seen(&[], &[]).layers;
    let of = |steps: &[Step]| Plan {
        steps: steps.to_vec(),
        bytes_written: 0,
        predicted_pause_ms: None,
        losses: Vec::new(),
        method: None,
        other_way: None,
    };
    let mark = Step::MarkDeleted { snapshot: id(1) };
    let inside = of(&[Step::DeleteInternal { snapshot: id(1) }]);
    let deletion = of(&[mark, Step::MergeLayers { disk: "vda".to_owned() }, Step::CleanUp]);
    assert!(!merges_or_removes(&deletion, &layers), "of a VM that is recalled no file is merged");
    layers.live.insert("vda".to_owned(), "/none/a".to_owned());
    assert!(merges_or_removes(&deletion, &layers) && !merges_or_removes(&inside, &layers));
}

#[test]
fn what_is_known_of_mixed_disks_takes_nothing_else_away() {
    let restriction = |reason| Restriction::new(RestrictedOperation::ALL, reason, "so");
    let [mixed, other] = [Reason::DisksMixed, Reason::ImageUnavailable].map(restriction);
    let mut restrictions = vec![mixed.clone(), other.clone()];
    replace_mixed(&mut restrictions, Vec::new());
    assert_eq!(restrictions, std::slice::from_ref(&other));
    replace_mixed(&mut restrictions, vec![mixed.clone()]);
    assert_eq!(restrictions, [other, mixed]);
}

#[test]
fn an_image_on_record_is_lost_where_the_vm_has_it_no_more() {
    let fixture = Fixture::new();
    let (a, b) = (Path::new("/none/a"), Path::new("/none/b"));
    let inside = [id(1)];
    let both = seen(&inside, &[(a, Some(&inside)), (b, Some(&inside))]);
    fixture.owned.saw(&both);
    let record = fixture.owned.get(both.vm.id).unwrap();
    assert!(!has_lost_images(&record, &both));
    assert!(has_lost_images(&record, &seen(&inside, &[(a, Some(&inside))])));
}

fn entry(request: Request, steps: Vec<Step>) -> Entry {
    Entry {
        operation: "0191f7a0-0000-7000-8000-000000000001".parse().unwrap(),
        vm: crate::owned::tests::vm(),
        request,
        actor: "issuer/somebody".to_owned(),
        issuer: "issuer".to_owned(),
        token_id: String::new(),
        request_id: String::new(),
        steps,
        method: None,
        cancellable: false,
        predicted_pause_ms: None,
        before: Before { state: VmState::Running, instance: None },
        active: BTreeMap::new(),
        accepted: Moment::now(),
    }
}

/// The VM may be gone before it is looked at again, and libvirt creates files before it has a record of its own.
#[test]
fn a_snapshot_is_on_record_with_its_files_before_it_is_taken() {
    let fixture = Fixture::new();
    let image = fixture.dir.path().join("a.qcow2");
    std::fs::write(&image, "").unwrap();
    let seen = seen(&[], &[(&image, Some(&[]))]);
    let create = || Create {
        snapshot: id(1),
        display_name: DisplayName::parse("exam").unwrap(),
        description: Description::default(),
        protected: true,
        content: None,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    };
    let overlay = PathBuf::from(overlay_paths([("vda", image.to_str().unwrap())], &id(1)).remove("vda").unwrap());
    let memory = PathBuf::from(memory_path(image.to_str().unwrap(), &id(1)));
    let external = |memory| Step::CreateExternal { snapshot: id(1), memory, quiesce: false };
    let recorded = |request: Request, steps: Vec<Step>| {
        let fixture = Fixture::new();
        expect(&fixture.owned, &seen, &entry(request, steps));
        fixture.owned.get(seen.vm.id)
    };
    let delete = Request::Delete { snapshot: id(1), scope: DeleteScope::Only, force: false };
    assert!(recorded(delete, vec![Step::DeleteInternal { snapshot: id(1) }]).is_none());
    let record = recorded(Request::Create(create()), vec![external(true)]).unwrap();
    assert_eq!(record.files.keys().collect::<BTreeSet<_>>(), BTreeSet::from([&overlay, &memory]));
    let label = &record.snapshots[&id(1)].label;
    assert_eq!((label.actor.as_str(), label.issuer.as_str(), label.protected), ("issuer/somebody", "issuer", true));
    let record = recorded(Request::Create(create()), vec![external(false)]).unwrap();
    assert_eq!(record.files.keys().collect::<Vec<_>>(), [&overlay]);
    // Inside the images no file is created; also where it is taken before a revert.
    let revert = Request::Revert { snapshot: id(2), run_after: RunAfter::AsRecorded, save_current: Some(create()) };
    let steps = vec![Step::CreateInternal { snapshot: id(1), memory: true }];
    let record = recorded(revert, steps).unwrap();
    assert!(record.files.is_empty() && record.images[&image].contains_key(&id(1)));
}

/// What a deletion and a revert change of the record decides which files are removed later.
#[test]
fn a_step_that_is_done_is_on_record() {
    let fixture = Fixture::new();
    let inside = [id(1), id(2)];
    let mut vm = seen(&inside, &[(Path::new("/none/a"), Some(&inside))]);
    fixture.owned.saw(&vm);
    let listed = || fixture.owned.get(vm.vm.id).unwrap().snapshots.into_keys().collect::<Vec<_>>();
    let unseen = || -> Result<Observed, Halt> { panic!("nothing is looked at") };
    let id_of_vm = vm.vm.id;
    remember_step(&fixture.owned, id_of_vm, &Step::CleanUp, unseen).unwrap();
    assert_eq!(listed(), inside);
    remember_step(&fixture.owned, id_of_vm, &Step::MarkDeleted { snapshot: id(1) }, unseen).unwrap();
    assert_eq!(listed(), inside[1..]);
    // After a revert libvirt has laid an overlay on what the snapshot froze.
    let base = fixture.dir.path().join("a.qcow2");
    let overlay = fixture.dir.path().join("a.1795413559");
    for path in [&base, &overlay] {
        std::fs::write(path, "").unwrap();
    }
    let [base, overlay] = [base, overlay].map(|path| path.display().to_string());
    let above = Layer { backing: Some(base.clone()), ..Layer::default() };
    vm.layers.files.extend([(base.clone(), Layer::default()), (overlay.clone(), above)]);
    vm.layers.live.insert("vda".to_owned(), overlay.clone());
    let revert = |of: u128| Step::RevertExternal { snapshot: id(of), then: PowerState::Off };
    let files = |fixture: &Fixture| fixture.owned.get(id_of_vm).unwrap().files.into_keys().collect::<Vec<_>>();
    remember_step(&fixture.owned, id_of_vm, &revert(3), || Ok(vm.clone())).unwrap();
    assert!(files(&fixture).is_empty(), "libvirt has no such snapshot");
    let parts = Parts { frozen: [("vda".to_owned(), base)].into(), ..Parts::default() };
    vm.layers.snapshots.insert(id(3), parts);
    remember_step(&fixture.owned, id_of_vm, &revert(3), || Ok(vm.clone())).unwrap();
    assert_eq!(files(&fixture), [PathBuf::from(overlay)]);
    remember_step(&fixture.owned, id_of_vm, &revert(3), || Err(Halt::LeftOff)).unwrap_err();
}
