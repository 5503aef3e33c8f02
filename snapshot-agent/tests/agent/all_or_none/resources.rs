//! Case 6: what the definition in a snapshot names has to exist before anything is touched.

use std::fs;
use std::sync::Arc;

use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_core::Reason;
use snapshot_core::operation::{DeleteScope, Method, Request, RunAfter};
use snapshot_core::snapshot::Content;

use super::{contents, definition, has_no_tags, image, revert, seen, take};
use crate::daemon::{Daemon, connected};
use crate::external::Bench;
use crate::guest::Guest;

/// A device with something of the host, by where that is, and what it is called in the refusal.
type Needing = (fn(&str) -> String, &'static str);

const DEVICES: [Needing; 3] = [
    (
        |path| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>\
                 <target dev='vdd' bus='virtio'/><readonly/></disk>"
            )
        },
        "file",
    ),
    (|path| format!("<serial type='dev'><source path='{path}'/></serial>"), "file"),
    (|path| format!("<rng model='virtio'><backend model='random'>{path}</backend></rng>"), "file"),
];

/// The VM is off, and another than then: before, it had the definition of then afterwards, and could not be started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_of_then_that_is_missing_refuses_the_revert() {
    for (device, named) in DEVICES {
        let mut bench = Bench::new(Guest::new(2));
        let needed = bench.guest.dir.join("needed");
        bench.write('A');
        let plain = definition(&bench.guest);
        fs::write(&needed, vec![0; 1 << 20]).unwrap();
        let device = device(&needed.display().to_string());
        bench.guest.define(&plain.replace("</devices>", &format!("{device}</devices>")));
        let snapshot = take(&bench, Content::Disks).await;
        bench.guest.define(&plain);
        bench.write('B');
        fs::remove_file(&needed).unwrap();
        let (before, defined) = (seen(&bench.guest), definition(&bench.guest));
        let told = bench.look().snapshot(&snapshot).unwrap().restrictions.clone();
        assert_eq!(told.iter().map(|one| one.reason).collect::<Vec<_>>(), [Reason::ResourceMissing], "{device}");
        for run_after in [RunAfter::Off, RunAfter::Running] {
            let refused = bench.start(revert(&snapshot, run_after)).await.unwrap_err();
            assert_eq!(refused.reason(), Reason::ResourceMissing, "{device}: {refused:?}");
            assert!(refused.to_string().contains(&format!("{named} {}", needed.display())), "{refused:?}");
            assert_eq!((seen(&bench.guest), definition(&bench.guest)), (before.clone(), defined.clone()), "{device}");
        }
        bench.write('B');
        fs::write(&needed, vec![0; 1 << 20]).unwrap();
        bench.done(revert(&snapshot, RunAfter::Off)).await;
        has_no_tags(&bench.guest);
        bench.guest.define(&plain);
        bench.guest.start();
        assert_eq!((bench.guest.report().disk, bench.guest.report().second), ('A', Some('A')), "{device}");
    }
}

/// The medium was a volume of a pool that is deleted while the VM runs: before, the plan said yes, and the VM was killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_deleted_refuses_the_revert_and_the_guest_runs_on() {
    let daemon = Daemon::start("volumes");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let media = daemon.host.dir.join("media");
    fs::create_dir_all(&media).unwrap();
    fs::write(media.join("tools.iso"), vec![0; 1 << 20]).unwrap();
    let drive = "<disk type='volume' device='cdrom'><driver name='qemu' type='raw'/>\
                 <source pool='media' volume='tools.iso'/><target dev='hdc' bus='ide'/><readonly/></disk>";
    let pool = {
        let guest = Guest::on(&daemon.host, 1, "");
        let xml =
            format!("<pool type='dir'><name>media</name><target><path>{}</path></target></pool>", media.display());
        let pool = guest.connect().define_storage_pool_xml(&xml, 0).unwrap();
        pool.create(0).unwrap();
        pool
    };
    let mut bench = Bench::on(&libvirt, Guest::on(&daemon.host, 2, drive));
    bench.guest.start();
    bench.write('A');
    let disks = take(&bench, Content::Disks).await;
    let memory = take(&bench, Content::DisksAndMemory).await;
    bench.write('B');
    fs::remove_file(media.join("tools.iso")).unwrap();
    let (defined, run) = (definition(&bench.guest), bench.look().instance);
    // Listed by its pool, and no longer there; then not even listed.
    for is_refreshed in [false, true] {
        if is_refreshed {
            pool.refresh(0).unwrap();
        }
        let refused = bench.start(revert(&disks, RunAfter::Running)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::ResourceMissing, "{refused:?}");
        assert_eq!((definition(&bench.guest), bench.look().instance), (defined.clone(), run));
        let report = bench.guest.report();
        assert_eq!((report.disk, report.ram, report.second), ('B', 'B', Some('B')));
    }
    // Within the process, which has it open, it can be reverted.
    let done = bench.done(revert(&memory, RunAfter::AsRecorded)).await;
    assert_eq!((done.method, bench.look().instance), (Some(Method::InPlace), run));
    let report = bench.guest.report();
    assert_eq!((report.disk, report.ram, report.second), ('A', 'A', Some('A')));
    bench.done(Request::Delete { snapshot: memory, scope: DeleteScope::Only, force: false }).await;
    // Of a VM that is off libvirt cannot delete it.
    bench.guest.domain().destroy().unwrap();
    let found = bench.guest.domain().list_all_snapshots(0).unwrap();
    assert!(found.iter().all(|snapshot| snapshot.delete(0).is_err()));
    bench.done(Request::Delete { snapshot: disks, scope: DeleteScope::Only, force: false }).await;
    assert!(bench.look().snapshots.is_empty());
    for disk in ["vda", "vdb"] {
        assert!(contents(&image(&bench.guest, disk)).0.is_empty(), "a snapshot is left in {disk}");
    }
    let _ = pool.destroy();
    let _ = pool.undefine();
}
