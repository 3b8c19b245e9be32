//! Why the store does not do what it is asked for.

use std::fmt;
use std::path::{Path, PathBuf};

use cachot_secrets::{LockError, Name, Refusal, ValueError};
use rusqlite::{ErrorCode, ffi};
use rustix::fs::StatVfsMountFlags;

use super::scope::Scope;
use crate::crypto::CryptoError;
use crate::{FileError, KeyError};

/// Why the store does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing says where it is.
    #[error("there is no place for the store: set CACHOT_STATE to a folder, or set HOME")]
    NoPlace,
    /// There is none yet.
    #[error("there is no store {0:?} yet: `cachot secret set NAME` makes one")]
    Absent(PathBuf),
    /// There is one.
    #[error(
        "there is a store {0:?} already: `cachot key rotate` gives it another key, `cachot key status` says which it has"
    )]
    Exists(PathBuf),
    /// Something of another database is where the new one's would be.
    #[error(
        "{0:?} is left over from another database, and may have its newest changes: move it to where that database is"
    )]
    LeftOver(PathBuf),
    /// A file of it is not there, not this user's alone, or cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its key is not used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Some other file.
    #[error("{0:?} is not a store of cachot: move it away, or set CACHOT_STATE to another folder")]
    Foreign(PathBuf),
    /// Of a later version of this program.
    #[error(
        "the store {path:?} has format {version}, and this version of cachot knows {known}: use the one that wrote it",
        known = super::schema::FORMAT
    )]
    Future {
        /// The database.
        path: PathBuf,
        /// Its format.
        version: i64,
    },
    /// What is in it was not written by this program, or not as it is.
    #[error(
        "the store {path:?} was changed by something else than cachot, or its disk is at fault: {what}; nothing is read \
         from it: put it back from a backup"
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There is no such secret.
    #[error(
        "there is no secret {name} in {place}: `cachot secret list` shows those that there are"
    )]
    NoSecret {
        /// What was looked for.
        name: Name,
        /// Where.
        place: String,
    },
    /// There is the secret, but not in this version.
    #[error(
        "the secret {name} has no version {version} any more, or not yet: `cachot secret history {name}` shows those that \
         it has"
    )]
    NoVersion {
        /// The secret.
        name: Name,
        /// The version that was asked for.
        version: u64,
    },
    /// The scope belongs to somebody else. Whether anything is in it is not said.
    #[error("the scope {0} is not open to who asks: use your own, or `workspace`")]
    NotYours(Scope),
    /// Imported secrets would take the place of others.
    #[error(
        "there are values already of {0}: nothing was stored; --replace makes what is imported their next version"
    )]
    Taken(Taken),
    /// There is no room for another secret.
    #[error("the store has {0} secrets, deleted ones included, which is its limit")]
    TooMany(usize),
    /// Versions have run out.
    #[error("the secret {0} cannot have a further version")]
    LastVersion(Name),
    /// The database is in use for too long.
    #[error(
        "another process keeps the store {0:?} busy: wait until it is done, or see who has it open with `fuser`"
    )]
    Busy(PathBuf),
    /// The disk refuses writing.
    #[error(
        "the store {0:?} cannot be written to: mount its disk for writing, or permit this user to write (reading needs \
         it, too)"
    )]
    ReadOnly(PathBuf),
    /// The disk is full.
    #[error("there is no room for the store {0:?}: free some; nothing of it was changed")]
    Full(PathBuf),
    /// The database failed in some other way.
    #[error("cannot {action} the store {path:?}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// What is to be stored is not a value.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Memory or random bytes.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl From<LockError> for StoreError {
    fn from(error: LockError) -> Self {
        Self::Crypto(error.into())
    }
}

/// Most secrets that an error names.
const MAX_NAMED: usize = 20;

/// Secrets that are there already.
#[derive(Debug)]
pub struct Taken(pub Vec<(Scope, Name)>);

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (scope, name)) in self.0.iter().take(MAX_NAMED).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name} in {scope}")?;
        }
        match self.0.len().checked_sub(MAX_NAMED) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " and {more} more"),
        }
    }
}

/// What exactly SQLite says.
fn extended(error: &rusqlite::Error) -> i32 {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => error.extended_code,
        _ => 0,
    }
}

/// Whether the disk that a file is on refuses writing.
fn is_read_only(path: &Path) -> bool {
    let disk = rustix::fs::statvfs(path);
    disk.is_ok_and(|disk| disk.f_flag.contains(StatVfsMountFlags::RDONLY))
}

impl StoreError {
    /// What is wrong in a few fixed words.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NotYours(_) => Refusal::Denied,
            Self::NoSecret { .. } => Refusal::Failed("no such secret"),
            Self::NoVersion { .. } => Refusal::Failed("no such version"),
            _ => Refusal::Failed("the store has failed"),
        }
    }

    /// For `map_err`: what SQLite said when `action` was tried on the database at `path`.
    pub(super) fn database(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.sqlite_error_code() {
                Some(ErrorCode::ReadOnly) => Self::ReadOnly(path),
                Some(ErrorCode::DiskFull) => Self::Full(path),
                // SQLite needs a file beside the database for its index of the log, even to read.
                Some(ErrorCode::SystemIoFailure)
                    if extended(&source) == ffi::SQLITE_IOERR_SHMSIZE =>
                {
                    Self::Full(path)
                }
                Some(ErrorCode::CannotOpen) if is_read_only(&path) => Self::ReadOnly(path),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy(path),
                Some(ErrorCode::NotADatabase) => Self::Foreign(path),
                Some(ErrorCode::DatabaseCorrupt) => Self::Damaged {
                    path,
                    what: "SQLite finds its pages malformed".to_owned(),
                },
                Some(ErrorCode::TooBig) => Self::Damaged {
                    path,
                    what: "a row is larger than any that cachot writes".to_owned(),
                },
                _ => match source {
                    rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..)
                    | rusqlite::Error::Utf8Error(..) => Self::Damaged {
                        path,
                        what: "a row has content of another type".to_owned(),
                    },
                    source => Self::Database {
                        action,
                        path,
                        source,
                    },
                },
            }
        }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
