//! Keys of age: the private ones in a file, and the public ones that something is encrypted to.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::x25519;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::files::{self, Access, FileError};

/// Most bytes of a file with private keys; one has 75, and comments.
const MAX_FILE_LEN: u64 = 1 << 16;

/// Most private keys in a file; each is tried.
const MAX_IDENTITIES: usize = 256;

/// Why a file of private keys is not used. Nothing in it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is not there, not this user's alone, or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It has none.
    #[error(
        "{0:?} has no private keys of age (AGE-SECRET-KEY-...): name a file as age-keygen makes it"
    )]
    Empty(PathBuf),
    /// A line is none, or one too many.
    #[error(
        "line {line} of {path:?} is not a private key of age (AGE-SECRET-KEY-...), or is past the {MAX_IDENTITIES} that \
         are read: name a file as age-keygen makes it"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
    },
}

/// The private keys in a file, of the kind that `age-keygen` makes.
pub struct Identities(Vec<x25519::Identity>);

impl Identities {
    /// Those in a file as `age-keygen` makes it, which nobody else may read: a key a line, blank lines and comments.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let mut file = files::open(path, Access::Private, MAX_FILE_LEN)?;
        // The file may grow meanwhile, and a string that grew would have left copies behind.
        let limit = usize::try_from(MAX_FILE_LEN).unwrap_or(usize::MAX);
        let mut text = Zeroizing::new(String::with_capacity(limit));
        let wrong = |line| IdentityError::Line {
            path: path.to_owned(),
            line,
        };
        let read = (&mut file).take(MAX_FILE_LEN).read_to_string(&mut text);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => wrong(1),
            _ => FileError::system("read", path)(error).into(),
        })?;
        let mut identities = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let identity = line.parse().map_err(|_| wrong(at + 1))?;
            if identities.len() == MAX_IDENTITIES {
                return Err(wrong(at + 1));
            }
            identities.push(identity);
        }
        match identities.is_empty() {
            true => Err(IdentityError::Empty(path.to_owned())),
            false => Ok(Self(identities)),
        }
    }

    /// The keys themselves.
    pub(crate) fn keys(&self) -> &[x25519::Identity] {
        &self.0
    }

    /// The public keys that belong to them.
    #[must_use]
    pub fn recipients(&self) -> Vec<Recipient> {
        self.0.iter().map(Recipient::of).collect()
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

/// A public key of age, `age1...`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient(x25519::Recipient);

/// Not a public key of age. The text is not repeated: it may be a private one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a public key of age: give age1... as `age-keygen -y` prints it")]
pub struct RecipientError;

impl Recipient {
    /// The public key that belongs to a private one.
    pub(crate) fn of(identity: &x25519::Identity) -> Self {
        Self(identity.to_public())
    }

    pub(crate) fn as_age(&self) -> &dyn age::Recipient {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        text.parse().map(Self).map_err(|_| RecipientError)
    }
}

impl TryFrom<String> for Recipient {
    type Error = RecipientError;

    fn try_from(text: String) -> Result<Self, RecipientError> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> Self {
        recipient.to_string()
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({})", self.0)
    }
}
