//! Why nothing could be recorded, or read.

use std::path::{Path, PathBuf};

use crate::files::FileError;

/// Why nothing could be recorded, or read. Where something is to be recorded first, no value is given out.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file of the log.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is there is not what a log leaves behind.
    #[error(
        "the audit log {path:?} {why}: `cachot secret audit verify` says more; to begin a new log, move its folder away"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The log is another host's, or the host's key was exchanged.
    #[error(
        "the audit log {path:?} was signed last by the key {key}, which is not this host's: put the file host-key back \
         that it was signed with, or move the log's folder away to begin a new one"
    )]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// Public key, in hexadecimal digits.
        key: String,
    },
    /// There is no log.
    #[error("there is no audit log {0:?}: nothing was recorded there yet")]
    NoLog(PathBuf),
    /// A record is too long.
    #[error(
        "a record for the audit log has over {max} bytes: shorten names and scopes",
        max = super::line::MAX_LINE
    )]
    LineTooLong,
    /// A record is not plain data; never happens.
    #[error("cannot describe what is to be recorded")]
    Describe(#[source] serde_json::Error),
}

pub(super) fn damaged(path: &Path, why: &'static str) -> AuditError {
    AuditError::Damaged {
        path: path.to_owned(),
        why,
    }
}
