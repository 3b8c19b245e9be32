//! Why a command about stored secrets did not do its work.

use std::io;

use cachot_custody::import::ImportError;
use cachot_custody::{KeyError, StoreError};
use cachot_secrets::ValueError;

use crate::audit::{AuditCommandError, RecordError};
use crate::input::{FOUND_WRONG, InputError};
use crate::state_dir::StateError;
use crate::vm::error::OWN_FAILURE;

/// Why a command about stored secrets did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// No place for the store.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing is imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// `import agentlab` finds nothing.
    #[error("there is no bundle in {0:?}: name another folder with --secrets-dir")]
    NoBundles(std::path::PathBuf),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A value or an answer of the user.
    #[error(transparent)]
    Input(#[from] InputError),
    /// What was typed or made is no value.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The user typed two values.
    #[error("the two values are not the same: nothing was stored; try again")]
    NotTheSame,
    /// The value is on the command line in pieces.
    #[error(
        "the value is more than one argument: nothing was stored; leave it out, and it is asked for"
    )]
    Pieces,
    /// `key rotate` of a credential.
    #[error(
        "a credential is not cachot's to make: name the new one with --credential, or another source"
    )]
    WhichCredential,
    /// An audit log is not shown.
    #[error(transparent)]
    Audit(AuditCommandError),
    /// The use of a secret cannot be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl From<AuditCommandError> for CustodyError {
    fn from(error: AuditCommandError) -> Self {
        match error {
            AuditCommandError::Output(error) => Self::Output(error),
            other => Self::Audit(other),
        }
    }
}

impl CustodyError {
    /// The exit code to report it with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(StoreError::NoSecret { .. } | StoreError::NoVersion { .. }) => FOUND_WRONG,
            Self::Input(error) => error.exit_code(),
            _ => OWN_FAILURE,
        }
    }
}
