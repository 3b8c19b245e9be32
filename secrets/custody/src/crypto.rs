//! The cryptography of the store and of its keys: HKDF-SHA256 for every derived key and check, AES-256-GCM for
//! what is sealed. `resources/secrets-store.md` specifies every byte.

use std::io;

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use cachot_secrets::{LockError, LockedBuffer};
use hkdf::Hkdf;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of a key.
pub(crate) const KEY_LEN: usize = 32;

/// Bytes of a nonce of AES-GCM.
pub(crate) const NONCE_LEN: usize = 12;

/// Bytes of a tag of AES-GCM.
pub(crate) const TAG_LEN: usize = 16;

/// Why something could not be sealed, opened or derived.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// There is no locked memory for a key.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random(#[source] io::Error),
    /// What was sealed is not what is there, or was sealed with another key.
    #[error("it does not have the content that was encrypted, or was encrypted with another key")]
    NotAuthentic,
}

/// Fills `bytes` from the kernel's generator.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), CryptoError> {
    let mut filled = 0;
    while filled < bytes.len() {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(CryptoError::Random(errno.into())),
        }
    }
    Ok(())
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], CryptoError> {
    let mut bytes = [0; N];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// Several byte strings as one from which they can be told again: each is preceded by its length (le32).
pub(crate) fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let mut framed = Vec::new();
    for part in parts {
        let len = u32::try_from(part.len()).expect("names and numbers, not gigabytes");
        framed.extend(len.to_le_bytes());
        framed.extend(*part);
    }
    framed
}

/// A key of 32 bytes, in locked memory.
pub struct Key(LockedBuffer);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A new one.
    pub(crate) fn random() -> Result<Self, CryptoError> {
        let mut key = Self(LockedBuffer::new(KEY_LEN)?);
        fill_random(&mut key.0[..KEY_LEN])?;
        Ok(key)
    }

    /// One that `fill` writes.
    pub(crate) fn filled_by<E: From<LockError>>(
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut key = Self(LockedBuffer::new(KEY_LEN)?);
        fill(&mut key.0[..KEY_LEN])?;
        Ok(key)
    }

    /// The 32 bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[..KEY_LEN]
    }

    /// HKDF-SHA256 of this key: a key of its own for each salt and each framed `info`.
    pub(crate) fn derive(&self, salt: &[u8], info: &[u8]) -> Zeroizing<[u8; KEY_LEN]> {
        self.with_salt(salt).derive(info)
    }

    /// The first half of [`Self::derive`], for many of one salt.
    pub(crate) fn with_salt(&self, salt: &[u8]) -> Salted {
        Salted(Hkdf::new(Some(salt), self.bytes()))
    }
}

/// A key and a salt.
pub(crate) struct Salted(Hkdf<Sha256>);

impl Salted {
    /// The key of its own for this framed `info`.
    pub(crate) fn derive(&self, info: &[u8]) -> Zeroizing<[u8; KEY_LEN]> {
        let mut derived = Zeroizing::new([0; KEY_LEN]);
        self.0
            .expand(info, &mut *derived)
            .expect("32 bytes are within the 8,160 that HKDF-SHA256 gives");
        derived
    }
}

/// Encrypts `buffer` in place under a key that is used for nothing else; the nonce and the tag.
pub(crate) fn seal(
    key: &[u8; KEY_LEN],
    aad: &[u8],
    buffer: &mut [u8],
) -> Result<([u8; NONCE_LEN], [u8; TAG_LEN]), CryptoError> {
    let nonce: [u8; NONCE_LEN] = random()?;
    let tag = Aes256Gcm::new(key.into())
        .encrypt_in_place_detached(Nonce::from_slice(&nonce), aad, buffer)
        .expect("a megabyte is within the 64 GiB of AES-GCM");
    Ok((nonce, tag.into()))
}

/// Decrypts `buffer` in place; it is not touched if the tag is wrong.
pub(crate) fn open(
    key: &[u8; KEY_LEN],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> Result<(), CryptoError> {
    Aes256Gcm::new(key.into())
        .decrypt_in_place_detached(Nonce::from_slice(nonce), aad, buffer, Tag::from_slice(tag))
        .map_err(|_| CryptoError::NotAuthentic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_frame_tells_apart_what_concatenation_does_not() {
        assert_ne!(frame(&[b"ab", b"c"]), frame(&[b"a", b"bc"]));
        assert_ne!(frame(&[b"", b"a"]), frame(&[b"a", b""]));
        assert_eq!(frame(&[b"ab"]), b"\x02\0\0\0ab");
    }

    #[test]
    fn test_seal_opens_with_the_same_key_and_data_only() {
        let key = Key::random().expect("a key");
        let (one, other) = (key.derive(b"s", b"i"), key.derive(b"s", b"j"));
        let mut buffer = *b"a value";
        let (nonce, tag) = seal(&one, b"aad", &mut buffer).expect("sealed");
        assert_ne!(&buffer, b"a value");

        for (key, aad) in [(&other, b"aad"), (&one, b"add")] {
            let mut copy = buffer;
            let opened = open(key, &nonce, aad, &mut copy, &tag);
            assert!(matches!(opened, Err(CryptoError::NotAuthentic)));
            assert_eq!(copy, buffer);
        }
        open(&one, &nonce, b"aad", &mut buffer, &tag).expect("opened");
        assert_eq!(&buffer, b"a value");
    }

    #[test]
    fn test_derive_is_hkdf_sha256_as_rfc_5869_writes_it() {
        let key = Key::filled_by(|bytes| {
            bytes.fill(0x0b);
            Ok::<_, CryptoError>(())
        })
        .expect("a key");
        let extracted = hmac_by_hand(&[0, 1, 2, 3], &[0x0b; 32]);
        let expanded = hmac_by_hand(&extracted, b"info\x01");
        assert_eq!(*key.derive(&[0, 1, 2, 3], b"info"), expanded);
    }

    /// HMAC as RFC 2104 writes it, of keys of up to 64 bytes.
    fn hmac_by_hand(key: &[u8], data: &[u8]) -> [u8; 32] {
        use sha2::Digest;
        let pad = |byte: u8| -> Vec<u8> {
            let mut block = key.to_vec();
            block.resize(64, 0);
            block.iter().map(|key| key ^ byte).collect()
        };
        let inner = Sha256::new()
            .chain_update(pad(0x36))
            .chain_update(data)
            .finalize();
        Sha256::new()
            .chain_update(pad(0x5c))
            .chain_update(inner)
            .finalize()
            .into()
    }
}
