//! age files (age-encryption.org/v1) of bundles: the private keys that read them, and to whom they are written.

use std::fmt;
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::str::FromStr;

use age::armor::ArmoredReader;
use age::x25519;
use zeroize::Zeroizing;

use super::BundleError;
use super::read::MAX_TEXT_LEN;
use crate::files::{self, Access};

/// Most bytes of a file with private keys; one has 75, and comments.
const MAX_KEY_FILE_LEN: u64 = 1 << 16;

/// Most private keys in a file; each is tried.
const MAX_IDENTITIES: usize = 256;

/// First line of an age file.
const MAGIC: &[u8] = b"age-encryption.org/";

/// First line of an age file in ASCII armour.
const ARMOR: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

/// The private keys in a file, of the kind that `age-keygen` makes.
pub struct Identities(Vec<x25519::Identity>);

impl Identities {
    /// Those in a file as `age-keygen` makes it, which nobody else may read: a key a line, blank lines and comments.
    ///
    /// # Errors
    /// [`BundleError::File`], [`BundleError::NoIdentities`] or [`BundleError::KeyFile`].
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        let mut file = match files::open(path, Access::Private, MAX_KEY_FILE_LEN) {
            Err(files::FileError::Absent(path)) => return Err(BundleError::NoIdentities(path)),
            other => other?,
        };
        let mut text = Zeroizing::new(String::with_capacity(
            usize::try_from(MAX_KEY_FILE_LEN).unwrap_or(usize::MAX),
        ));
        let mut limited = (&mut file).take(MAX_KEY_FILE_LEN);
        let wrong = |line| BundleError::KeyFile {
            path: path.to_owned(),
            line,
        };
        limited.read_to_string(&mut text).map_err(|_| wrong(1))?;
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
            true => Err(BundleError::NoIdentities(path.to_owned())),
            false => Ok(Self(identities)),
        }
    }

    /// The public keys that belong to them.
    #[must_use]
    pub fn recipients(&self) -> Vec<Recipient> {
        let public = self.0.iter().map(x25519::Identity::to_public);
        public.map(Recipient).collect()
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

/// A public key of age, `age1...`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(x25519::Recipient);

/// Not a public key of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a public key of age: give age1... as `age-keygen -y` prints it")]
pub struct RecipientError;

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        // It may be a private key, so that nothing of it is said.
        text.parse().map(Self).map_err(|_| RecipientError)
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

/// Why an age file is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AgeError {
    /// It begins as no age file does.
    #[error("it is not encrypted")]
    NotEncrypted,
    /// No key fits.
    #[error(
        "none of the private keys opens it: it was encrypted to others; name the key file that belongs to it"
    )]
    WrongKey,
    /// It is damaged, cut short, or was changed.
    #[error("it is damaged, cut short or changed since it was encrypted: take it from a backup")]
    Damaged,
    /// It is too long.
    #[error("what is in it is over the limit of {MAX_TEXT_LEN} bytes")]
    TooLong,
}

/// What was in an age file.
pub struct Opened {
    /// The bytes.
    pub plain: Zeroizing<Vec<u8>>,
    /// The public key that belongs to the private key that opened it.
    pub reader: Recipient,
    /// How many X25519 keys it is encrypted to; the file does not say to which.
    pub recipients: usize,
}

/// Decrypts an age file, binary or in ASCII armour.
///
/// # Errors
/// See [`AgeError`].
pub fn decrypt(stored: &[u8], identities: &Identities) -> Result<Opened, AgeError> {
    let armored = stored.trim_ascii_start().starts_with(ARMOR);
    if !armored && !stored.starts_with(MAGIC) {
        return Err(AgeError::NotEncrypted);
    }
    let mut last = AgeError::WrongKey;
    for identity in &identities.0 {
        match decrypt_with(stored, identity) {
            Ok(plain) => {
                return Ok(Opened {
                    plain,
                    reader: Recipient(identity.to_public()),
                    recipients: stanzas(stored),
                });
            }
            Err(AgeError::WrongKey) => {}
            Err(other) => last = other,
        }
    }
    Err(last)
}

fn decrypt_with(
    stored: &[u8],
    identity: &x25519::Identity,
) -> Result<Zeroizing<Vec<u8>>, AgeError> {
    let failed = |error| match error {
        age::DecryptError::NoMatchingKeys => AgeError::WrongKey,
        _ => AgeError::Damaged,
    };
    let decryptor = age::Decryptor::new_buffered(ArmoredReader::new(stored)).map_err(failed)?;
    let reader = decryptor
        .decrypt(std::iter::once(identity as &dyn age::Identity))
        .map_err(failed)?;
    // Large enough at once: what it would grow out of is not wiped.
    let mut plain = Zeroizing::new(Vec::with_capacity(stored.len()));
    let mut limited = reader.take(MAX_TEXT_LEN as u64 + 1);
    limited
        .read_to_end(&mut plain)
        .map_err(|_| AgeError::Damaged)?;
    match plain.len() > MAX_TEXT_LEN {
        true => Err(AgeError::TooLong),
        false => Ok(plain),
    }
}

/// Counts the X25519 stanzas of an age file's header, which is text up to its `---`.
fn stanzas(stored: &[u8]) -> usize {
    let mut header = String::new();
    let mut lines = 0;
    let mut reader = ArmoredReader::new(stored);
    loop {
        header.clear();
        match reader.read_line(&mut header) {
            Ok(1..) if !header.starts_with("---") => {
                lines += usize::from(header.starts_with("-> X25519 "));
            }
            _ => return lines,
        }
    }
}

/// Encrypts to these keys, one at least.
///
/// # Errors
/// What writing to `output` said.
pub fn encrypt(plain: &[u8], recipients: &[Recipient], output: impl Write) -> std::io::Result<()> {
    let keys = recipients.iter().map(|key| &key.0 as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(keys).map_err(std::io::Error::other)?;
    let mut writer = encryptor.wrap_output(output)?;
    writer.write_all(plain)?;
    writer.finish()?.flush()
}
