//! aegis: a table of an SQLite database, and a key file of 32 bytes.

use std::io;
use std::path::Path;

use cachot_secrets::{MAX_VALUE_LEN, SecretValue, ValueError};
use rusqlite::Row;

use super::database::{Database, blob, text};
use super::found::{Content, Found, Owner};
use super::{ImportError, Problem};
use crate::crypto::{self, Key, NONCE_LEN, TAG_LEN};
use crate::files::Access;
use crate::keys::raw;

/// The columns of the table since aegis has no apps any more.
const NEWER: [&str; 4] = ["id", "name", "value", "created_at"];

/// The columns before.
const OLDER: [&str; 6] = ["id", "app_id", "name", "value", "scope", "created_at"];

/// Reads all secrets of the database, with the master key.
///
/// # Errors
/// See [`ImportError`].
pub fn read(database: &Path, key: &Path) -> Result<Vec<Found>, ImportError> {
    let master = raw::read(key, Access::Private)?;
    let source = Database::read(database, "aegis")?;
    let columns = source.columns()?;
    let same = |known: &[&str]| {
        known.len() == columns.len()
            && known
                .iter()
                .all(|known| columns.iter().any(|column| column == known))
    };
    let query = match (same(&NEWER), same(&OLDER)) {
        (true, _) => "SELECT name, value, 'per_workspace', '' FROM secrets",
        (_, true) => "SELECT name, value, scope, app_id FROM secrets",
        _ => {
            return Err(source.foreign(format!(
                "its table `secrets` has neither the columns {} nor {}",
                NEWER.join(", "),
                OLDER.join(", ")
            )));
        }
    };
    let found = source.rows(query, |number, row| of_row(number, row, &master))?;
    let fails = |found: &Found| matches!(found.content, Content::Problem(Problem::NotAuthentic));
    match !found.is_empty() && found.iter().all(fails) {
        true => Err(ImportError::WrongKey {
            path: database.to_owned(),
            key: key.to_owned(),
        }),
        false => Ok(found),
    }
}

fn of_row(number: usize, row: &Row<'_>, master: &Key) -> Result<Found, ImportError> {
    let numbered = |problem| {
        let from = format!("row {number}");
        Found::new(
            from,
            String::new(),
            Owner::Nobody,
            Content::Problem(problem),
        )
    };
    let name = match text(row, 0, "name") {
        Ok(name) => name,
        Err(problem) => return Ok(numbered(problem)),
    };
    let owner = match (text(row, 2, "scope"), text(row, 3, "app_id")) {
        (Ok("per_workspace"), Ok("")) => Owner::Nobody,
        // A secret of the workspace that an app has set: every app has it.
        (Ok("per_workspace"), Ok(_)) => Owner::Nobody,
        (Ok("per_app"), Ok(app)) => Owner::App(app.to_owned()),
        (Ok(_), Ok(_)) => return Ok(numbered(Problem::AegisScope)),
        (Err(problem), _) | (_, Err(problem)) => return Ok(numbered(problem)),
    };
    let content = match blob(row, 1, "value") {
        Ok(sealed) => decrypt(sealed, master)?,
        Err(problem) => Content::Problem(problem),
    };
    let from = match &owner {
        Owner::App(app) => format!("{app}/{name}"),
        _ => name.to_owned(),
    };
    Ok(Found::new(from, name.to_owned(), owner, content))
}

/// `nonce[12] ‖ ciphertext ‖ tag[16]`, without additional data.
fn decrypt(sealed: &[u8], master: &Key) -> Result<Content, ImportError> {
    let split = || {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let (sealed, tag) = rest.split_last_chunk::<TAG_LEN>()?;
        Some((nonce, sealed, tag))
    };
    let Some((nonce, sealed, tag)) = split() else {
        return Ok(Content::Problem(Problem::Short));
    };
    let Ok(key) = master.bytes().try_into() else {
        return Ok(Content::Problem(Problem::NotAuthentic));
    };
    if sealed.is_empty() {
        return Ok(match crypto::open(key, nonce, b"", &mut [], tag) {
            Ok(()) => Content::Empty,
            Err(_) => Content::Problem(Problem::NotAuthentic),
        });
    }
    if sealed.len() > MAX_VALUE_LEN {
        return Ok(Content::Problem(Problem::Value(ValueError::TooLong)));
    }
    let value = SecretValue::filled_by(sealed.len(), |buffer| {
        buffer.copy_from_slice(sealed);
        crypto::open(key, nonce, b"", buffer, tag).map_err(|_| io::ErrorKind::InvalidData.into())
    });
    match value {
        Err(ValueError::Read(_)) => Ok(Content::Problem(Problem::NotAuthentic)),
        other => Content::of_result(other),
    }
}
