//! `bundle:NAME#section.key`: a value in a bundle.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use cachot_secrets::{Fetched, ResolveError, Scheme, SecretValue};

use crate::bundle::{BundleError, BundleName, Bundles, Document, Field};

/// `bundle:NAME#section.key`.
///
/// A bundle is read once: all values of one command are of the same state of it. Make one for each command.
pub struct Bundle {
    bundles: Bundles,
    read: Mutex<BTreeMap<BundleName, Document>>,
}

impl Bundle {
    /// Of these bundles.
    #[must_use]
    pub fn new(bundles: Bundles) -> Self {
        Self {
            bundles,
            read: Mutex::default(),
        }
    }

    fn value(&self, locator: &str) -> Result<SecretValue, BundleError> {
        let (name, field) = locator.split_once('#').ok_or(BundleError::NoField)?;
        let name: BundleName = name.parse()?;
        let field: Field = field.parse()?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let document = match read.get(&name) {
            Some(document) => document,
            None => {
                let opened = self.bundles.open(&name)?;
                read.entry(name.clone()).or_insert(opened.document)
            }
        };
        let value = document.value(&field).ok_or_else(|| BundleError::NoValue {
            name: name.clone(),
            field: field.clone(),
        })?;
        SecretValue::copy_of(value.as_bytes()).map_err(|error| BundleError::Value {
            name,
            field,
            error,
        })
    }
}

impl Scheme for Bundle {
    fn name(&self) -> &'static str {
        "bundle"
    }

    fn is_plaintext(&self) -> bool {
        self.bundles.allow_plaintext
    }

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        self.value(locator)
            .map(Fetched::from)
            .map_err(|error| ResolveError::Scheme(Box::new(error)))
    }
}
