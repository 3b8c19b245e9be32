//! Bundles: files in which the secrets of a kind of VM stand together, encrypted by age or by sops.
//!
//! `resources/bundles.md` is the specification. [`Bundles`] finds and reads them, [`Document`] is what is in one.

mod age;
mod document;
mod edit;
mod external;
mod json;
mod lookup;
mod name;
mod node;
mod read;
mod sops;
mod validate;
mod write;

use std::path::PathBuf;

use zeroize::Zeroizing;

pub(crate) use age::decrypt as decrypt_age;
pub use age::{AgeError, Readers};
pub use document::{Document, DocumentError, Field, FieldError, KeyName, KeyNameError};
pub use edit::{EditError, Written};
pub use external::ExternalError;
pub(crate) use lookup::read_sops;
pub use lookup::{Bundles, Format, Opened};
pub use name::{BundleName, BundleNameError};
pub(crate) use node::Node;
pub use node::SecretText;
pub use read::{MAX_TEXT_LEN, TextError};
pub use sops::SopsError;
pub use validate::Finding;

pub use crate::identities::{Identities, Recipient, RecipientError};

use crate::files::FileError;
use crate::identities::IdentityError;

/// YAML as JSON: for settings, which are read like bundles but by a schema of their own.
///
/// # Errors
/// See [`TextError`].
pub fn yaml_to_json(text: &[u8]) -> Result<Zeroizing<String>, TextError> {
    match read::read(text)? {
        node::Node::Map(entries) => Ok(json::write(&entries)),
        empty if empty.is_null() => Ok(Zeroizing::new("{}".to_owned())),
        _ => Err(TextError::NotYaml(1)),
    }
}

/// Why a bundle is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is none of this name.
    #[error(
        "bundle not found: there is no {name}.age, {name}.sops.yaml, {name}.sops.yml or {name}.sops.json in {folder:?}: \
         make one with `cachot bundle encrypt`, or name another folder"
    )]
    NotFound {
        /// The bundle.
        name: BundleName,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// What is there is in plaintext.
    #[error(
        "bundle not encrypted: {0:?} is plaintext: encrypt it with `cachot bundle encrypt` and remove it, or allow it with --allow-plaintext"
    )]
    NotEncrypted(PathBuf),
    /// There is no private key.
    #[error(
        "no age identities found in {0:?}: make a key with `age-keygen -o` and this path, or name another file"
    )]
    NoIdentities(PathBuf),
    /// A line of a key file is something else.
    #[error(
        "line {line} of {path:?} is not a private key of age: the file has comments and lines AGE-SECRET-KEY-1..., as age-keygen writes them"
    )]
    KeyFile {
        /// The key file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: usize,
    },
    /// An age file is not read.
    #[error("cannot decrypt {path:?}: {error}")]
    Age {
        /// The bundle's file.
        path: PathBuf,
        /// Why.
        error: AgeError,
    },
    /// A file of sops is not read.
    #[error("cannot decrypt {path:?}: {error}")]
    Sops {
        /// The bundle's file.
        path: PathBuf,
        /// Why.
        error: SopsError,
    },
    /// The user's sops program gave nothing.
    #[error("cannot decrypt {path:?}: {error}")]
    External {
        /// The bundle's file.
        path: PathBuf,
        /// Why.
        error: ExternalError,
    },
    /// What is in it is not a bundle.
    #[error("{path:?} holds no bundle: {error}")]
    Document {
        /// The bundle's file.
        path: PathBuf,
        /// Why.
        error: DocumentError,
    },
    /// It is not changed.
    #[error("cannot change {path:?}: {error}")]
    Edit {
        /// The bundle's file.
        path: PathBuf,
        /// Why.
        error: EditError,
    },
    /// A file is not used.
    #[error(transparent)]
    File(#[from] FileError),
    /// `bundle:` the locator is not `NAME#section.key`.
    #[error(
        "the reference does not say which value of the bundle is meant: write bundle:NAME#section.key"
    )]
    NoField,
    /// Not the name of a bundle.
    #[error(transparent)]
    Name(#[from] BundleNameError),
    /// Not a place in a bundle.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The bundle has no such value.
    #[error(
        "the bundle {name} has no value at {field}: `cachot bundle validate {name}` lists those that it has"
    )]
    NoValue {
        /// The bundle.
        name: BundleName,
        /// Where.
        field: Field,
    },
    /// The value cannot be one of a secret.
    #[error("{field} of the bundle {name}: {error}")]
    Value {
        /// The bundle.
        name: BundleName,
        /// Where.
        field: Field,
        /// Why.
        error: cachot_secrets::ValueError,
    },
}

impl From<IdentityError> for BundleError {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Empty(path) | IdentityError::File(FileError::Absent(path)) => {
                Self::NoIdentities(path)
            }
            IdentityError::Line { path, line } => Self::KeyFile { path, line },
            IdentityError::File(error) => Self::File(error),
        }
    }
}
