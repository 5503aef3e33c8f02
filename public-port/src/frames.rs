//! HTTP/2 frames, as far as they are counted: the nine bytes of each header (RFC 9113, 4.1).
//!
//! A control frame costs its sender next to nothing and makes the receiver work or answer. Each connection has a budget
//! for them: a burst, some more every second, and some for each frame of a response, because clients answer these with
//! WINDOW_UPDATE, and measure with PING.

use std::time::Duration;

use tokio::time::Instant;

/// What a client sends first (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Control frames that each HEADERS or DATA frame of a response allows for: WINDOW_UPDATE of the stream and of the
/// connection, PING, and RST_STREAM or an empty DATA frame at its end.
const PER_RESPONSE_FRAME: f64 = 4.0;

const HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    kind: u8,
    flags: u8,
    length: usize,
}

impl Head {
    fn of(bytes: [u8; HEADER_BYTES]) -> Self {
        let [a, b, c, kind, flags, ..] = bytes;
        Self { kind, flags, length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c) }
    }

    /// Whether it begins, or goes on with, a block of headers.
    pub(crate) fn is_headers(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }

    /// Whether a block of headers goes on in the next frame.
    pub(crate) fn is_continued(self) -> bool {
        self.is_headers() && self.flags & END_HEADERS == 0
    }

    /// Whether it cancels a call.
    pub(crate) fn is_reset(self) -> bool {
        self.kind == RST_STREAM
    }

    /// Whether the budget counts it: everything but HEADERS and DATA that has data. Padding may be all that is in a
    /// padded DATA frame.
    pub(crate) fn is_control(self) -> bool {
        match self.kind {
            HEADERS => false,
            DATA => self.length == 0 || self.flags & PADDED != 0,
            _ => true,
        }
    }
}

/// Finds the headers of frames in a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    header: [u8; HEADER_BYTES],
    filled: usize,
    /// Bytes of the payload of the last frame that are still to come.
    payload: usize,
}

impl Scanner {
    /// Reads on, and tells each header that is complete.
    pub(crate) fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(Head)) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEADER_BYTES - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEADER_BYTES {
                let head = Head::of(self.header);
                (self.filled, self.payload) = (0, head.length);
                found(head);
            }
        }
    }

    /// Whether the payload of the last frame has not come whole.
    pub(crate) fn in_payload(&self) -> bool {
        self.payload > 0
    }

    /// Whether a frame of another origin could follow here.
    pub(crate) fn at_boundary(&self) -> bool {
        self.filled == 0 && self.payload == 0
    }
}

/// How many control frames a connection may still send.
#[derive(Debug)]
pub(crate) struct Budget {
    left: f64,
    burst: f64,
    per_second: f64,
    refilled: Instant,
}

impl Budget {
    /// So many at once, and so many more in each second.
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        let burst = f64::from(burst);
        Self { left: burst, burst, per_second: per_second.into(), refilled: Instant::now() }
    }

    /// Takes the time into account that has passed.
    pub(crate) fn refill(&mut self) {
        let passed: Duration = self.refilled.elapsed();
        self.refilled += passed;
        self.left = self.burst.min(self.left + passed.as_secs_f64() * self.per_second);
    }

    /// A frame of a response was sent.
    pub(crate) fn responded(&mut self) {
        self.left = self.burst.min(self.left + PER_RESPONSE_FRAME);
    }

    /// A control frame came: false when there is nothing left for it.
    pub(crate) fn take(&mut self) -> bool {
        self.left -= 1.0;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.extend(std::iter::repeat_n(kind, length.into()));
        frame
    }

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let frames =
            [frame(4, 0, 12), frame(1, 0, 200), frame(9, 4, 0), frame(0, 0, 0), frame(0, 8, 5), frame(6, 0, 8)];
        let bytes = frames.concat();
        let kinds = |step: usize| {
            let (mut scanner, mut kinds) = (Scanner::default(), Vec::new());
            for piece in bytes.chunks(step) {
                scanner.scan(piece, |head| kinds.push((head.kind, head.is_control(), head.is_continued())));
            }
            assert!(scanner.at_boundary());
            kinds
        };
        let expected = [
            (4, true, false),
            (1, false, true),
            (9, true, false),
            (0, true, false),
            (0, true, false),
            (6, true, false),
        ];
        for step in [1, 7, 9, 10, 1000] {
            assert_eq!(kinds(step), expected, "{step} bytes at a time");
        }
        let mut scanner = Scanner::default();
        scanner.scan(&bytes[..4], |_| {});
        assert!(!scanner.at_boundary() && !scanner.in_payload());
        scanner.scan(&bytes[4..10], |_| {});
        assert!(!scanner.at_boundary() && scanner.in_payload());
    }

    #[test]
    fn a_response_is_not_headers_alone() {
        assert!(!Head { kind: DATA, flags: 0, length: 1 }.is_control());
        assert!(!Head { kind: HEADERS, flags: END_HEADERS, length: 1 }.is_continued());
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_ends_and_comes_back_with_time_and_with_responses() {
        let mut budget = Budget::new(10, 2);
        assert!((0..10).all(|_| budget.take()));
        assert!(!budget.take());
        let mut budget = Budget::new(10, 2);
        (0..10).for_each(|_| _ = budget.take());
        tokio::time::advance(Duration::from_secs(1)).await;
        budget.refill();
        assert_eq!((budget.take(), budget.take()), (true, true));
        budget.responded();
        assert!((0..4).all(|_| budget.take()) && !budget.take());
        tokio::time::advance(Duration::from_secs(3600)).await;
        budget.refill();
        assert!((0..10).all(|_| budget.take()) && !budget.take(), "no more than the burst is kept");
    }
}
