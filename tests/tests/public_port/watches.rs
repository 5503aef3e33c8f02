//! A user with many VMs open.

use std::net::Ipv4Addr;

use tests::client::VmWatch;
use tests::lab::Lab;

use crate::{targets, token};

const WATCHES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_two_hundred_open_vms_is_told_of_all() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let token = token(&lab.cluster);
    for target in targets(&lab.cluster) {
        // One connection, as browsers have it for all tabs.
        let face = target.client(Ipv4Addr::LOCALHOST);
        let mut watches = Vec::new();
        for number in 0..WATCHES {
            let mut watch = VmWatch::open(&face, &token, &guest.vm(), "").await.unwrap();
            watch.next().await.unwrap_or_else(|error| panic!("{}: watch {number}: {error}", target.name));
            watches.push(watch);
        }
    }
}
