//! The audit trail: what an event says, and the bytes that are hashed of it.
//!
//! Events form a chain. The hash of each is SHA-256 over [`Link::encode`], which has the hash of the event before in it, so that
//! whoever changes, removes or inserts one has to write all that follow anew, and then the last hash is another than the one
//! that was noted elsewhere (docs/adr/0021).
//!
//! Version 1 of the encoding, without anything between the parts:
//!
//! ```text
//! "ravada-snapshots audit " version as decimal digits, "\n"
//! sequence, time_ms, served_ms, count                      8 bytes each, big-endian, two's complement
//! issuer, subject, token_id, peer, method, request_id,
//! vm, snapshot, operation, outcome, reason, detail         each: 4 bytes of length, big-endian, then UTF-8
//! previous                                                 32 bytes; zeros for the first event of all
//! ```

use std::fmt;
use std::str::FromStr;

use crate::ids::VmId;

mod flood;

pub use flood::Flood;

/// The version of the encoding that is written.
pub const VERSION: i64 = 1;
/// The most characters of a text that comes from outside. What is longer is cut: a token's `sub` has 256 bytes at most.
const TEXT_MAX_CHARS: usize = 256;

/// How a request or an operation came out, what became known of where a VM is, and the two events that are the trail's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The request was recorded, or done where nothing is recorded.
    Accepted,
    /// A repeat: its first operation was told.
    Replayed,
    /// The request was refused.
    Refused,
    /// The operation ended: done.
    Succeeded,
    /// The operation ended: not done.
    Failed,
    /// The operation ended: stopped on request.
    Cancelled,
    /// The trail begins: the catalogue is new, or had none.
    Begun,
    /// Two hosts say that the VM is active on them: nothing is asked of either.
    Conflict,
    /// They do no longer.
    Settled,
    /// The VM is on another host now.
    Moved,
    /// Older events were removed as the configuration says; the detail is the [`Head`] of what was removed.
    Pruned,
}

impl Outcome {
    /// Every outcome there is.
    pub const ALL: [Self; 11] = [
        Self::Accepted,
        Self::Replayed,
        Self::Refused,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Begun,
        Self::Pruned,
        Self::Conflict,
        Self::Settled,
        Self::Moved,
    ];

    /// The text in the trail. It is hashed, so it stays as it is.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Replayed => "replayed",
            Self::Refused => "refused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Begun => "begun",
            Self::Pruned => "pruned",
            Self::Conflict => "conflict",
            Self::Settled => "settled",
            Self::Moved => "moved",
        }
    }

    /// The outcome with this text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// Who asked for what, and from where. All texts are [`clean`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// The token's issuer; empty for who has not shown who they are.
    pub issuer: String,
    /// Whom the issuer vouches for.
    pub subject: String,
    /// The token's id (`jti`). Never the token.
    pub token_id: String,
    /// The SPIFFE id at the other end of the connection, or its address; of the end of an operation, the host.
    pub peer: String,
    /// The RPC.
    pub method: String,
    /// What follows the call through the logs (`x-request-id`).
    pub request_id: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds of the Unix epoch, by the API's clock.
    pub time_ms: i64,
    /// Who.
    pub source: Source,
    /// The machine, where one was named.
    pub vm: Option<VmId>,
    /// The snapshot's id; empty for none.
    pub snapshot: String,
    /// The operation's id; empty for none.
    pub operation: String,
    /// How it came out.
    pub outcome: Outcome,
    /// Why not, as in `google.rpc.ErrorInfo.reason`.
    pub reason: String,
    /// How many there were of the kind: 1, or more where refusals were counted (see [`Flood`]).
    pub count: u32,
    /// Words of the service's own.
    pub detail: String,
}

impl Event {
    /// An event without a machine, and nothing more to say.
    pub fn new(time_ms: i64, source: Source, outcome: Outcome) -> Self {
        let (snapshot, operation, reason, detail) = Default::default();
        Self { time_ms, source, vm: None, snapshot, operation, outcome, reason, count: 1, detail }
    }
}

/// A text from outside as it may be written down: no control characters, so that nobody writes lines of their own into what is
/// printed of it, and no more than 256 characters.
pub fn clean(text: &str) -> String {
    let printable = |c: char| if c.is_control() || is_format(c) { '\u{fffd}' } else { c };
    text.chars().take(TEXT_MAX_CHARS).map(printable).collect()
}

/// Characters that change the order or the look of those around them: line and paragraph separators, and directions.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A SHA-256.
pub type Hash = [u8; 32];

/// An event at its place in the chain, in the texts in which it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The version of the encoding.
    pub version: i64,
    /// 1 for the first event of all, one more for each.
    pub sequence: i64,
    /// Milliseconds of the Unix epoch.
    pub time_ms: i64,
    /// How long the service had run on the catalogue, in milliseconds: what events are kept by.
    pub served_ms: i64,
    /// How many there were of the kind.
    pub count: i64,
    /// In the order of the module's description, from the issuer to the detail.
    pub texts: [String; 12],
    /// The hash of the event before.
    pub previous: Hash,
}

impl Link {
    /// An event at the end of a chain.
    pub fn after(head: Option<&Head>, served_ms: i64, event: &Event) -> Self {
        let Source { issuer, subject, token_id, peer, method, request_id } = event.source.clone();
        let vm = event.vm.map(|vm| vm.to_string()).unwrap_or_default();
        let outcome = event.outcome.as_str().to_owned();
        let (snapshot, operation) = (event.snapshot.clone(), event.operation.clone());
        let (reason, detail) = (event.reason.clone(), event.detail.clone());
        let texts =
            [issuer, subject, token_id, peer, method, request_id, vm, snapshot, operation, outcome, reason, detail];
        Self {
            version: VERSION,
            sequence: head.map_or(1, |head| head.sequence + 1),
            time_ms: event.time_ms,
            served_ms,
            count: i64::from(event.count),
            texts,
            previous: head.map_or([0; 32], |head| head.hash),
        }
    }

    /// The bytes to be hashed; `None` for a version that is not known.
    pub fn encode(&self) -> Option<Vec<u8>> {
        if self.version != VERSION {
            return None;
        }
        let mut bytes = format!("ravada-snapshots audit {}\n", self.version).into_bytes();
        for number in [self.sequence, self.time_ms, self.served_ms, self.count] {
            bytes.extend(number.to_be_bytes());
        }
        for text in &self.texts {
            bytes.extend(u32::try_from(text.len()).ok()?.to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(self.previous);
        Some(bytes)
    }
}

/// The last event of a chain, in short: what is to be noted elsewhere. As text `{sequence}:{hash in hexadecimal}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its place.
    pub sequence: i64,
    /// Its hash.
    pub hash: Hash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex(&self.hash))
    }
}

/// A text that is no [`Head`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it must be a number, a colon and 64 hexadecimal digits, as in the log")]
pub struct NoHead;

impl FromStr for Head {
    type Err = NoHead;

    fn from_str(text: &str) -> Result<Self, NoHead> {
        let (sequence, digits) = text.split_once(':').ok_or(NoHead)?;
        let sequence = sequence.parse().ok().filter(|sequence| *sequence > 0).ok_or(NoHead)?;
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NoHead);
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            *byte = digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or(NoHead)?;
        }
        Ok(Self { sequence, hash })
    }
}

/// A hash in lower-case hexadecimal digits.
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(texts: [String; 12], numbers: [i64; 4], previous: Hash) -> Link {
        let [sequence, time_ms, served_ms, count] = numbers;
        Link { version: VERSION, sequence, time_ms, served_ms, count, texts, previous }
    }

    fn any_link() -> impl Strategy<Value = Link> {
        // Short texts of few letters, so that what moves from one text to the next is tried often.
        let texts = proptest::array::uniform12("[ab]{0,3}");
        let numbers = proptest::array::uniform4(0..3i64);
        (texts, numbers, proptest::array::uniform32(0..2u8))
            .prop_map(|(texts, numbers, hash)| link(texts, numbers, hash))
    }

    proptest! {
        #[test]
        fn two_links_have_the_same_bytes_only_if_they_are_the_same(one in any_link(), other in any_link(), at in 0..11usize) {
            prop_assert_eq!(one == other, one.encode() == other.encode());
            let mut moved = one.clone();
            if let Some(letter) = moved.texts[at].pop() {
                moved.texts[at + 1].insert(0, letter);
                prop_assert_ne!(moved.encode(), one.encode());
            }
        }

        #[test]
        fn what_is_written_down_is_of_one_line_and_short(text in any::<String>()) {
            let written = clean(&text);
            prop_assert!(written.chars().count() <= 256 && !written.chars().any(char::is_control));
            prop_assert_eq!(clean(&written), written.clone());
        }

        #[test]
        fn a_head_is_read_back(sequence in 1..i64::MAX, hash in any::<Hash>(), text in "\\PC{0,80}") {
            let head = Head { sequence, hash };
            prop_assert_eq!(head.to_string().parse(), Ok(head));
            let _ = text.parse::<Head>();
        }
    }

    #[test]
    fn the_encoding_of_version_1_stays_as_it_is() {
        let source = Source { issuer: "i".into(), subject: "s".into(), method: "Get".into(), ..Source::default() };
        let event = Event { detail: "é".into(), ..Event::new(5, source, Outcome::Refused) };
        let link = Link::after(Some(&Head { sequence: 6, hash: [1; 32] }), 9, &event);
        let mut expected = b"ravada-snapshots audit 1\n".to_vec();
        for number in [7u64, 5, 9, 1] {
            expected.extend(number.to_be_bytes());
        }
        for text in ["i", "s", "", "", "Get", "", "", "", "", "refused", "", "é"] {
            expected.extend([0, 0, 0, u8::try_from(text.len()).unwrap()]);
            expected.extend(text.as_bytes());
        }
        expected.extend([1; 32]);
        assert_eq!(link.encode(), Some(expected));
        assert_eq!(Link { version: 2, ..link }.encode(), None);
    }

    #[test]
    fn texts_that_are_no_head_are_refused() {
        let digits = "0f".repeat(32);
        for text in ["", ":", "1:", "0:", "x:0", &digits, &format!("0:{digits}"), &format!("1:{digits}0"), "1:é"] {
            assert_eq!(text.parse::<Head>(), Err(NoHead), "{text}");
        }
        assert!(format!("1:{digits}").parse::<Head>().is_ok());
    }
}
