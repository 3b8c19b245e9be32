//! Names of secrets.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Longest name, in bytes; with a terminating zero byte it fills the 128 bytes that the
/// virtio-secrets device has for it.
pub const MAX_NAME_LEN: usize = 127;

/// The name of a secret: `^[A-Za-z_][A-Za-z0-9_]*$`, at most [`MAX_NAME_LEN`] bytes.
///
/// So that it can be a file in `/run/secrets` and an environment variable as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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
