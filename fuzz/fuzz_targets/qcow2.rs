//! Images: the agent is root, and whoever may upload an image writes its header.

#![no_main]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use snapshot_agent::qcow2;

fuzz_target!(|image: &[u8]| {
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(file);
    file.write_all(image).expect("room");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if let Ok(image) = qcow2::read(&path) {
        assert_eq!(qcow2::read(&path).ok().map(|again| again.tags), Some(image.tags), "read twice, two answers");
    }
    let _ = qcow2::backing_file(&path);
});
