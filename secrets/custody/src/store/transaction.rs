//! What a transaction of the store sees and may change, for one requester.

use std::path::Path;

use cachot_secrets::{Name, SecretValue};
use rusqlite::Transaction;

use super::heads::{Head, Heads, MAX_SECRETS, Place};
use super::{MAX_VERSIONS, Scope, Selector, StoreError, now, positive, values};
use crate::crypto::Key;
use crate::requester::Requester;

/// All secrets, as they were when SQLite's counter of others' changes stood at this number.
pub(super) struct Known {
    data_version: i64,
    pub(super) heads: Heads,
}

/// The secrets as they are in this transaction, read and checked again if another process has changed them.
pub(super) fn refresh<'a>(
    known: &'a mut Option<Known>,
    transaction: &Transaction<'_>,
    root: &Key,
    path: &Path,
) -> Result<&'a mut Known, StoreError> {
    let failed = || StoreError::database("read", path);
    // The number is that of the state which the transaction reads only once it has read something.
    transaction
        .prepare_cached("SELECT generation FROM state")
        .and_then(|mut first| first.query(()).and_then(|mut rows| rows.next().map(|_| ())))
        .map_err(failed())?;
    let data_version = transaction
        .prepare_cached("PRAGMA data_version")
        .and_then(|mut number| number.query_row((), |row| row.get(0)))
        .map_err(failed())?;
    match known {
        Some(same) if same.data_version == data_version => {}
        _ => {
            *known = None;
            *known = Some(Known {
                data_version,
                heads: Heads::load(transaction, root, path)?,
            });
        }
    }
    Ok(known.as_mut().expect("set above"))
}

/// A transaction that writes, for one requester.
pub(super) struct Change<'a> {
    pub(super) transaction: &'a Transaction<'a>,
    pub(super) root: &'a Key,
    pub(super) path: &'a Path,
    pub(super) requester: &'a Requester,
    pub(super) heads: &'a mut Heads,
}

impl Change<'_> {
    /// The same for another requester.
    pub(super) fn on_behalf_of<'b>(&'b mut self, requester: &'b Requester) -> Change<'b> {
        Change {
            requester,
            heads: self.heads,
            ..*self
        }
    }

    pub(super) fn view(&self) -> View<'_> {
        View {
            transaction: self.transaction,
            root: self.root,
            path: self.path,
            requester: self.requester,
            heads: self.heads,
        }
    }

    pub(super) fn one<T>(
        &mut self,
        scope: &Scope,
        name: &Name,
        act: impl FnOnce(&View<'_>, &Place, Option<Head>) -> Result<(Head, T), StoreError>,
    ) -> Result<T, StoreError> {
        let view = self.view();
        let place = view.place(scope, name)?;
        let old = view.heads.get(&place).copied();
        if old.is_none() && view.heads.len() >= MAX_SECRETS {
            return Err(StoreError::TooMany(MAX_SECRETS));
        }
        let (new, result) = act(&view, &place, old)?;
        self.heads
            .write(self.transaction, self.root, place, new)
            .map_err(StoreError::database("write to", self.path))?;
        Ok(result)
    }
}

/// One state of the database, for one requester.
pub(super) struct View<'a> {
    pub(super) transaction: &'a Transaction<'a>,
    pub(super) root: &'a Key,
    pub(super) path: &'a Path,
    pub(super) requester: &'a Requester,
    pub(super) heads: &'a Heads,
}

impl View<'_> {
    /// Where a secret is, if the requester may use its scope.
    pub(super) fn place(&self, scope: &Scope, name: &Name) -> Result<Place, StoreError> {
        match scope.is_open_to(self.requester) {
            true => Ok((scope.stored(self.requester), name.clone())),
            false => Err(StoreError::NotYours(scope.clone())),
        }
    }

    /// The newest version of a secret, if it is there.
    pub(super) fn version(&self, scope: &Scope, name: &Name) -> Result<Option<u64>, StoreError> {
        let head = self.heads.get(&self.place(scope, name)?);
        let head = head.filter(|head| !head.is_deleted());
        Ok(head.map(|head| positive(head.version)))
    }

    /// A secret that is there.
    pub(super) fn existing(&self, scope: &Scope, place: &Place) -> Result<Head, StoreError> {
        let head = self.heads.get(place).filter(|head| !head.is_deleted());
        head.copied().ok_or_else(|| StoreError::NoSecret {
            name: place.1.clone(),
            place: format!("the scope {scope}"),
        })
    }

    pub(super) fn find(&self, selector: &Selector) -> Result<(Scope, Place, Head), StoreError> {
        if let Some(scope) = &selector.scope {
            let place = self.place(scope, &selector.name)?;
            let head = self.existing(scope, &place)?;
            return Ok((scope.clone(), place, head));
        }
        Scope::of(self.requester)
            .find_map(|scope| {
                let place = self.place(&scope, &selector.name).ok()?;
                let head = self.existing(&scope, &place).ok()?;
                Some((scope, place, head))
            })
            .ok_or_else(|| {
                let scopes: Vec<_> = Scope::of(self.requester)
                    .map(|scope| scope.to_string())
                    .collect();
                StoreError::NoSecret {
                    name: selector.name.clone(),
                    place: format!("the scopes {}", scopes.join(", ")),
                }
            })
    }

    /// The version that is asked for, or the newest, if it is kept.
    pub(super) fn kept(
        &self,
        place: &Place,
        head: Head,
        version: Option<u64>,
    ) -> Result<i64, StoreError> {
        let Some(wanted) = version else {
            return Ok(head.version);
        };
        let kept = i64::try_from(wanted).ok();
        kept.filter(|version| (head.oldest..=head.version).contains(version))
            .ok_or_else(|| StoreError::NoVersion {
                name: place.1.clone(),
                version: wanted,
            })
    }

    /// Adds a version, and lets those go that are too many.
    pub(super) fn push(
        &self,
        place: &Place,
        old: Option<Head>,
        value: &SecretValue,
    ) -> Result<(Head, u64), StoreError> {
        let (last, oldest) = old.map_or((0, 1), |old| (old.version, old.oldest));
        let version = last + 1;
        if version == i64::MAX {
            return Err(StoreError::LastVersion(place.1.clone()));
        }
        let time = now();
        values::insert(
            self.transaction,
            self.root,
            self.path,
            place,
            (version, time),
            value,
        )?;
        let kept = i64::try_from(MAX_VERSIONS).unwrap_or(i64::MAX);
        let new = Head {
            version,
            oldest: oldest.max(version - kept + 1),
            updated: time,
        };
        if new.oldest > oldest {
            values::prune(self.transaction, self.path, place, new.oldest)?;
        }
        Ok((new, positive(version)))
    }
}
