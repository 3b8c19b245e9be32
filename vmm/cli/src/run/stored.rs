//! What `run --secret '*'` delivers: every secret of the store that is not declared otherwise.

use std::collections::BTreeSet;

use cachot_custody::{Requester, Store};

use crate::custody::store_folder;
use crate::vm::error::RunError;

/// Stands for the names of all secrets of the store.
const ALL: &str = "*";

/// The declarations with a reference to each secret of the store, with the same options, where `*` stands.
///
/// # Errors
/// [`RunError::Store`], and [`RunError::State`] if there is no place for one.
pub fn expand(declared: &[String], requester: &Requester) -> Result<Vec<String>, RunError> {
    let options_of_all = |text: &String| {
        let options = text.strip_prefix(ALL)?;
        (options.is_empty() || options.starts_with(',')).then(|| options.to_owned())
    };
    if !declared.iter().any(|text| options_of_all(text).is_some()) {
        return Ok(declared.to_vec());
    }
    let stored = Store::open(&store_folder()?, requester.clone())?.names()?;
    let named: BTreeSet<&str> = declared
        .iter()
        .filter_map(|text| Some(text.split_once('=')?.0))
        .collect();
    let mut expanded = Vec::new();
    for text in declared {
        match options_of_all(text) {
            None => expanded.push(text.clone()),
            Some(options) => {
                let others = stored.iter().filter(|name| !named.contains(name.as_str()));
                expanded.extend(others.map(|name| format!("{name}=store:{name}{options}")));
            }
        }
    }
    Ok(expanded)
}
