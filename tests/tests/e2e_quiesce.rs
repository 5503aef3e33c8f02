//! File systems frozen for a snapshot, by the guest's own agent: a Linux guest with ext4.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::process::Command;

use proto::v1;
use tests::guest::Guest;
use tests::lab::{Lab, Power, key, quiesced};
use tests::tools::run;

/// What the guest's agent says of its file systems: `thawed` or `frozen`.
fn status(lab: &Lab, guest: &Guest) -> String {
    let ask = r#"{"execute":"guest-fsfreeze-status"}"#;
    let told = lab.daemon().unwrap().virsh(&["qemu-agent-command", guest.name(), ask]).unwrap();
    told.trim().trim_start_matches("{\"return\":\"").trim_end_matches("\"}").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_and_not_synced_is_in_the_snapshot_and_the_guest_goes_on() {
    let lab = Lab::with_policy("stable_paths = false\n").unwrap();
    let guest = Guest::linux(&lab.images().unwrap(), "linux", 2).unwrap();
    lab.run(&guest).await.unwrap();
    // Nothing but the freeze makes it go to the disks in time: the kernel waits half a minute by itself.
    guest.shell("echo before >/data/file; echo too >/data2/file").unwrap().ok().unwrap();

    let taken = lab.client.done(lab.client.create_as(quiesced(&guest)).await).await.unwrap();
    assert_eq!(status(&lab, &guest), "thawed");
    guest.shell("echo after >/data/file && sync").unwrap().ok().unwrap();
    for (disk, expected) in guest.disks().iter().zip(["before\n", "too\n"]) {
        // The image that the snapshot froze, as a machine would find it that booted from it.
        let raw = disk.path().with_extension("raw");
        run(Command::new("qemu-img").args(["convert", "-U", "-O", "raw"]).arg(disk.path()).arg(&raw)).unwrap();
        assert_eq!(run(Command::new("debugfs").args(["-R", "cat /file"]).arg(&raw)).unwrap(), expected);
    }

    // Somebody else has frozen them: that is refused, and left as it is.
    let daemon = lab.daemon().unwrap();
    daemon.virsh(&["domfsfreeze", guest.name()]).unwrap();
    let refused = lab.client.ended(lab.client.create_as(quiesced(&guest)).await.unwrap()).await.unwrap();
    assert_eq!(refused.error.unwrap().reason, "GUEST_FROZEN");
    assert_eq!(status(&lab, &guest), "frozen");
    daemon.virsh(&["domfsthaw", guest.name()]).unwrap();

    let back = v1::RevertToSnapshotRequest {
        name: taken.snapshot,
        run_after: v1::RunAfter::Running.into(),
        request_id: key(),
        ..Default::default()
    };
    lab.client.done(lab.client.revert_as(back).await).await.unwrap();
    assert_eq!(guest.shell("cat /data/file").unwrap().ok().unwrap(), "before\n");
    lab.set(&guest, Power::Off).await.unwrap();
}
