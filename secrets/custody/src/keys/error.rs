//! Why a key is not used.

use std::path::PathBuf;

use crate::FileError;
use crate::crypto::{CryptoError, KEY_LEN};
use crate::identities::IdentityError;

/// Why a key is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not there, not this user's alone, or cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is a database, and its key is gone.
    #[error(
        "the key {key:?} is missing, without which {database:?} cannot be read: put it back from a backup; a new one is \
         never made for a database that is there"
    )]
    Missing {
        /// The key.
        key: PathBuf,
        /// What it opens.
        database: PathBuf,
    },
    /// The key's file has no bytes.
    #[error("the key {0:?} is empty: put it back from a backup; it is never made anew")]
    Empty(PathBuf),
    /// The key's file is too short.
    #[error(
        "the key {path:?} has {len} bytes and must have {KEY_LEN}: put it back from a backup; it is never made anew"
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Bytes that it has.
        len: usize,
    },
    /// It is a key, but of something else.
    #[error(
        "{0} is not the key that the store was encrypted with: put that one back; if there is none, the values are lost"
    )]
    Wrong(String),
    /// The file of private keys of age is not used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No recipient would be left, or the identity is not among them.
    #[error(
        "the identity {0:?} could not read what is encrypted to these recipients, and the store could not be opened here \
         any more: keep one of its public keys among them"
    )]
    NotForUs(PathBuf),
    /// The store's key is no age file.
    #[error(
        "the store's key is wrapped by a source of the kind {0:?}, which has no recipients: `cachot key rotate \
         --age-identity FILE` changes to age"
    )]
    NoRecipients(&'static str),
    /// Not one of the recipients.
    #[error("the store is not encrypted to {0}: `cachot key status` shows its recipients")]
    NotARecipient(super::Recipient),
    /// The service has no credentials.
    #[error(
        "there is no credential {0:?}: $CREDENTIALS_DIRECTORY is not set; start the service with LoadCredential= or \
         LoadCredentialEncrypted="
    )]
    NoCredentials(String),
    /// Not the name of a credential.
    #[error("a credential's name has 1 to 255 bytes, no slash, and is neither `.` nor `..`")]
    CredentialName,
    /// What is wrapped is not what a source makes.
    #[error("the wrapped key in the database is damaged: put the database back from a backup")]
    Damaged,
    /// Memory or random bytes.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl From<cachot_secrets::LockError> for KeyError {
    fn from(error: cachot_secrets::LockError) -> Self {
        Self::Crypto(error.into())
    }
}
