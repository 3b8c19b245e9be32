//! The rows with values: each sealed under a key of its own, and bound to its scope, name, version and time.

use std::io;
use std::path::Path;

use cachot_secrets::{LockedBuffer, MAX_VALUE_LEN, SecretValue, ValueError};
use rusqlite::{OptionalExtension, Transaction};
use zeroize::Zeroizing;

use super::error::StoreError;
use super::heads::Place;
use crate::crypto::{self, KEY_LEN, Key, NONCE_LEN, TAG_LEN, frame};

/// Bytes of the salt that a value's key is derived with.
const SALT_LEN: usize = 16;

const KEY_CONTEXT: &[u8] = b"cachot/store/1/value-key";
const ROW_CONTEXT: &[u8] = b"cachot/store/1/value";

/// Which row.
struct Row<'a> {
    place: &'a Place,
    version: i64,
    created: i64,
}

impl Row<'_> {
    fn key(&self, root: &Key, salt: &[u8; SALT_LEN]) -> Zeroizing<[u8; KEY_LEN]> {
        let info = frame(&[
            KEY_CONTEXT,
            self.place.0.as_bytes(),
            self.place.1.as_str().as_bytes(),
            &self.version.to_le_bytes(),
        ]);
        root.derive(salt, &info)
    }

    fn aad(&self) -> Vec<u8> {
        frame(&[
            ROW_CONTEXT,
            self.place.0.as_bytes(),
            self.place.1.as_str().as_bytes(),
            &self.version.to_le_bytes(),
            &self.created.to_le_bytes(),
        ])
    }
}

/// Adds a version.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    root: &Key,
    path: &Path,
    place: &Place,
    (version, created): (i64, i64),
    value: &SecretValue,
) -> Result<(), StoreError> {
    let row = Row {
        place,
        version,
        created,
    };
    let salt: [u8; SALT_LEN] = crypto::random()?;
    let len = value.len();
    let mut sealed = LockedBuffer::new(len + TAG_LEN)?;
    sealed[..len].copy_from_slice(value.expose());
    let (nonce, tag) = crypto::seal(&row.key(root, &salt), &row.aad(), &mut sealed[..len])?;
    sealed[len..len + TAG_LEN].copy_from_slice(&tag);
    transaction
        .prepare_cached(
            "INSERT INTO versions(scope, name, version, created, salt, nonce, sealed) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .and_then(|mut insert| {
            insert.execute((
                &place.0,
                place.1.as_str(),
                version,
                created,
                &salt[..],
                &nonce[..],
                &sealed[..len + TAG_LEN],
            ))
        })
        .map(|_| ())
        .map_err(StoreError::database("write", path))
}

/// Decrypts a version that is known to be kept.
pub(super) fn get(
    transaction: &Transaction<'_>,
    root: &Key,
    path: &Path,
    place: &Place,
    version: i64,
) -> Result<SecretValue, StoreError> {
    let failed = || StoreError::database("read", path);
    let damaged = || {
        let what = format!("version {version} of {} is not what was stored", place.1);
        StoreError::damaged(path, what)
    };
    let mut select = transaction
        .prepare_cached(
            "SELECT created, salt, nonce, sealed FROM versions WHERE scope = ?1 AND name = ?2 AND version = ?3",
        )
        .map_err(failed())?;
    let decrypted = select
        .query_row((&place.0, place.1.as_str(), version), |columns| {
            let row = Row {
                place,
                version,
                created: columns.get(0)?,
            };
            let (salt, nonce, sealed) = (
                columns.get_ref(1)?,
                columns.get_ref(2)?,
                columns.get_ref(3)?,
            );
            Ok(decrypt(
                &row,
                root,
                salt.as_blob()?,
                nonce.as_blob()?,
                sealed.as_blob()?,
            ))
        })
        .optional()
        .map_err(failed())?;
    let decrypted = decrypted.ok_or_else(|| {
        StoreError::damaged(path, format!("version {version} of {} is missing", place.1))
    })?;
    match decrypted {
        Some(Ok(value)) => Ok(value),
        None | Some(Err(ValueError::Read(_))) => Err(damaged()),
        Some(Err(other)) => Err(other.into()),
    }
}

/// `None` if the parts have impossible lengths.
fn decrypt(
    row: &Row<'_>,
    root: &Key,
    salt: &[u8],
    nonce: &[u8],
    sealed: &[u8],
) -> Option<Result<SecretValue, ValueError>> {
    let salt: &[u8; SALT_LEN] = salt.try_into().ok()?;
    let nonce: &[u8; NONCE_LEN] = nonce.try_into().ok()?;
    let (sealed, tag) = sealed.split_last_chunk::<TAG_LEN>()?;
    if sealed.is_empty() || sealed.len() > MAX_VALUE_LEN {
        return None;
    }
    Some(SecretValue::filled_by(sealed.len(), |buffer| {
        buffer.copy_from_slice(sealed);
        crypto::open(&row.key(root, salt), nonce, &row.aad(), buffer, tag)
            .map_err(|_| io::ErrorKind::InvalidData.into())
    }))
}

/// Removes the versions below `oldest`.
pub(super) fn prune(
    transaction: &Transaction<'_>,
    path: &Path,
    place: &Place,
    oldest: i64,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached("DELETE FROM versions WHERE scope = ?1 AND name = ?2 AND version < ?3")
        .and_then(|mut delete| delete.execute((&place.0, place.1.as_str(), oldest)))
        .map(|_| ())
        .map_err(StoreError::database("write", path))
}

/// The kept versions and when each was stored, ascending. The times are those in the rows, which are checked only when
/// a value is read.
pub(super) fn times(
    transaction: &Transaction<'_>,
    path: &Path,
    place: &Place,
) -> Result<Vec<(i64, i64)>, StoreError> {
    transaction
        .prepare_cached(
            "SELECT version, created FROM versions WHERE scope = ?1 AND name = ?2 ORDER BY version",
        )
        .and_then(|mut select| {
            let rows = select.query_map((&place.0, place.1.as_str()), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
            rows.collect()
        })
        .map_err(StoreError::database("read", path))
}
