//! A database of another system: read whole, once, into memory, so that nothing of it is changed, locked or
//! waited for, and what is in it is believed no more than any other file.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{Found, ImportError, MAX_FOUND, Problem};
use crate::files::{self, Access, FileError};

/// Largest database, in bytes: that of a system that keeps much else in it.
const MAX_DATABASE_LEN: u64 = 256 << 20;

/// Bytes of the header of a database (sqlite.org/fileformat2.html, section 1.3).
const HEADER_LEN: usize = 100;

/// Where the header says how it is written and read: 1 is a rollback journal, 2 a write-ahead log.
const VERSIONS: std::ops::Range<usize> = 18..20;

/// A database of another system.
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    system: &'static str,
}

impl Database {
    /// Reads the database of `system` at `path`.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub(super) fn read(path: &Path, system: &'static str) -> Result<Self, ImportError> {
        let file = files::open(path, Access::Trusted, MAX_DATABASE_LEN)?;
        lock(&file, path)?;
        nothing_unfinished(path)?;
        let examined = file.metadata();
        let len = examined.map_err(FileError::system("examine", path))?.len();
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let foreign = |what: &str| ImportError::Foreign {
            path: path.to_owned(),
            system,
            what: what.to_owned(),
        };
        let mut header = [0; HEADER_LEN];
        (&file)
            .read_exact(&mut header)
            .map_err(|_| foreign("it is no database of SQLite"))?;
        // The log is empty or not there, and a database in memory has none.
        for byte in &mut header[VERSIONS] {
            if *byte == 2 {
                *byte = 1;
            }
        }
        let failed = || Self::failed(path);
        let mut connection = Connection::open_in_memory().map_err(failed())?;
        configure(&connection).map_err(failed())?;
        connection
            .deserialize_read_exact("main", Cursor::new(header).chain(&file), len, true)
            .map_err(failed())?;
        // It was not written meanwhile by somebody who keeps to a log.
        nothing_unfinished(path)?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            system,
        })
    }

    fn failed(path: &Path) -> impl FnOnce(rusqlite::Error) -> ImportError {
        move |source| ImportError::Database {
            path: path.to_owned(),
            source,
        }
    }

    /// For what is not as this system writes it.
    pub(super) fn foreign(&self, what: impl Into<String>) -> ImportError {
        ImportError::Foreign {
            path: self.path.clone(),
            system: self.system,
            what: what.into(),
        }
    }

    /// The columns of its table `secrets`.
    ///
    /// # Errors
    /// See [`ImportError`]; that of a view or a table that is computed, for it could take any time.
    pub(super) fn columns(&self) -> Result<Vec<String>, ImportError> {
        let failed = || Self::failed(&self.path);
        let real: i64 = self
            .connection
            .query_row(
                "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'secrets' AND rootpage > 0",
                (),
                |row| row.get(0),
            )
            .map_err(failed())?;
        if real != 1 {
            return Err(self.foreign("it has no table `secrets`"));
        }
        let mut statement = self
            .connection
            .prepare("SELECT name, hidden FROM pragma_table_xinfo('secrets')")
            .map_err(failed())?;
        let columns = statement
            .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(failed())?
            .collect::<Result<Vec<(String, i64)>, _>>()
            .map_err(failed())?;
        if columns.iter().any(|(_, hidden)| *hidden != 0) {
            return Err(self.foreign("columns of its table `secrets` are computed"));
        }
        Ok(columns.into_iter().map(|(name, _)| name).collect())
    }

    /// Makes something of every row that a query of this program gives.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub(super) fn rows(
        &self,
        query: &str,
        mut visit: impl FnMut(usize, &Row<'_>) -> Result<Found, ImportError>,
    ) -> Result<Vec<Found>, ImportError> {
        let failed = || Self::failed(&self.path);
        let mut statement = self.connection.prepare(query).map_err(failed())?;
        let mut rows = statement.query(()).map_err(failed())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(failed())? {
            if found.len() == MAX_FOUND {
                return Err(ImportError::TooMany);
            }
            found.push(visit(found.len() + 1, row)?);
        }
        Ok(found)
    }
}

/// Waits for nobody: whoever writes now has a lock, of the whole file's parts that SQLite locks.
fn lock(file: &File, path: &Path) -> Result<(), ImportError> {
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::AGAIN | Errno::ACCESS) => Err(ImportError::Busy(path.to_owned())),
        other => Ok(other.map_err(FileError::system("lock", path))?),
    }
}

/// Makes sure that all that was written is in the database itself.
fn nothing_unfinished(path: &Path) -> Result<(), ImportError> {
    for suffix in ["-wal", "-journal"] {
        let mut log = path.as_os_str().to_owned();
        log.push(suffix);
        match rustix::fs::lstat(&log) {
            Err(Errno::NOENT) => {}
            Ok(stat) if stat.st_size == 0 => {}
            Ok(_) => {
                return Err(ImportError::Unfinished {
                    path: path.to_owned(),
                    log: log.into(),
                });
            }
            Err(errno) => return Err(FileError::system("examine", Path::new(&log))(errno).into()),
        }
    }
    Ok(())
}

/// Nothing that a schema can ask for is done.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "memory")
}

/// The text in a column.
///
/// # Errors
/// [`Problem::Column`] if it is no text.
pub(super) fn text<'a>(
    row: &'a Row<'_>,
    at: usize,
    column: &'static str,
) -> Result<&'a str, Problem> {
    let expected = "text in UTF-8";
    match row.get_ref(at) {
        Ok(ValueRef::Text(bytes)) => {
            std::str::from_utf8(bytes).map_err(|_| Problem::Column { column, expected })
        }
        _ => Err(Problem::Column { column, expected }),
    }
}

/// The bytes in a column.
///
/// # Errors
/// [`Problem::Column`] if they are none.
pub(super) fn blob<'a>(
    row: &'a Row<'_>,
    at: usize,
    column: &'static str,
) -> Result<&'a [u8], Problem> {
    let expected = "bytes (a BLOB)";
    match row.get_ref(at) {
        Ok(ValueRef::Blob(bytes)) => Ok(bytes),
        _ => Err(Problem::Column { column, expected }),
    }
}

/// Whether there is nothing in a column.
pub(super) fn is_null(row: &Row<'_>, at: usize) -> bool {
    matches!(row.get_ref(at), Ok(ValueRef::Null))
}
