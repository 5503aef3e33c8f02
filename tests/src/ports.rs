//! Free TCP ports on 127.0.0.1.
//!
//! Binding port 0 and letting go of it again would hand out ports of the kernel's ephemeral range, which any outgoing
//! connection may take before the server binds. These come from below that range, and each test process begins at
//! another place in it.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;
/// How far apart two test processes with neighbouring ids begin.
const STRIDE: u32 = 37;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port that nothing listens on and that this process has not handed out before.
pub fn free() -> Result<u16> {
    let start = std::process::id().wrapping_mul(STRIDE);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        let Ok(port) = u16::try_from(port) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}
