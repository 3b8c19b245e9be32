//! A key file: 32 bytes, 0600, beside the database.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{KeyError, KeySource, raw};
use crate::crypto::Key;
use crate::files::{self, Access, Existing, FileError};
use crate::store::DATABASE;

/// Name of the key file in the store's folder.
const KEY_FILE: &str = "master.key";

/// Name of the key that takes its place, while a rotation is under way.
const NEXT_KEY_FILE: &str = "master.key.next";

/// A key file.
#[derive(Debug, Clone)]
pub struct FileKey {
    path: PathBuf,
    database: PathBuf,
}

impl FileKey {
    /// The key of the store in this folder.
    #[must_use]
    pub fn of_store(place: &Path) -> Self {
        Self {
            path: place.join(KEY_FILE),
            database: place.join(DATABASE),
        }
    }

    /// The key that a rotation puts into its place.
    #[must_use]
    pub(crate) fn next_of_store(place: &Path) -> Self {
        Self {
            path: place.join(NEXT_KEY_FILE),
            database: place.join(DATABASE),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file with a new key.
    pub(crate) fn generate(&self, existing: Existing) -> Result<(), KeyError> {
        let key = Key::random()?;
        files::write(&self.path, existing, |file| file.write_all(key.bytes()))?;
        Ok(())
    }
}

impl KeySource for FileKey {
    fn wrap(&self, root: &Key) -> Result<Vec<u8>, KeyError> {
        raw::wrap(&raw::read(&self.path, Access::Private)?, root)
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Key, KeyError> {
        let key = raw::read(&self.path, Access::Private).map_err(|error| match error {
            KeyError::File(FileError::Absent(key)) => KeyError::Missing {
                key,
                database: self.database.clone(),
            },
            other => other,
        })?;
        raw::unwrap(&key, wrapped, &format!("{:?}", self.path))
    }
}
