//! Encrypted parts: age files (age-encryption.org/v1) around the data of a part without its holes.
//!
//! What is encrypted is a sequence of extents, each `offset: le64, length: le64` and `length` bytes, by
//! ascending offset; the last is `offset: length of the part, length: 0`.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::str::FromStr;

use zeroize::Zeroizing;

use super::chunk::CHUNK_LEN;
use super::error::ImageError;
use super::sparse;

/// Most bytes of an extent's content: one read, one write.
const MAX_EXTENT: u64 = CHUNK_LEN as u64;

/// Who can read an encrypted image: a public key of age, `age1...`.
#[derive(Clone)]
pub struct Recipient(pub(super) age::x25519::Recipient);

/// Not a public key of age.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the recipient {0:?} is not a public key of age: give age1... as age-keygen prints it")]
pub struct RecipientError(String);

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        let shown = || match text.starts_with("age1") {
            true => text.to_owned(),
            // It may be a private key.
            false => "...".to_owned(),
        };
        text.parse().map(Self).map_err(|_| RecipientError(shown()))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({})", self.0)
    }
}

/// The private keys of age that encrypted images are read with.
pub struct Identities(Vec<Box<dyn age::Identity + Send + Sync>>);

impl Identities {
    /// Those in a file as `age-keygen` makes it, which nobody else may read.
    ///
    /// # Errors
    /// [`ImageError::Refused`] or [`ImageError::System`].
    pub fn load(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::system("open", path))?;
        let metadata = file
            .metadata()
            .map_err(ImageError::system("examine", path))?;
        let refused = |what| ImageError::Refused {
            path: path.to_owned(),
            what,
        };
        if metadata.is_file() && metadata.mode() & 0o077 != 0 {
            return Err(refused(
                "a private key that others can read or write: `chmod 600` it",
            ));
        }
        let not_identities = "not a file with private keys of age, as age-keygen makes it";
        let identities = age::IdentityFile::from_buffer(BufReader::new(file))
            .map_err(|_| refused(not_identities))?
            .into_identities()
            .map_err(|_| refused(not_identities))?;
        if identities.is_empty() {
            return Err(refused(not_identities));
        }
        Ok(Self(identities))
    }

    /// Those in all of these files together, as [`Self::load`]; `None` without any file.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn load_all<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Option<Self>, ImageError> {
        let mut all: Option<Self> = None;
        for path in paths {
            let more = Self::load(path.as_ref())?;
            match &mut all {
                None => all = Some(more),
                Some(all) => all.0.extend(more.0),
            }
        }
        Ok(all)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

/// Encrypts the `len` bytes of `plain` into the empty file `stored`.
pub(super) fn encrypt(
    plain: &File,
    len: u64,
    stored: &File,
    recipients: &[Recipient],
) -> io::Result<()> {
    let keys = recipients.iter().map(|key| &key.0 as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(keys).map_err(io::Error::other)?;
    let output = BufWriter::with_capacity(CHUNK_LEN, stored);
    let mut output = encryptor.wrap_output(output)?;
    let mut buffer = vec![0; CHUNK_LEN];
    let mut at = sparse::next_data(plain, 0, len)?;
    while at < len {
        let now = usize::try_from(len - at).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
        plain.read_exact_at(&mut buffer[..now], at)?;
        output.write_all(&at.to_le_bytes())?;
        output.write_all(&(now as u64).to_le_bytes())?;
        output.write_all(&buffer[..now])?;
        at = sparse::next_data(plain, at + now as u64, len)?;
    }
    output.write_all(&len.to_le_bytes())?;
    output.write_all(&0u64.to_le_bytes())?;
    output.finish()?.flush()
}

/// Decrypts what [`encrypt`] made of `len` bytes; `consume` gets every extent.
pub(super) fn decrypt(
    stored: impl Read,
    len: u64,
    identities: &Identities,
    mut consume: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let keys = identities.0.iter().map(|key| &**key as &dyn age::Identity);
    let stored = BufReader::with_capacity(CHUNK_LEN, stored);
    let from_age = |error| match error {
        // What the reader said below says more.
        age::DecryptError::Io(error) => error,
        error => io::Error::other(error),
    };
    let mut plain = age::Decryptor::new_buffered(stored)
        .and_then(|decryptor| decryptor.decrypt(keys))
        .map_err(from_age)?;
    let mut buffer = Zeroizing::new(vec![0; CHUNK_LEN]);
    let mut next = 0;
    loop {
        let (at, extent) = (read_u64(&mut plain)?, read_u64(&mut plain)?);
        let end = at.checked_add(extent).filter(|end| *end <= len);
        if at < next || extent > MAX_EXTENT || end.is_none() || (extent == 0 && at != len) {
            return Err(malformed());
        }
        if extent == 0 {
            break;
        }
        next = at + extent;
        let bytes = usize::try_from(extent).map_err(|_| malformed())?;
        plain.read_exact(&mut buffer[..bytes])?;
        consume(at, &buffer[..bytes])?;
    }
    // The end is authentic only once it was read.
    match plain.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(malformed()),
    }
}

fn read_u64(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the extents make no sense")
}
