//! Names of secrets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, in bytes; with a terminating zero byte it fills the 128 bytes that the
/// virtio-secrets device has for it.
pub const MAX_NAME_LEN: usize = 127;

/// The name of a secret: `^[A-Za-z_][A-Za-z0-9_]*$`, at most [`MAX_NAME_LEN`] bytes.
///
/// So that it can be a file in `/run/secrets` and an environment variable as it is. Serialised, it is
/// a string; one that is not a name is refused when it is read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

/// Why a text is not a [`Name`]. The text itself is not repeated: a value that was typed where the
/// name belongs must not end up in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no text.
    #[error("the secret's name is empty: write NAME=scheme:reference")]
    Empty,
    /// It has more than [`MAX_NAME_LEN`] bytes.
    #[error("the secret's name has {0} bytes: the limit is {MAX_NAME_LEN}")]
    TooLong(usize),
    /// The byte at this position, counted from 1, is not allowed there.
    #[error(
        "byte {0} of the secret's name is not allowed there: use letters, digits and underscores, and no digit first"
    )]
    Character(usize),
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME_LEN {
            return Err(NameError::TooLong(text.len()));
        }
        let allowed = |(at, byte): (usize, u8)| {
            byte == b'_' || byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit())
        };
        match text.bytes().enumerate().position(|byte| !allowed(byte)) {
            Some(at) => Err(NameError::Character(at + 1)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_name_valid_is_kept_as_it_is() {
        let longest = "N".repeat(MAX_NAME_LEN);
        for text in ["A", "_", "api_key", "API_KEY_2", "_0", longest.as_str()] {
            let name: Name = text.parse().expect("a name");
            assert_eq!(name.as_str(), text);
            assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn test_name_invalid_says_where() {
        let cases = [
            ("", NameError::Empty),
            ("1A", NameError::Character(1)),
            ("A-B", NameError::Character(2)),
            ("A.B", NameError::Character(2)),
            ("A B", NameError::Character(2)),
            ("A/../B", NameError::Character(2)),
            ("ABC\0", NameError::Character(4)),
            ("AB\n", NameError::Character(3)),
            ("KÉY", NameError::Character(2)),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Name>(), Err(error), "{text:?}");
        }
        assert_eq!(
            "N".repeat(MAX_NAME_LEN + 1).parse::<Name>(),
            Err(NameError::TooLong(MAX_NAME_LEN + 1))
        );
    }

    #[test]
    fn test_name_serialised_is_checked_when_read() {
        let name: Name = serde_json::from_str("\"API_KEY\"").expect("a name");
        assert_eq!(serde_json::to_string(&name).expect("JSON"), "\"API_KEY\"");
        assert!(serde_json::from_str::<Name>("\"API-KEY\"").is_err());
        assert!(serde_json::from_str::<Name>("\"\"").is_err());
    }

    proptest! {
        #[test]
        fn test_name_agrees_with_its_definition(text in "\\PC{0,10}|[A-Za-z0-9_]{0,130}") {
            let mut characters = text.chars();
            let first = characters.next().is_some_and(|c| c == '_' || c.is_ascii_alphabetic());
            let rest = characters.all(|c| c == '_' || c.is_ascii_alphanumeric());
            let expected = first && rest && text.len() <= MAX_NAME_LEN;
            prop_assert_eq!(text.parse::<Name>().is_ok(), expected);
        }
    }
}
