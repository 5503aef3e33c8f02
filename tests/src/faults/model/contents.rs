//! What may be on a guest's disks.

/// What is on a guest's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    /// The marker on the first disk.
    pub marker: char,
    /// How often the guest has booted from it.
    pub boots: u8,
    /// The marker on the second disk, where there is one.
    pub second: Option<char>,
}

impl Content {
    /// After one more boot, which writes to the first disk alone.
    #[must_use]
    pub fn booted(self) -> Self {
        Self { boots: self.boots + 1, ..self }
    }
}

/// What may be on the disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The possibilities.
    pub any_of: Vec<Content>,
    /// Whether each disk may have its part from another one of them, and any number of boots.
    pub torn: bool,
}

impl Contents {
    /// Exactly this.
    pub fn exactly(content: Content) -> Self {
        Self { any_of: vec![content], torn: false }
    }

    /// Whether this may be on the disks.
    pub fn allow(&self, seen: &Content) -> bool {
        if !self.torn {
            return self.any_of.contains(seen);
        }
        let first = self.any_of.iter().any(|content| content.marker == seen.marker);
        let second = self.any_of.iter().any(|content| content.second == seen.second);
        first && second
    }

    pub(super) fn add(&mut self, other: &Self) {
        for content in &other.any_of {
            if !self.any_of.contains(content) {
                self.any_of.push(*content);
            }
        }
        self.torn |= other.torn;
    }

    pub(super) fn booted(&self) -> Self {
        Self { any_of: self.any_of.iter().map(|content| content.booted()).collect(), torn: self.torn }
    }
}
