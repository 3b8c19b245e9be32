//! A credential of a systemd service: 32 bytes in a file of `$CREDENTIALS_DIRECTORY`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{KeyError, KeySource, raw};
use crate::crypto::Key;
use crate::files::Access;

/// Variable in which systemd says where a service's credentials are (systemd.exec(5)).
const FOLDER_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Longest name of a file on Linux, in bytes.
const MAX_NAME_LEN: usize = 255;

/// A credential of this service.
#[derive(Debug)]
pub struct CredentialKey {
    name: String,
    folder: Option<OsString>,
}

impl CredentialKey {
    /// The credential of this name, of the service that this process belongs to.
    #[must_use]
    pub fn new(name: String) -> Self {
        let folder = std::env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty());
        Self { name, folder }
    }

    fn key(&self) -> Result<Key, KeyError> {
        let bad = self.name.is_empty()
            || self.name.len() > MAX_NAME_LEN
            || self.name.contains(['/', '\0'])
            || matches!(self.name.as_str(), "." | "..");
        if bad {
            return Err(KeyError::CredentialName);
        }
        let folder = self.folder.as_ref();
        let folder = folder.ok_or_else(|| KeyError::NoCredentials(self.name.clone()))?;
        // systemd lets a service's own user in by an access-control list, whose mask shows as the group's bits.
        raw::read(&PathBuf::from(folder).join(&self.name), Access::Trusted)
    }
}

impl KeySource for CredentialKey {
    fn wrap(&self, root: &Key) -> Result<Vec<u8>, KeyError> {
        raw::wrap(&self.key()?, root)
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Key, KeyError> {
        raw::unwrap(
            &self.key()?,
            wrapped,
            &format!("the credential {:?}", self.name),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(name: &str, folder: &std::path::Path) -> CredentialKey {
        CredentialKey {
            name: name.to_owned(),
            folder: Some(folder.into()),
        }
    }

    #[test]
    fn test_credential_wraps_and_unwraps() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("one"), [1; 32]).expect("written");
        std::fs::write(folder.path().join("two"), [2; 32]).expect("written");
        let root = Key::random().expect("a key");

        let wrapped = credential("one", folder.path())
            .wrap(&root)
            .expect("wrapped");

        let unwrapped = credential("one", folder.path()).unwrap(&wrapped);
        assert_eq!(unwrapped.expect("the key").bytes(), root.bytes());
        let wrong = credential("two", folder.path()).unwrap(&wrapped);
        assert!(matches!(wrong, Err(KeyError::Wrong(_))), "{wrong:?}");
    }

    #[test]
    fn test_credential_that_is_none_is_a_distinct_error() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, len) in [("empty", 0), ("short", 31), ("long", 33)] {
            std::fs::write(folder.path().join(name), vec![1; len]).expect("written");
        }
        let text = |name: &str| {
            let error = credential(name, folder.path()).key().expect_err("refused");
            error.to_string()
        };
        assert!(text("empty").contains("is empty"));
        assert!(text("short").contains("has 31 bytes"));
        assert!(text("long").contains("over the limit of 32 bytes"));
        assert!(text("none").contains("there is no"));
        for name in ["", ".", "..", "a/b"] {
            assert!(text(name).contains("a credential's name"));
        }
        let nowhere = CredentialKey {
            name: "one".to_owned(),
            folder: None,
        };
        assert!(matches!(nowhere.key(), Err(KeyError::NoCredentials(_))));
    }
}
