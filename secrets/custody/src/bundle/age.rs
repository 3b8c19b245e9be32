//! age files (age-encryption.org/v1) of bundles: read and written.

use std::io::{BufRead, Read, Write};

use age::armor::ArmoredReader;
use age::x25519;
use zeroize::Zeroizing;

use super::read::MAX_TEXT_LEN;
use crate::identities::{Identities, Recipient};

/// First line of an age file.
const MAGIC: &[u8] = b"age-encryption.org/";

/// First line of an age file in ASCII armour.
const ARMOR: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

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
    /// Who can read it.
    pub readers: Readers,
}

/// Who can read an age file, as far as it says.
#[derive(Debug, Clone)]
pub struct Readers {
    /// The public key that belongs to the private key that opened it.
    pub own: Recipient,
    /// How many X25519 keys it is encrypted to; it does not say to which.
    pub keys: usize,
    /// How many recipients of other kinds it is encrypted to: keys of ssh, of plugins, of a later age.
    pub others: usize,
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
    for identity in identities.keys() {
        match decrypt_with(stored, identity) {
            Ok(plain) => {
                let (keys, others) = stanzas(stored);
                let own = Recipient::of(identity);
                return Ok(Opened {
                    plain,
                    readers: Readers { own, keys, others },
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

/// Counts the X25519 stanzas of an age file's header, which is text up to its `---`, and those of other kinds. What
/// implementations put in at random, so that readers pass over what they do not know, is nobody: its kind ends in `-grease`.
fn stanzas(stored: &[u8]) -> (usize, usize) {
    let mut header = String::new();
    let (mut keys, mut others) = (0, 0);
    let mut reader = ArmoredReader::new(stored);
    loop {
        header.clear();
        match reader.read_line(&mut header) {
            Ok(1..) if !header.starts_with("---") => {
                let stanza = header.strip_prefix("-> ").map(str::split_ascii_whitespace);
                match stanza.and_then(|mut words| words.next()) {
                    Some("X25519") => keys += 1,
                    Some(kind) if !kind.ends_with("-grease") => others += 1,
                    _ => {}
                }
            }
            _ => return (keys, others),
        }
    }
}

/// Encrypts to these keys, one at least.
///
/// # Errors
/// What writing to `output` said.
pub fn encrypt(plain: &[u8], recipients: &[Recipient], output: impl Write) -> std::io::Result<()> {
    let keys = recipients.iter().map(Recipient::as_age);
    let encryptor = age::Encryptor::with_recipients(keys).map_err(std::io::Error::other)?;
    let mut writer = encryptor.wrap_output(output)?;
    writer.write_all(plain)?;
    writer.finish()?.flush()
}
