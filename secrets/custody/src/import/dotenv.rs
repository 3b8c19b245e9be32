//! A dotenv file, all its keys.

use std::collections::HashMap;
use std::path::Path;

use cachot_secrets::Dotenv;

use super::found::{Content, Found, Owner};
use super::{ImportError, MAX_FOUND};

/// Reads all keys of the file. Of a key that is there more than once the last counts, as it does elsewhere.
///
/// # Errors
/// See [`ImportError`].
pub fn read(path: &Path) -> Result<Vec<Found>, ImportError> {
    let mut found: Vec<Found> = Vec::new();
    let mut last: HashMap<String, usize> = HashMap::new();
    Dotenv::for_each_entry(path, |line, key, value| {
        if found.len() == MAX_FOUND {
            return Err(ImportError::TooMany);
        }
        let key = String::from_utf8_lossy(key).into_owned();
        if let Some(earlier) = last.insert(key.clone(), found.len()) {
            let earlier: &mut Found = &mut found[earlier];
            earlier.content = Content::LeftOut(format!("line {line} has the same key, and counts"));
        }
        let mut new = Found::new(key.clone(), key.clone(), Owner::Nobody, Content::of(value)?);
        // What is no name may be a part of a value that was broken into lines.
        if key.parse::<cachot_secrets::Name>().is_err() {
            new.shown = format!("line {line}");
        }
        found.push(new);
        Ok(())
    })?;
    Ok(found)
}
