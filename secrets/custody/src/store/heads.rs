//! One row for each secret, and the seal over all of them together, by which a row that was put back, taken
//! away, added or changed is noticed.
//!
//! The seal is a keyed hash of a generation and of the sum, modulo 2^256, of a keyed hash of every row. The sum
//! can be brought up to date in one step, whatever the number of rows. It is a sum, not an exclusive or, so that
//! two equal rows do not cancel out; and neither it nor its summands are ever written down: who knew enough of
//! them could look for another set of rows with the same sum.

use std::collections::BTreeMap;
use std::path::Path;

use cachot_secrets::Name;
use rusqlite::Transaction;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::error::StoreError;
use crate::crypto::{KEY_LEN, Key, Salted, frame};

/// Most secrets of a store, deleted ones included.
pub(super) const MAX_SECRETS: usize = 100_000;

/// Longest scope as it is in the database, in bytes: `instance:`, a user, a slash, and the name of a VM.
const MAX_SCOPE_LEN: usize = 9 + 64 + 1 + 63;

const HEAD_CONTEXT: &[u8] = b"cachot/store/1/head";
const STATE_CONTEXT: &[u8] = b"cachot/store/1/state";

/// Where a secret is, in the database's terms: its scope and its name.
pub(super) type Place = (String, Name);

/// What is known of a secret without its values. Versions `oldest..=version` are kept; none is, once it has
/// been deleted, and then `oldest` is `version + 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The newest version there ever was.
    pub version: i64,
    /// The oldest version that is kept.
    pub oldest: i64,
    /// When it was last changed, in seconds since 1970.
    pub updated: i64,
}

impl Head {
    pub fn is_deleted(&self) -> bool {
        self.oldest > self.version
    }

    fn is_possible(&self) -> bool {
        self.version >= 1
            && self.version < i64::MAX
            && (1..=self.version + 1).contains(&self.oldest)
    }
}

/// The sum of the rows' hashes.
type Sum = Zeroizing<[u8; KEY_LEN]>;

/// All rows, checked.
pub(super) struct Heads {
    rows: BTreeMap<Place, Head>,
    generation: i64,
    sum: Sum,
}

fn hash(root: &Salted, place: &Place, head: &Head) -> Sum {
    let info = frame(&[
        HEAD_CONTEXT,
        place.0.as_bytes(),
        place.1.as_str().as_bytes(),
        &head.version.to_le_bytes(),
        &head.oldest.to_le_bytes(),
        &head.updated.to_le_bytes(),
    ]);
    root.derive(&info)
}

/// Adds little-endian numbers modulo 2^256.
fn add(sum: &mut [u8; KEY_LEN], more: &[u8; KEY_LEN]) {
    let mut carry = false;
    for (byte, more) in sum.iter_mut().zip(more) {
        let (partial, first) = byte.overflowing_add(*more);
        let (total, second) = partial.overflowing_add(u8::from(carry));
        *byte = total;
        carry = first || second;
    }
}

/// Subtracts little-endian numbers modulo 2^256: adds the complement and 1.
fn subtract(sum: &mut [u8; KEY_LEN], less: &[u8; KEY_LEN]) {
    let complement = Zeroizing::new(less.map(|byte| !byte));
    let mut one = [0; KEY_LEN];
    one[0] = 1;
    add(sum, &complement);
    add(sum, &one);
}

fn seal(root: &Key, generation: i64, count: usize, sum: &Sum) -> Zeroizing<[u8; KEY_LEN]> {
    let count = (count as u64).to_le_bytes();
    let info = Zeroizing::new(frame(&[
        STATE_CONTEXT,
        &generation.to_le_bytes(),
        &count,
        &**sum,
    ]));
    root.derive(b"", &info)
}

impl Heads {
    /// Writes the seal of a store without secrets.
    pub fn create(connection: &rusqlite::Connection, root: &Key) -> rusqlite::Result<()> {
        let mac = seal(root, 0, 0, &Sum::default());
        let sql = "INSERT INTO state(id, generation, mac) VALUES(1, 0, ?1)";
        connection.execute(sql, [&mac[..]]).map(|_| ())
    }

    /// Reads all rows and checks the seal.
    pub fn load(
        transaction: &Transaction<'_>,
        root: &Key,
        path: &Path,
    ) -> Result<Self, StoreError> {
        let failed = || StoreError::database("read", path);
        let mut statement = transaction
            .prepare_cached("SELECT scope, name, version, oldest, updated FROM heads")
            .map_err(failed())?;
        let mut rows = statement.query(()).map_err(failed())?;
        let mut heads = Self {
            rows: BTreeMap::new(),
            generation: 0,
            sum: Sum::default(),
        };
        let salted = root.with_salt(b"");
        let mut count = 0;
        while let Some(row) = rows.next().map_err(failed())? {
            if count == MAX_SECRETS {
                return Err(StoreError::damaged(
                    path,
                    "it has more secrets than a store can have",
                ));
            }
            count += 1;
            let (place, head) = read(row).map_err(failed())?.ok_or_else(|| {
                StoreError::damaged(path, "a secret has an impossible name or number")
            })?;
            add(&mut heads.sum, &hash(&salted, &place, &head));
            heads.rows.insert(place, head);
        }
        let (generation, mac): (i64, Vec<u8>) = transaction
            .prepare_cached("SELECT generation, mac FROM state WHERE id = 1")
            .and_then(|mut state| state.query_row((), |row| Ok((row.get(0)?, row.get(1)?))))
            .map_err(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => {
                    StoreError::damaged(path, "the seal over its secrets is missing")
                }
                other => failed()(other),
            })?;
        heads.generation = generation;
        let expected = seal(root, generation, count, &heads.sum);
        if bool::from(expected[..].ct_eq(&mac)) {
            Ok(heads)
        } else {
            Err(StoreError::damaged(
                path,
                "a secret was put back to an earlier state, removed, added or moved",
            ))
        }
    }

    /// Writes a row and the seal that belongs to it. If the transaction is not committed, these are no longer the
    /// rows that there are.
    pub fn write(
        &mut self,
        transaction: &Transaction<'_>,
        root: &Key,
        place: Place,
        head: Head,
    ) -> rusqlite::Result<()> {
        let salted = root.with_salt(b"");
        if let Some(old) = self.rows.get(&place) {
            subtract(&mut self.sum, &hash(&salted, &place, old));
        }
        add(&mut self.sum, &hash(&salted, &place, &head));
        self.generation = self.generation.wrapping_add(1);
        transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO heads(scope, name, version, oldest, updated) VALUES(?1, ?2, ?3, ?4, ?5)",
            )?
            .execute((&place.0, place.1.as_str(), head.version, head.oldest, head.updated))?;
        self.rows.insert(place, head);
        let mac = seal(root, self.generation, self.rows.len(), &self.sum);
        transaction
            .prepare_cached("UPDATE state SET generation = ?1, mac = ?2 WHERE id = 1")?
            .execute((self.generation, &mac[..]))
            .map(|_| ())
    }

    /// The secret at this place, even if it was deleted.
    pub fn get(&self, place: &Place) -> Option<&Head> {
        self.rows.get(place)
    }

    /// All of them, by scope and name.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, &Head)> {
        self.rows.iter()
    }

    /// How many there are, deleted ones included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

/// A row as it is in the database; `None` if cachot cannot have written it.
fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<(Place, Head)>> {
    let (scope, name): (String, String) = (row.get(0)?, row.get(1)?);
    let head = Head {
        version: row.get(2)?,
        oldest: row.get(3)?,
        updated: row.get(4)?,
    };
    let possible = scope.len() <= MAX_SCOPE_LEN && head.is_possible();
    let name = name.parse().ok().filter(|_| possible);
    Ok(name.map(|name| ((scope, name), head)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_add_and_subtract_are_inverse_and_carry() {
        let mut sum = [0xff; KEY_LEN];
        let mut one = [0; KEY_LEN];
        one[0] = 1;
        add(&mut sum, &one);
        assert_eq!(sum, [0; KEY_LEN]);
        subtract(&mut sum, &one);
        assert_eq!(sum, [0xff; KEY_LEN]);
        let mut mixed = [0; KEY_LEN];
        mixed[0] = 0xff;
        add(&mut mixed, &one);
        assert_eq!(mixed[..3], [0, 1, 0]);
        subtract(&mut mixed, &one);
        assert_eq!(mixed[..3], [0xff, 0, 0]);
    }
}
