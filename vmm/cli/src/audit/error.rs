//! Why a use of a secret is not recorded, or what was recorded not shown.

use std::io;

use cachot_custody::audit::AuditError;
use cachot_snapshot::image::ImageError;

use crate::state_dir::StateError;

/// Why a use of a secret cannot be recorded; no value is given out then.
#[derive(Debug, thiserror::Error)]
#[error("no secret is given out, as that cannot be recorded")]
pub struct RecordError(#[source] Cause);

/// What is in the way.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The log.
    #[error(transparent)]
    Log(#[from] AuditError),
    /// The key that logs are signed with.
    #[error(transparent)]
    Key(#[from] ImageError),
    /// No place for logs.
    #[error(transparent)]
    State(#[from] StateError),
}

impl<E: Into<Cause>> From<E> for RecordError {
    fn from(cause: E) -> Self {
        Self(cause.into())
    }
}

/// Why a log is not shown or checked.
#[derive(Debug, thiserror::Error)]
pub enum AuditCommandError {
    /// The log.
    #[error(transparent)]
    Log(#[from] AuditError),
    /// Trusted keys.
    #[error(transparent)]
    Key(#[from] ImageError),
    /// No such VM.
    #[error(transparent)]
    State(#[from] StateError),
    /// What is to be checked is no VM's name and no path.
    #[error(
        "{0:?} is neither a VM's name nor the folder of an audit log: write a folder with a slash in it"
    )]
    NoTarget(String),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}
