//! What users write: the name and the description of a snapshot.
//!
//! Both travel through XML 1.0 into libvirt's metadata, so characters that XML cannot carry are refused here, and not
//! by libvirt after the snapshot was taken.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The most characters (Unicode scalar values) of a name.
pub const DISPLAY_NAME_MAX_CHARS: usize = 128;
/// The most characters (Unicode scalar values) of a description.
pub const DESCRIPTION_MAX_CHARS: usize = 4096;

fn check(field: &str, text: &str, most: usize) -> Result<(), Error> {
    let chars = text.chars().count();
    if chars > most {
        return Err(Error::invalid(field, format!("has {chars} characters, the most is {most}")));
    }
    if let Some(c) = text.chars().find(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')) {
        return Err(Error::invalid(field, format!("contains the character U+{:04X}, which is not text", u32::from(c))));
    }
    Ok(())
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

text!(
    /// The user's name for a snapshot: 1 to 128 characters, not all blank, no control characters.
    DisplayName
);
text!(
    /// The user's free text about a snapshot: 0 to 4096 characters, no control characters.
    #[derive(Default)]
    Description
);

impl DisplayName {
    /// Accepts a name or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Err(Error::invalid("snapshot.display_name", "is required"));
        }
        check("snapshot.display_name", text, DISPLAY_NAME_MAX_CHARS)?;
        Ok(Self(text.to_owned()))
    }

    /// The nearest acceptable name to a text that somebody else chose, such as a foreign snapshot's.
    pub fn lossy(text: &str) -> Self {
        let clean: String = text.chars().filter(|c| check("", &c.to_string(), 1).is_ok()).collect();
        let cut: String = clean.chars().take(DISPLAY_NAME_MAX_CHARS).collect();
        if cut.trim().is_empty() { Self("unnamed".to_owned()) } else { Self(cut) }
    }
}

impl Description {
    /// Accepts a description or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        check("snapshot.description", text, DESCRIPTION_MAX_CHARS)?;
        Ok(Self(text.to_owned()))
    }

    /// The nearest acceptable description to a text that somebody else chose.
    pub fn lossy(text: &str) -> Self {
        let spaced = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let clean = spaced.filter(|c| check("", &c.to_string(), 1).is_ok());
        Self(clean.take(DESCRIPTION_MAX_CHARS).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits_count_characters_and_not_bytes() {
        assert!(DisplayName::parse(&"é".repeat(128)).is_ok());
        assert!(DisplayName::parse(&"é".repeat(129)).is_err());
        assert!(Description::parse(&"🎓".repeat(4096)).is_ok());
        assert!(Description::parse(&"🎓".repeat(4097)).is_err());
    }

    #[test]
    fn what_is_not_text_is_refused() {
        for bad in ["", "   ", "a\nb", "a\tb", "a\0b", "\u{7f}", "\u{85}", "x\u{fffe}", "x\u{ffff}"] {
            assert!(DisplayName::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["-rf", "$(id)", "<a>&\"'", "../../etc", "before exam", "مثال", "🎓"] {
            assert!(DisplayName::parse(good).is_ok(), "{good:?}");
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic_and_lossy_is_always_acceptable(text in any::<String>()) {
            let _ = DisplayName::parse(&text);
            let _ = Description::parse(&text);
            let (name, description) = (DisplayName::lossy(&text), Description::lossy(&text));
            prop_assert!(DisplayName::parse(name.as_str()).is_ok());
            prop_assert!(Description::parse(description.as_str()).is_ok());
        }
    }
}
