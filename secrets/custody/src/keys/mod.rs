//! What the store's root key is wrapped with, so that it lies nowhere as it is.

mod age;
mod credential;
mod error;
mod file;
pub(crate) mod raw;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::age::{AgeKey, recipients_of};
pub use crate::identities::{IdentityError, Recipient, RecipientError};
pub use credential::CredentialKey;
pub use error::KeyError;
pub use file::FileKey;

use crate::crypto::Key;

/// Something that wraps a root key and unwraps it again.
pub trait KeySource {
    /// Encrypts the root key.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn wrap(&self, root: &Key) -> Result<Vec<u8>, KeyError>;

    /// Decrypts what [`Self::wrap`] made.
    ///
    /// # Errors
    /// See [`KeyError`]; what is wrapped comes from a file and may be anything.
    fn unwrap(&self, wrapped: &[u8]) -> Result<Key, KeyError>;
}

/// Which source a store has, as the store keeps it: a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "source",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum KeyChoice {
    /// `master.key` beside the database.
    File {},
    /// An age file to several recipients.
    Age {
        /// The identity file that it is read with on this host.
        identity: PathBuf,
        /// Who can read it: public keys, `age1...`.
        recipients: Vec<Recipient>,
    },
    /// A credential that systemd gives to the service.
    Credential {
        /// Its name.
        name: String,
    },
}

impl KeyChoice {
    /// The source itself, for the store in the folder `place`.
    #[must_use]
    pub fn source(&self, place: &Path) -> Box<dyn KeySource> {
        match self {
            Self::File {} => Box::new(FileKey::of_store(place)),
            Self::Age {
                identity,
                recipients,
            } => Box::new(AgeKey::new(identity.clone(), recipients.clone())),
            Self::Credential { name } => Box::new(CredentialKey::new(name.clone())),
        }
    }

    /// Name of the kind of source.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File {} => "file",
            Self::Age { .. } => "age",
            Self::Credential { .. } => "credential",
        }
    }
}
