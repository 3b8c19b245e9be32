//! Why secrets of another system are not imported.

use std::fmt;
use std::path::PathBuf;

use cachot_secrets::{LockError, NameError, ResolveError, ValueError};

use super::MAX_FOUND;
use crate::bundle::{AgeError, BundleError};
use crate::{FileError, KeyError, StoreError};

/// Why secrets of another system are not imported. Nothing was stored then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is not used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key of aegis is not used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A bundle or a file of sops is not read, or the private keys that open it.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A dotenv file is not read.
    #[error(transparent)]
    Dotenv(#[from] ResolveError),
    /// There is no locked memory for the values.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A database is not one of that system, or of another version.
    #[error("{path:?} is not a database of {system} that this cachot knows: {what}")]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Whose it should be.
        system: &'static str,
        /// What is different.
        what: String,
    },
    /// There is a log beside a database, and the newest rows are in it.
    #[error(
        "{log:?} holds changes that are not in the database yet: stop the service that uses it, have `sqlite3 {path:?} .tables` \
         finish them, and try again"
    )]
    Unfinished {
        /// The database.
        path: PathBuf,
        /// The log.
        log: PathBuf,
    },
    /// Somebody is writing.
    #[error("{0:?} is being written to: stop the service that uses it, and try again")]
    Busy(PathBuf),
    /// SQLite cannot read the database.
    #[error(
        "cannot read {path:?}, which is no database of SQLite or is damaged: take it from a backup"
    )]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// Not a single value opens.
    #[error(
        "no value of {path:?} opens with the key {key:?}: it is another key's, or all of them are damaged"
    )]
    WrongKey {
        /// The database.
        path: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// More than fits.
    #[error("there are more than {MAX_FOUND} secrets, which is the limit of one import")]
    TooMany,
    /// An option speaks of what is not there.
    #[error("{0} fits nothing that was found: --dry-run shows what there is")]
    Unused(String),
    /// Some cannot be stored; none was.
    #[error("nothing was stored, because of\n{0}")]
    Refused(Refusals),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why one secret is not imported.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A column has something else than its table says.
    #[error("its column {column} is not {expected}")]
    Column {
        /// The column.
        column: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// The value is too short to be encrypted.
    #[error("its value is cut short")]
    Short,
    /// The value is not authentic.
    #[error("its value was encrypted with another key, or is damaged")]
    NotAuthentic,
    /// The value is no age file that opens.
    #[error("its value cannot be decrypted: {0}")]
    Age(AgeError),
    /// The value is in a file, as it was before bhatti had it in the table.
    #[error(
        "its value is not in the database but in the file {0}, which is not looked for: --skip FROM leaves it out, and `cachot \
         secret set` stores it"
    )]
    InFile(String),
    /// The value cannot be one of a secret.
    #[error(transparent)]
    Value(ValueError),
    /// The value is empty.
    #[error("its value is empty, which the store does not keep: --skip-empty leaves it out")]
    Empty,
    /// A scope that is not known.
    #[error("its scope is neither per_workspace nor per_app")]
    AegisScope,
    /// Not a name of ours.
    #[error("{0}: --rename FROM=NAME gives it another name")]
    Name(NameError),
    /// Not an owner of ours.
    #[error("{0}")]
    Owner(&'static str),
    /// Two become one.
    #[error(
        "it would be the same secret as {0}: --rename FROM=NAME gives one of them another name"
    )]
    Same(String),
}

/// Most problems that are told one by one.
const MAX_TOLD: usize = 50;

/// What cannot be stored, a line each.
#[derive(Debug)]
pub struct Refusals(pub Vec<(String, Problem)>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (from, problem)) in self.0.iter().take(MAX_TOLD).enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{}: {problem}", Shown(from))?;
        }
        match self.0.len().checked_sub(MAX_TOLD) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\nand {more} more"),
        }
    }
}

/// Most characters of what others named something that an error repeats.
const MAX_SHOWN: usize = 80;

/// What others named something: quoted where it is not plain, and not without end.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut: String = self.0.chars().take(MAX_SHOWN).collect();
        let more = if cut.len() < self.0.len() { "..." } else { "" };
        let plain = |c: char| c.is_ascii_graphic() || c == ' ';
        match cut.chars().all(plain) && !cut.is_empty() {
            true => write!(f, "{cut}{more}"),
            false => write!(f, "{cut:?}{more}"),
        }
    }
}
