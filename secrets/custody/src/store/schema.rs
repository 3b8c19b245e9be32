//! The database: its tables, how it is opened, and why one is refused before anything of it is believed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cachot_secrets::MAX_VALUE_LEN;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};

use super::error::StoreError;
use crate::files::{self, Access};

/// In the header of every store (`application_id`): `cach`.
const APPLICATION_ID: i64 = 0x6361_6368;

/// Format of the tables (`user_version`).
pub(super) const FORMAT: i64 = 1;

/// How long a writer waits for those before it.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// Largest row: a value, and its names and numbers.
const MAX_ROW_LEN: usize = MAX_VALUE_LEN + 4096;

/// The tables, by name, as SQLite keeps their text. A database with any other object is refused: a trigger or view
/// would be code of somebody else's.
const TABLES: [(&str, &str); 4] = [
    (
        "heads",
        "CREATE TABLE heads(scope TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, \
         oldest INTEGER NOT NULL, updated INTEGER NOT NULL, PRIMARY KEY(scope, name)) STRICT, WITHOUT ROWID",
    ),
    (
        "keys",
        "CREATE TABLE keys(id INTEGER PRIMARY KEY, source TEXT NOT NULL, created INTEGER NOT NULL, \
         wrapped BLOB NOT NULL, mac BLOB NOT NULL) STRICT",
    ),
    (
        "state",
        "CREATE TABLE state(id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, mac BLOB NOT NULL) STRICT",
    ),
    (
        "versions",
        "CREATE TABLE versions(scope TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, \
         created INTEGER NOT NULL, salt BLOB NOT NULL, nonce BLOB NOT NULL, sealed BLOB NOT NULL, \
         PRIMARY KEY(scope, name, version)) STRICT, WITHOUT ROWID",
    ),
];

/// Makes the tables in an empty file, which stays closed to all others until it is complete.
pub(super) fn create(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path)?;
    let failed = || StoreError::database("create", path);
    // No other process has it open, and a crash leaves a file of another name.
    set(&connection, "journal_mode", "memory").map_err(failed())?;
    for (_, sql) in TABLES {
        connection.execute(sql, ()).map_err(failed())?;
    }
    set(&connection, "application_id", APPLICATION_ID).map_err(failed())?;
    set(&connection, "user_version", FORMAT).map_err(failed())?;
    Ok(connection)
}

/// Files that SQLite keeps beside a database: they belong together.
pub(super) fn sidecars(path: &Path) -> impl Iterator<Item = PathBuf> {
    ["-wal", "-shm", "-journal"].into_iter().map(|suffix| {
        let mut sidecar = path.as_os_str().to_owned();
        sidecar.push(suffix);
        sidecar.into()
    })
}

/// Opens a database and makes sure that it is one of this program's.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    for sidecar in sidecars(path) {
        files::examine(&sidecar, Access::Private)?;
    }
    if !files::examine(path, Access::Private)? {
        return Err(StoreError::Absent(path.to_owned()));
    }
    let connection = connect(path)?;
    check(&connection, path)?;
    let failed = || StoreError::database("open", path);
    let mode: String = connection
        .query_row("PRAGMA journal_mode = wal", (), |row| row.get(0))
        .map_err(failed())?;
    if mode != "wal" {
        return Err(StoreError::ReadOnly(path.to_owned()));
    }
    Ok(connection)
}

fn set(connection: &Connection, name: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
    // Some of them answer with the new value.
    connection
        .pragma_update_and_check(None, name, value, |_| Ok(()))
        .or_else(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            other => Err(other),
        })
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let failed = || StoreError::database("open", path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags).map_err(failed())?;
    connection.busy_timeout(BUSY_PATIENCE).map_err(failed())?;
    let configure = || -> rusqlite::Result<()> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        let max_row = i32::try_from(MAX_ROW_LEN).expect("a megabyte");
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, max_row)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        set(&connection, "cell_size_check", true)?;
        set(&connection, "mmap_size", 0)?;
        set(&connection, "secure_delete", true)?;
        set(&connection, "synchronous", "full")?;
        set(&connection, "temp_store", "memory")
    };
    configure().map_err(failed())?;
    Ok(connection)
}

fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = || StoreError::database("read", path);
    let number = |name: &str| -> Result<i64, StoreError> {
        let read = connection.pragma_query_value(None, name, |row| row.get(0));
        read.map_err(failed())
    };
    if number("application_id")? != APPLICATION_ID {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    match number("user_version")? {
        FORMAT => {}
        version if version > FORMAT => {
            return Err(StoreError::Future {
                path: path.to_owned(),
                version,
            });
        }
        _ => return Err(StoreError::Foreign(path.to_owned())),
    }
    let mut statement = connection
        .prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")
        .map_err(failed())?;
    let objects = statement
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(failed())?
        .take(TABLES.len() + 1)
        .collect::<Result<Vec<(String, Option<String>)>, _>>()
        .map_err(failed())?;
    let same = objects.len() == TABLES.len()
        && objects.iter().zip(TABLES).all(|(object, table)| {
            (object.0.as_str(), object.1.as_deref()) == (table.0, Some(table.1))
        });
    match same {
        true => Ok(()),
        false => Err(StoreError::damaged(
            path,
            "its tables are not those of this format",
        )),
    }
}
