//! Frames that cost their sender nothing.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
use tokio::time::timeout;

use crate::beside::undisturbed;
use crate::raw::{
    CONTINUATION, DATA, END_HEADERS, GET_VM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, Target, WINDOW_UPDATE,
    frame, head,
};
use crate::{STRANGER, cluster, targets, was_logged};

/// More than any connection may send.
const FRAMES: u32 = 50_000;
const AT_ONCE: u32 = 100;

/// The frames of a step of a flood, by its number.
type Each = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// Sends frames until the connection ends, and says how many were sent by then.
async fn flood(target: &Target, first: &[u8], each: impl Fn(u32) -> Vec<u8>) -> u32 {
    let mut raw = target.http2(STRANGER).await;
    raw.send(first).await.unwrap();
    let (mut reader, mut writer) = split(raw.io);
    let reading = async {
        let mut bytes = [0; 16 * 1024];
        while matches!(reader.read(&mut bytes).await, Ok(read) if read > 0) {}
    };
    let writing = async {
        for begin in (0..FRAMES).step_by(usize::try_from(AT_ONCE).unwrap()) {
            let frames: Vec<u8> = (begin..begin + AT_ONCE).flat_map(&each).collect();
            if writer.write_all(&frames).await.is_err() || writer.flush().await.is_err() {
                return begin + AT_ONCE;
            }
        }
        std::future::pending().await
    };
    // The end is seen on either side.
    let ended = async {
        tokio::select! {
            () = reading => 0,
            sent = writing => sent,
        }
    };
    timeout(Duration::from_secs(10), ended).await.unwrap_or(FRAMES)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_control_frames_is_cut_off() {
    let cluster = cluster("", "");
    let open = frame(HEADERS, END_HEADERS, 1, &head(GET_VM));
    let unfinished = frame(HEADERS, 0, 1, &head(GET_VM));
    for target in targets(&cluster) {
        let attack = async || {
            let none: &[u8] = b"";
            let one = 1_u32.to_be_bytes();
            let floods: [(&str, &[u8], Each); 8] = [
                ("PING", none, Box::new(|_| frame(PING, 0, 0, &[7; 8]))),
                ("SETTINGS", none, Box::new(|_| frame(SETTINGS, 0, 0, b""))),
                ("WINDOW_UPDATE", none, Box::new(move |_| frame(WINDOW_UPDATE, 0, 0, &one))),
                ("PRIORITY", none, Box::new(|_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]))),
                ("unknown", none, Box::new(|_| frame(0xee, 0, 0, b"x"))),
                ("empty DATA", &open, Box::new(|_| frame(DATA, 0, 1, b""))),
                ("CONTINUATION", &unfinished, Box::new(|_| frame(CONTINUATION, 0, 1, b""))),
                (
                    "RST_STREAM",
                    none,
                    Box::new(|n| {
                        [
                            frame(HEADERS, END_HEADERS, n * 2 + 1, &head(GET_VM)),
                            frame(RST_STREAM, 0, n * 2 + 1, &[0, 0, 0, 8]),
                        ]
                        .concat()
                    }),
                ),
            ];
            for (name, first, each) in floods {
                let sent = flood(&target, first, each).await;
                assert!(sent < FRAMES, "{}: {name} goes on", target.name);
            }
        };
        undisturbed(&cluster, &target, attack).await;
        was_logged(&cluster, &target, "control_frames");
    }
}
