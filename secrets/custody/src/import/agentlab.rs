//! agentlab: bundles, whose parts become the secrets that `run --secrets-bundle` makes of them.

use super::ImportError;
use super::found::{Content, Found, Owner};
use crate::bundle::{BundleName, Bundles};

/// Reads all secrets of these bundles.
///
/// # Errors
/// See [`ImportError`].
pub fn read(bundles: &Bundles, names: &[BundleName]) -> Result<Vec<Found>, ImportError> {
    let mut found = Vec::new();
    for bundle in names {
        let document = bundles.open(bundle)?.document;
        for field in document.fields() {
            let value = document.value(&field).unwrap_or_default();
            let (name, content) = match field.secret_name() {
                Some(name) => (name, Content::of(value.as_bytes())?),
                None => {
                    let why = "it is no secret: see --env".to_owned();
                    (String::new(), Content::LeftOut(why))
                }
            };
            found.push(Found::new(
                format!("{bundle}#{field}"),
                name,
                Owner::Nobody,
                content,
            ));
        }
        let (unknown, hidden) = document.unknown_keys();
        let left = |what: String| {
            let content = Content::LeftOut("nothing is known by this name".to_owned());
            Found::new(
                format!("{bundle}#{what}"),
                String::new(),
                Owner::Nobody,
                content,
            )
        };
        found.extend(unknown.into_iter().map(left));
        if hidden > 0 {
            found.push(left(format!("({hidden} more)")));
        }
        if found.len() > super::MAX_FOUND {
            return Err(ImportError::TooMany);
        }
    }
    Ok(found)
}
