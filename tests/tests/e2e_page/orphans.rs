//! That images of detached disks are kept is said on the page of their VM, to everybody who may read it, as long as it is so.

use proto::v1;
use serde_json::json;
use tests::client::HOSTS;
use tests::guest::{Disk, Format, Guest};
use tests::lab::{Lab, Power};

use super::browser::Browser;
use super::{no_complaints, page};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_detached_disks_are_told_of() {
    let lab = Lab::with_policy("stable_paths = false\n").unwrap();
    let images = lab.images().unwrap();
    let mut disks = vec![Disk::boot(&images.join("desktop.qcow2"), Format::Qcow2).unwrap()];
    disks.extend(
        ["data", "scratch"].map(|name| Disk::empty(&images.join(format!("{name}.qcow2")), Format::Qcow2).unwrap()),
    );
    let guest = Guest::with_disks(&images, "desktop", disks).unwrap();
    lab.run(&guest).await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    lab.take_external(&guest, "before exam").await.unwrap();

    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let token = lab.cluster.identity().token("student", &guest.uuid().to_string(), &["read"]).unwrap();
    let address = format!("{}#vm={}&token={token}", page(&lab.cluster), guest.uuid());
    let (student, _) = browser.open("student", &address).unwrap();
    let seen = student.until("the machine", |seen| seen.names() == ["before exam"]).unwrap();
    assert!(seen["orphans"].is_null(), "{seen:?}");
    for (target, told) in
        [("vdb", "1 image of a detached disk is kept"), ("vdc", "2 images of detached disks are kept")]
    {
        lab.daemon().unwrap().virsh(&["detach-disk", guest.name(), target, "--config"]).unwrap();
        let says = |seen: &super::browser::Seen| seen["orphans"].as_str().is_some_and(|text| text.starts_with(told));
        student.until(told, says).unwrap();
    }
    student.act("resize", json!({"width": 1000, "height": 700})).unwrap();
    student.screenshot("orphans").unwrap();
    student.audit("images of detached disks").unwrap();

    let request = v1::ListOrphansRequest { parent: "hosts/-".to_owned(), ..Default::default() };
    let all: v1::ListOrphansResponse = lab.client.call((HOSTS, "ListOrphans"), &request).await.unwrap();
    for v1::Orphan { name, etag, .. } in all.orphans {
        let request = v1::DeleteOrphanRequest { name, etag, validate_only: false };
        let _: v1::Orphan = lab.client.call((HOSTS, "DeleteOrphan"), &request).await.unwrap();
    }
    student.until("nothing is kept", |seen| seen["orphans"].is_null()).unwrap();
    no_complaints(&browser, false);
}
