//! Wrapping under 32 bytes: what a key file and a credential have in common.
//!
//! `id[16] ‖ nonce[12] ‖ ciphertext[32] ‖ tag[16]`. The identifier is derived from the wrapping key, so that a
//! wrong key can be told from a damaged database.

use std::io::Read;
use std::path::Path;

use super::KeyError;
use crate::crypto::{self, KEY_LEN, Key, NONCE_LEN, TAG_LEN, frame};
use crate::files::{self, Access};

const ID_LEN: usize = 16;
const ID_CONTEXT: &[u8] = b"cachot/store/1/wrapping-key-id";
const WRAP_CONTEXT: &[u8] = b"cachot/store/1/wrapping-key";

/// Reads a file of exactly 32 bytes.
pub(crate) fn read(path: &Path, access: Access) -> Result<Key, KeyError> {
    let mut file = files::open(path, access, KEY_LEN as u64)?;
    Key::filled_by(|bytes| {
        let mut len = 0;
        while len < KEY_LEN {
            match file.read(&mut bytes[len..]) {
                Ok(0) if len == 0 => return Err(KeyError::Empty(path.to_owned())),
                Ok(0) => {
                    return Err(KeyError::Short {
                        path: path.to_owned(),
                        len,
                    });
                }
                Ok(more) => len += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(files::FileError::system("read", path)(error).into()),
            }
        }
        Ok(())
    })
}

fn id(key: &Key) -> [u8; ID_LEN] {
    let derived = key.derive(b"", &frame(&[ID_CONTEXT]));
    let mut id = [0; ID_LEN];
    id.copy_from_slice(&derived[..ID_LEN]);
    id
}

/// Encrypts `root` under `key`.
pub(super) fn wrap(key: &Key, root: &Key) -> Result<Vec<u8>, KeyError> {
    let id = id(key);
    let info = frame(&[WRAP_CONTEXT]);
    let mut sealed = zeroize::Zeroizing::new([0; KEY_LEN]);
    sealed.copy_from_slice(root.bytes());
    let (nonce, tag) = crypto::seal(&key.derive(b"", &info), &info, &mut *sealed)?;
    Ok([&id[..], &nonce, &*sealed, &tag].concat())
}

/// Decrypts what [`wrap`] made; `place` says whose key it is.
pub(super) fn unwrap(key: &Key, wrapped: &[u8], place: &str) -> Result<Key, KeyError> {
    let split = || {
        let (wrapped_by, rest) = wrapped.split_first_chunk::<ID_LEN>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (sealed, rest) = rest.split_first_chunk::<KEY_LEN>()?;
        let tag: &[u8; TAG_LEN] = rest.try_into().ok()?;
        Some((wrapped_by, nonce, sealed, tag))
    };
    let (wrapped_by, nonce, sealed, tag) = split().ok_or(KeyError::Damaged)?;
    if *wrapped_by != id(key) {
        return Err(KeyError::Wrong(place.to_owned()));
    }
    let info = frame(&[WRAP_CONTEXT]);
    Key::filled_by(|bytes| {
        bytes.copy_from_slice(sealed);
        crypto::open(&key.derive(b"", &info), nonce, &info, bytes, tag)
            .map_err(|_| KeyError::Damaged)
    })
}
