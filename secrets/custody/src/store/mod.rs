//! Secrets at rest: an SQLite database of values, each encrypted for its scope, name and version.
//!
//! `resources/secrets-store.md` specifies the format, and what it protects from.

mod error;
mod heads;
mod keyring;
mod records;
mod rotation;
mod schema;
mod scope;
mod transaction;
mod values;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cachot_secrets::{Name, SecretValue};
use rusqlite::{Connection, TransactionBehavior};

pub use error::{StoreError, Taken};
pub use records::{Entry, Incoming, KeyStatus, Stored, Version};
pub use scope::{Instance, Scope, ScopeError, Selector, SelectorError};

use crate::crypto::Key;
use crate::files;
use crate::keys::KeyChoice;
use crate::requester::Requester;
use heads::{Head, Heads, Place};
use transaction::{Change, Known, View, refresh};

/// Name of the database in the store's folder.
pub(crate) const DATABASE: &str = "store.db";

/// Most versions of a secret that are kept; of more, the oldest go.
pub const MAX_VERSIONS: u64 = 100;

/// A store, open for one requester: what belongs to others is neither shown nor confirmed to be there.
pub struct Store {
    connection: Connection,
    /// The folder.
    place: PathBuf,
    /// The database in it.
    path: PathBuf,
    requester: Requester,
    root: Key,
    heads: Option<Known>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({:?})", self.path)
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// A number of the database for people.
fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

impl Store {
    /// Opens the store in the folder `place`.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Absent`] if there is none.
    pub fn open(place: &Path, requester: Requester) -> Result<Self, StoreError> {
        if !place.join(DATABASE).try_exists().unwrap_or(true) {
            return Err(StoreError::Absent(place.to_owned()));
        }
        files::private_folder(place)?;
        // The folder itself is no link; what is above it may be, which SQLite would refuse.
        let place = place
            .canonicalize()
            .map_err(files::FileError::system("find", place))?;
        let path = place.join(DATABASE);
        let connection = schema::open(&path)?;
        let root = keyring::unlock(&connection, &path, &place)?;
        let mut store = Self {
            connection,
            place,
            path,
            requester,
            root,
            heads: None,
        };
        // What was not sealed with this key changes nothing, least of all the key's file.
        store.read(|_| Ok(()))?;
        if keyring::rows(&store.connection, &store.path)?.len() > 1 {
            // A rotation was interrupted. If it cannot be finished now, the store can be read all the same.
            store.finish_rotation().ok();
        }
        Ok(store)
    }

    /// Makes a store in the folder `place`, whose key this source wraps.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Exists`] if there is one.
    pub fn create(
        place: &Path,
        requester: Requester,
        choice: &KeyChoice,
    ) -> Result<Self, StoreError> {
        files::private_folder(place)?;
        let path = place.join(DATABASE);
        if files::examine(&path, files::Access::Private)? {
            return Err(StoreError::Exists(path));
        }
        // SQLite would take what is in them for changes of the new database.
        for left_over in schema::sidecars(&path) {
            if files::examine(&left_over, files::Access::Private)? {
                return Err(StoreError::LeftOver(left_over));
            }
        }
        let system = |action| files::FileError::system::<std::io::Error>(action, place);
        let file = tempfile::Builder::new()
            .prefix(".store-")
            .tempfile_in(place.canonicalize().map_err(system("find"))?)
            .map_err(system("create a file in"))?;
        {
            let connection = schema::create(file.path())?;
            let root = keyring::create(&connection, &path, place, choice, now())?;
            Heads::create(&connection, &root).map_err(StoreError::database("create", &path))?;
        }
        file.as_file().sync_all().map_err(system("write to"))?;
        match file.persist_noclobber(&path) {
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(path));
            }
            other => other.map_err(|error| system("create a file in")(error.error))?,
        };
        files::sync_folder(place)?;
        Self::open(place, requester)
    }

    /// Opens the store in the folder `place`; if there is none, makes one whose key is a key file.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open_or_create(place: &Path, requester: Requester) -> Result<Self, StoreError> {
        match Self::open(place, requester.clone()) {
            Err(StoreError::Absent(_)) => {}
            other => return other,
        }
        match Self::create(place, requester.clone(), &KeyChoice::File {}) {
            // Another process was faster.
            Err(StoreError::Exists(_)) => Self::open(place, requester),
            other => other,
        }
    }

    /// Fetches a value: of the scope that is named, or of the narrowest that has the name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn get(&mut self, selector: &Selector) -> Result<Stored, StoreError> {
        self.read(|view| {
            let (scope, place, head) = view.find(selector)?;
            let version = view.kept(&place, head, selector.version)?;
            Ok(Stored {
                scope,
                version: positive(version),
                value: values::get(view.transaction, view.root, view.path, &place, version)?,
            })
        })
    }

    /// Stores a value as the next version of a secret, which need not exist; the version.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set(
        &mut self,
        scope: &Scope,
        name: &Name,
        value: &SecretValue,
    ) -> Result<u64, StoreError> {
        self.write(scope, name, |view, place, old| view.push(place, old, value))
    }

    /// Stores values as [`Self::set`] does, all or none of them.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_all<'a>(
        &mut self,
        secrets: impl IntoIterator<Item = (&'a Scope, &'a Name, &'a SecretValue)>,
    ) -> Result<(), StoreError> {
        self.change(|change| {
            for (scope, name, value) in secrets {
                change.one(scope, name, |view, place, old| view.push(place, old, value))?;
            }
            Ok(())
        })
    }

    /// Stores values that have owners of their own, all or none of them; unless `replace`, none has a value already.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Taken`] names all that have a value.
    pub fn import(&mut self, secrets: &[Incoming<'_>], replace: bool) -> Result<(), StoreError> {
        self.change(|change| {
            let mut taken = Vec::new();
            for secret in secrets {
                let Incoming {
                    requester,
                    scope,
                    name,
                    value,
                } = *secret;
                let mut change = change.on_behalf_of(requester);
                if !replace && change.view().version(scope, name)?.is_some() {
                    taken.push((scope.clone(), name.clone()));
                } else if taken.is_empty() {
                    change.one(scope, name, |view, place, old| view.push(place, old, value))?;
                }
            }
            match taken.is_empty() {
                true => Ok(()),
                false => Err(StoreError::Taken(Taken(taken))),
            }
        })
    }

    /// The newest version of each of these secrets of their owners; `None` of one that is not there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn versions(&mut self, secrets: &[Incoming<'_>]) -> Result<Vec<Option<u64>>, StoreError> {
        self.read(|view| {
            let version = |secret: &Incoming<'_>| {
                let requester = secret.requester;
                View { requester, ..*view }.version(secret.scope, secret.name)
            };
            secrets.iter().map(version).collect()
        })
    }

    /// The same as [`Self::set`] for a secret that exists.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::NoSecret`] if it does not.
    pub fn rotate(
        &mut self,
        scope: &Scope,
        name: &Name,
        value: &SecretValue,
    ) -> Result<u64, StoreError> {
        self.write(scope, name, |view, place, old| {
            view.existing(scope, place)?;
            view.push(place, old, value)
        })
    }

    /// Stores the value of an earlier version once more, as the next version; the version.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn rollback(
        &mut self,
        scope: &Scope,
        name: &Name,
        version: u64,
    ) -> Result<u64, StoreError> {
        self.write(scope, name, |view, place, old| {
            let head = view.existing(scope, place)?;
            let version = view.kept(place, head, Some(version))?;
            let value = values::get(view.transaction, view.root, view.path, place, version)?;
            view.push(place, old, &value)
        })
    }

    /// Removes all values of a secret; a later one of this name goes on counting versions. The number of versions
    /// that are gone.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn delete(&mut self, scope: &Scope, name: &Name) -> Result<u64, StoreError> {
        let deleted = self.write(scope, name, |view, place, _| {
            let head = view.existing(scope, place)?;
            let oldest = head.version + 1;
            values::prune(view.transaction, view.path, place, oldest)?;
            let new = Head {
                oldest,
                updated: now(),
                ..head
            };
            Ok((new, positive(oldest - head.oldest)))
        })?;
        // What was overwritten goes from the log of the database, too; another process may be reading it.
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
            .ok();
        Ok(deleted)
    }

    /// All secrets that the requester may use; those that were deleted only if `deleted`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn list(&mut self, deleted: bool) -> Result<Vec<Entry>, StoreError> {
        self.read(|view| {
            let entry = |(place, head): (&Place, &Head)| {
                Some(Entry {
                    scope: Scope::visible(&place.0, view.requester)?,
                    name: place.1.clone(),
                    version: positive(head.version),
                    versions: positive(head.version + 1 - head.oldest),
                    updated: positive(head.updated),
                })
            };
            let shown = |entry: &Entry| deleted || entry.versions > 0;
            let mut entries: Vec<_> = view.heads.iter().filter_map(entry).filter(shown).collect();
            entries.sort_by(|a, b| (&a.scope, &a.name).cmp(&(&b.scope, &b.name)));
            Ok(entries)
        })
    }

    /// Names of the secrets that the requester has a value of, in whichever scope.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn names(&mut self) -> Result<BTreeSet<Name>, StoreError> {
        self.read(|view| {
            let scopes: Vec<_> = Scope::of(view.requester)
                .map(|scope| scope.stored(view.requester))
                .collect();
            let has = |(place, head): (&Place, &Head)| {
                (scopes.contains(&place.0) && !head.is_deleted()).then(|| place.1.clone())
            };
            Ok(view.heads.iter().filter_map(has).collect())
        })
    }

    /// The versions of a secret that are kept, the newest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn history(&mut self, scope: &Scope, name: &Name) -> Result<Vec<Version>, StoreError> {
        self.read(|view| {
            let place = view.place(scope, name)?;
            let head = view.existing(scope, &place)?;
            let times = values::times(view.transaction, view.path, &place)?;
            if !times
                .iter()
                .map(|(version, _)| *version)
                .eq(head.oldest..=head.version)
            {
                let what = format!("versions of {name} are missing, or are too many");
                return Err(StoreError::damaged(view.path, what));
            }
            let version = |(version, created): (i64, i64)| Version {
                version: positive(version),
                created: positive(created),
                current: version == head.version,
            };
            Ok(times.into_iter().rev().map(version).collect())
        })
    }

    /// Does something that reads, on one state of the database.
    fn read<T>(
        &mut self,
        act: impl FnOnce(&View<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let transaction = self
            .connection
            .transaction()
            .map_err(StoreError::database("read", &self.path))?;
        let known = refresh(&mut self.heads, &transaction, &self.root, &self.path)?;
        act(&View {
            transaction: &transaction,
            root: &self.root,
            path: &self.path,
            requester: &self.requester,
            heads: &known.heads,
        })
    }

    /// Changes one secret, in turn with other writers: `act` writes its values, and says what its row is then.
    fn write<T>(
        &mut self,
        scope: &Scope,
        name: &Name,
        act: impl FnOnce(&View<'_>, &Place, Option<Head>) -> Result<(Head, T), StoreError>,
    ) -> Result<T, StoreError> {
        self.change(|change| change.one(scope, name, act))
    }

    /// Changes secrets, all or none, in turn with other writers.
    fn change<T>(
        &mut self,
        act: impl FnOnce(&mut Change<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = || StoreError::database("write to", &self.path);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed())?;
        // What is known is put back once it is committed, and read again otherwise.
        let mut known = self.heads.take();
        let heads = &mut refresh(&mut known, &transaction, &self.root, &self.path)?.heads;
        let result = act(&mut Change {
            transaction: &transaction,
            root: &self.root,
            path: &self.path,
            requester: &self.requester,
            heads,
        })?;
        transaction.commit().map_err(failed())?;
        self.heads = known;
        Ok(result)
    }
}

#[cfg(test)]
mod tests;
