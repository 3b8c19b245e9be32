//! bhatti: a table of an SQLite database whose values are age files, and the private key that opens them.

use std::path::Path;

use cachot_secrets::{MAX_VALUE_LEN, ValueError};
use rusqlite::Row;

use super::database::{Database, blob, is_null, text};
use super::error::Shown;
use super::found::{Content, Found, Owner};
use super::{ImportError, Problem};
use crate::bundle::{AgeError, BundleError, decrypt_age};
use crate::identities::Identities;

/// The columns of the table; those in which a secret and its times are.
const COLUMNS: [&str; 6] = [
    "user_id",
    "name",
    "path",
    "value_encrypted",
    "created_at",
    "updated_at",
];

/// Longest age file of a value: the value, a tag for each of its parts of 64 KiB, and a header.
const MAX_SEALED_LEN: usize = MAX_VALUE_LEN + (64 << 10);

/// Reads all secrets of the database, with the private key of age.
///
/// # Errors
/// See [`ImportError`].
pub fn read(database: &Path, key: &Path) -> Result<Vec<Found>, ImportError> {
    let identities = Identities::load(key).map_err(BundleError::from)?;
    let source = Database::read(database, "bhatti")?;
    let columns = source.columns()?;
    let same = columns.len() == COLUMNS.len()
        && COLUMNS
            .iter()
            .all(|known| columns.iter().any(|column| column == known));
    if !same {
        let columns = COLUMNS.join(", ");
        return Err(source.foreign(format!("its table `secrets` has not the columns {columns}")));
    }
    let query = "SELECT user_id, name, path, value_encrypted FROM secrets";
    let found = source.rows(query, |number, row| of_row(number, row, &identities))?;
    let fails = |found: &Found| {
        let content = &found.content;
        matches!(content, Content::Problem(Problem::Age(AgeError::WrongKey)))
    };
    match !found.is_empty() && found.iter().all(fails) {
        true => Err(ImportError::WrongKey {
            path: database.to_owned(),
            key: key.to_owned(),
        }),
        false => Ok(found),
    }
}

fn of_row(number: usize, row: &Row<'_>, identities: &Identities) -> Result<Found, ImportError> {
    let (user, name, path) = match (
        text(row, 0, "user_id"),
        text(row, 1, "name"),
        text(row, 2, "path"),
    ) {
        (Ok(user), Ok(name), Ok(path)) => (user, name, path),
        (Err(problem), ..) | (_, Err(problem), _) | (.., Err(problem)) => {
            let (from, content) = (format!("row {number}"), Content::Problem(problem));
            return Ok(Found::new(from, String::new(), Owner::Nobody, content));
        }
    };
    let in_file = !path.is_empty() && is_null(row, 3);
    let content = match blob(row, 3, "value_encrypted") {
        Ok(sealed) if sealed.len() > MAX_SEALED_LEN => {
            Content::Problem(Problem::Value(ValueError::TooLong))
        }
        Ok(sealed) => match decrypt_age(sealed, identities) {
            Ok(opened) => Content::of(&opened.plain)?,
            Err(error) => Content::Problem(Problem::Age(error)),
        },
        Err(_) if in_file => Content::Problem(Problem::InFile(Shown(path).to_string())),
        Err(problem) => Content::Problem(problem),
    };
    let owner = Owner::User(user.to_owned());
    let mut found = Found::new(format!("{user}/{name}"), name.to_owned(), owner, content);
    if !path.is_empty() {
        found.note = Some(format!("had the path {}", Shown(path)));
    }
    Ok(found)
}
