//! The wrapped root key in the database, and its rotation.
//!
//! Usually there is one row. A rotation first adds a second one, wrapped by the new source, then brings what lies
//! outside the database (the key file) up to date, then takes the first row away. Whoever opens the store after a
//! crash in between finds a row that can be unwrapped, and finishes what was begun.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::error::StoreError;
use crate::FileError;
use crate::crypto::{KEY_LEN, Key, frame};
use crate::files::{self, Access, Existing};
use crate::keys::{FileKey, KeyChoice, KeyError, KeySource};

const ROW_CONTEXT: &[u8] = b"cachot/store/1/keys-row";

/// Most rows: one, and that of a rotation.
const MAX_ROWS: usize = 2;

/// How often rows and key files are read again because they did not fit: once for each rotation that another process
/// finishes in between.
const MAX_ATTEMPTS: usize = 10;

/// A wrapped root key.
#[derive(PartialEq)]
pub(super) struct Row {
    id: i64,
    source: String,
    /// When it was wrapped, in seconds since 1970.
    pub created: i64,
    wrapped: Vec<u8>,
    mac: Vec<u8>,
}

impl Row {
    fn new(
        id: i64,
        choice: &KeyChoice,
        source: &dyn KeySource,
        root: &Key,
        created: i64,
    ) -> Result<Self, StoreError> {
        let wrapped = source.wrap(root)?;
        let mut row = Self {
            id,
            source: serde_json::to_string(choice).map_err(|_| KeyError::Damaged)?,
            created,
            wrapped,
            mac: Vec::new(),
        };
        row.mac = row.expected_mac(root).to_vec();
        Ok(row)
    }

    fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO keys(id, source, created, wrapped, mac) VALUES(?1, ?2, ?3, ?4, ?5)";
        connection
            .execute(
                sql,
                (
                    self.id,
                    &self.source,
                    self.created,
                    &self.wrapped,
                    &self.mac,
                ),
            )
            .map(|_| ())
    }

    fn expected_mac(&self, root: &Key) -> Zeroizing<[u8; KEY_LEN]> {
        let info = frame(&[
            ROW_CONTEXT,
            &self.id.to_le_bytes(),
            self.source.as_bytes(),
            &self.created.to_le_bytes(),
            &self.wrapped,
        ]);
        root.derive(b"", &info)
    }

    /// Which source wrapped it.
    pub fn choice(&self) -> Result<KeyChoice, KeyError> {
        serde_json::from_str(&self.source).map_err(|_| KeyError::Damaged)
    }

    /// The root key.
    fn unwrap(&self, place: &Path) -> Result<Key, StoreError> {
        let choice = self.choice()?;
        let unwrapped = choice.source(place).unwrap(&self.wrapped);
        let root = match (&choice, unwrapped) {
            // The rotation did not get as far as to put the new key file into its place.
            (KeyChoice::File {}, Err(error)) => FileKey::next_of_store(place)
                .unwrap(&self.wrapped)
                .map_err(|_| error)?,
            (_, unwrapped) => unwrapped?,
        };
        self.check(&root)?;
        Ok(root)
    }

    fn check(&self, root: &Key) -> Result<(), KeyError> {
        match bool::from(self.expected_mac(root)[..].ct_eq(&self.mac)) {
            true => Ok(()),
            false => Err(KeyError::Damaged),
        }
    }
}

/// The rows, the newest first; never none.
pub(super) fn rows(connection: &Connection, path: &Path) -> Result<Vec<Row>, StoreError> {
    let read = || -> rusqlite::Result<Vec<Row>> {
        let sql = "SELECT id, source, created, wrapped, mac FROM keys ORDER BY id DESC";
        let mut select = connection.prepare_cached(sql)?;
        let rows = select.query_map((), |row| {
            Ok(Row {
                id: row.get(0)?,
                source: row.get(1)?,
                created: row.get(2)?,
                wrapped: row.get(3)?,
                mac: row.get(4)?,
            })
        })?;
        rows.take(MAX_ROWS + 1).collect()
    };
    let rows = read().map_err(StoreError::database("read", path))?;
    match rows.len() {
        0 => Err(StoreError::damaged(path, "its wrapped key is missing")),
        len if len > MAX_ROWS => Err(StoreError::damaged(path, "it has too many wrapped keys")),
        _ => Ok(rows),
    }
}

/// Makes the root key of a new store, wrapped by this source. A key file that is there already is used as it is: a
/// process that was killed has made it, or an administrator.
pub(super) fn create(
    connection: &Connection,
    path: &Path,
    place: &Path,
    choice: &KeyChoice,
    now: i64,
) -> Result<Key, StoreError> {
    if let KeyChoice::File {} = choice {
        match FileKey::of_store(place).generate(Existing::Keep) {
            Err(KeyError::File(FileError::Exists(_))) => {}
            other => other?,
        }
    }
    let root = Key::random()?;
    let row = Row::new(1, choice, &*choice.source(place), &root, now)?;
    row.insert(connection)
        .map_err(StoreError::database("create", path))?;
    Ok(root)
}

/// Unwraps the root key.
pub(super) fn unlock(
    connection: &Connection,
    path: &Path,
    place: &Path,
) -> Result<Key, StoreError> {
    let mut before = rows(connection, path)?;
    let mut unchanged = 0;
    for _ in 0..MAX_ATTEMPTS {
        let mut failure = None;
        // The newest first; the older one serves until a rotation is finished.
        for row in &before {
            match row.unwrap(place) {
                Ok(root) => return Ok(root),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        // Perhaps a rotation was finished between the reading of the rows and that of the key.
        let again = rows(connection, path)?;
        unchanged = match again == before {
            true => unchanged + 1,
            false => 0,
        };
        // Between two rows the key's file may have been renamed while they were tried: then it fits the second time.
        if unchanged == before.len() {
            return Err(failure.expect("never no row"));
        }
        before = again;
    }
    Err(StoreError::Busy(path.to_owned()))
}

/// The first half of a rotation: adds a row that the new source has wrapped.
pub(super) fn begin(
    transaction: &Transaction<'_>,
    path: &Path,
    place: &Path,
    root: &Key,
    choice: &KeyChoice,
    now: i64,
) -> Result<(), StoreError> {
    let current = rows(transaction, path)?;
    let id = current.first().map_or(1, |row| row.id).checked_add(1);
    let id = id.ok_or(KeyError::Damaged)?;
    let row = match choice {
        KeyChoice::File {} => {
            let next = FileKey::next_of_store(place);
            next.generate(Existing::Replace)?;
            Row::new(id, choice, &next, root, now)?
        }
        other => Row::new(id, other, &*other.source(place), root, now)?,
    };
    row.insert(transaction)
        .map_err(StoreError::database("write", path))
}

/// The second half of a rotation, or what is left to do of one that was interrupted; nothing otherwise. In a
/// transaction that has begun to write: nobody else is at it.
pub(super) fn finish(
    transaction: &Transaction<'_>,
    path: &Path,
    place: &Path,
    root: &Key,
) -> Result<(), StoreError> {
    let rows = rows(transaction, path)?;
    let newest = &rows[0];
    // Both rows of a rotation wrap one key: a row of another one does not have the older source's file removed.
    for row in &rows {
        row.check(root)?;
    }
    let (key, next) = (FileKey::of_store(place), FileKey::next_of_store(place));
    let has_next = files::examine(next.path(), Access::Private).map_err(KeyError::from)?;
    match newest.choice()? {
        KeyChoice::File {} if has_next => match next.unwrap(&newest.wrapped) {
            Ok(_) => files::rename(place, next.path(), key.path())?,
            // Of a rotation that ended before its row was there.
            Err(KeyError::Wrong(_)) => files::remove(place, next.path())?,
            // It may be the only key of that row.
            Err(error) => return Err(error.into()),
        },
        KeyChoice::File {} => {}
        _ => files::remove(place, next.path())?,
    }
    if rows.len() == 1 {
        return Ok(());
    }
    // Before the older row goes, the newer one must do what it did.
    newest.choice()?.source(place).unwrap(&newest.wrapped)?;
    if !matches!(newest.choice()?, KeyChoice::File {}) {
        files::remove(place, key.path())?;
    }
    transaction
        .execute("DELETE FROM keys WHERE id < ?1", [newest.id])
        .map(|_| ())
        .map_err(StoreError::database("write", path))
}

/// Where the store's own key file is, if it has one.
pub(super) fn key_file(place: &Path) -> PathBuf {
    FileKey::of_store(place).path().to_owned()
}
