//! What is on a disk: a number in each of its first clusters, which no other write has. So one word tells which write is missing.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, Result, ensure};

/// Clusters that are written to.
pub const SLOTS: usize = 8;
/// Bytes of a cluster of qcow2.
pub const SLOT_BYTES: usize = 64 * 1024;

/// The content of a disk. A cluster that was never written holds 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Content([u32; SLOTS]);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(u32::to_string).collect();
        write!(f, "[{}]", words.join(" "))
    }
}

impl Content {
    /// With another number in one cluster.
    #[must_use]
    pub fn with(mut self, slot: usize, number: u32) -> Self {
        self.0[slot % SLOTS] = number;
        self
    }

    /// From all bytes of a disk. Every byte is compared; what is behind the clusters must be 0, as after growing a disk.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        ensure!(raw.len() >= SLOTS * SLOT_BYTES, "a disk of {} bytes", raw.len());
        let (written, rest) = raw.split_at(SLOTS * SLOT_BYTES);
        ensure!(rest.iter().all(|byte| *byte == 0), "there is something behind the clusters that are written to");
        let mut content = Self::default();
        for (slot, bytes) in written.chunks_exact(SLOT_BYTES).enumerate() {
            let first = bytes.first_chunk::<4>().context("a cluster")?;
            ensure!(bytes.chunks_exact(4).all(|word| word == first), "cluster {slot} is of two writes");
            content.0[slot] = u32::from_le_bytes(*first);
        }
        Ok(content)
    }
}

/// What a write puts into a cluster.
pub fn filling(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(SLOT_BYTES / 4)
}

/// What may be on a disk: more than one content where nobody can know which came first.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct May(BTreeSet<Content>);

impl fmt::Debug for May {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|content| format!("{content:?}")).collect();
        f.write_str(&words.join(" or "))
    }
}

impl May {
    /// This and nothing else.
    pub fn exactly(content: Content) -> Self {
        Self([content].into())
    }

    /// After a write.
    #[must_use]
    pub fn with(&self, slot: usize, number: u32) -> Self {
        Self(self.0.iter().map(|content| content.with(slot, number)).collect())
    }

    /// One or the other.
    #[must_use]
    pub fn or(mut self, other: &Self) -> Self {
        self.0.extend(&other.0);
        self
    }

    /// Whether this may be it.
    pub fn has(&self, content: Content) -> bool {
        self.0.contains(&content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_read_as_it_was_written_and_a_torn_one_is_not() {
        let mut raw = vec![0; SLOTS * SLOT_BYTES + 512];
        raw[SLOT_BYTES..2 * SLOT_BYTES].copy_from_slice(&filling(7));
        assert_eq!(Content::parse(&raw).unwrap(), Content::default().with(1, 7));
        raw[SLOT_BYTES + 9] ^= 1;
        assert!(Content::parse(&raw).is_err(), "one byte of a cluster was changed");
        raw[SLOT_BYTES + 9] ^= 1;
        *raw.last_mut().unwrap() = 1;
        assert!(Content::parse(&raw).is_err(), "a byte behind the clusters was changed");
    }

    #[test]
    fn what_may_be_grows_with_what_nobody_knows() {
        let (before, after) = (Content::default(), Content::default().with(0, 1));
        let may = May::exactly(before).or(&May::exactly(before).with(0, 1));
        assert!(may.has(before) && may.has(after) && !may.has(after.with(1, 2)));
    }
}
