//! A desktop with all that Ravada gives one: SPICE with a viewer, QXL, sound, USB redirection, the viewer's agent.

use proto::v1;
use tests::guest::Guest;
use tests::lab::Lab;

use super::viewer::Viewer;
use super::{back, define_with};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_a_desktop_keeps_its_spice_viewer() {
    let lab = Lab::start().unwrap();
    let daemon = lab.daemon().unwrap();
    let guest = Guest::new(&lab.images().unwrap(), "desktop").unwrap();
    let socket = lab.images().unwrap().join("spice");
    let devices = format!(
        "<graphics type='spice'><listen type='socket' socket='{}'/></graphics>
         <video><model type='qxl'/></video>
         <sound model='ich6'/>
         <controller type='usb' model='ich9-ehci1'/>
         <redirdev bus='usb' type='spicevmc'/>
         <redirdev bus='usb' type='spicevmc'/>
         <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
        socket.display()
    );
    define_with(&lab, &guest, &devices);
    daemon.power_on(&guest).unwrap();
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    let pid = daemon.qemu_pid(&guest).unwrap();
    guest.write('A').unwrap();
    let first = lab.take(&guest, "first").await.unwrap();
    let mut viewer = Viewer::open(&socket);
    guest.write('B').unwrap();
    // Taken while somebody looks, and gone back to while somebody looks.
    let second = lab.take(&guest, "second").await.unwrap();
    for (snapshot, marker) in [(&first, 'A'), (&second, 'B'), (&second, 'B'), (&first, 'A')] {
        guest.write('C').unwrap();
        let before = viewer.seen();
        back(&lab, snapshot, v1::OperationMethod::InPlace).await;
        let report = guest.report().unwrap();
        assert_eq!((report.disk, report.ram), (marker, marker));
        let after = viewer.until("a new picture", |seen| seen.drawn > before.drawn);
        assert!(after.ended.is_empty(), "the viewer lost its connection: {after:?}");
        assert_eq!(after.opened, before.opened, "nothing was connected anew");
    }
    assert_eq!(daemon.qemu_pid(&guest).unwrap(), pid, "another process");
    for channel in
        ["MainChannel", "DisplayChannel", "InputsChannel", "CursorChannel", "PlaybackChannel", "UsbredirChannel"]
    {
        let opened = viewer.seen().opened;
        assert!(opened.iter().any(|one| one == channel), "no {channel}: {opened:?}");
    }
    // libvirt's own revert is what cuts a viewer off.
    daemon.virsh(&["snapshot-revert", guest.name(), tests::lab::id(&first.name)]).unwrap();
    viewer.until("end", |seen| seen.ended.iter().any(|one| one.starts_with("MainChannel")));
}
