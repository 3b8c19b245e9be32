//! `store:[SCOPE/]NAME[@VERSION]`: a value of the store.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cachot_secrets::{ResolveError, Scheme, SecretValue};

use crate::requester::Requester;
use crate::store::{Selector, Store, StoreError};

/// `store:[SCOPE/]NAME[@VERSION]`: of the scope that is named, or of the narrowest that has the name; the newest
/// version, if none is named.
pub struct StoreScheme {
    /// `None` if there is no place for any.
    place: Option<PathBuf>,
    requester: Requester,
    /// Opened by the first reference: a VM without one needs no store.
    store: Mutex<Option<Store>>,
}

impl StoreScheme {
    /// For the store in the folder `place`, which need not be there yet; `None` if nothing says where it would be.
    #[must_use]
    pub fn new(place: Option<PathBuf>, requester: Requester) -> Self {
        Self {
            place,
            requester,
            store: Mutex::new(None),
        }
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> ResolveError {
    ResolveError::Scheme(Box::new(error))
}

impl Scheme for StoreScheme {
    fn name(&self) -> &'static str {
        "store"
    }

    fn is_plaintext(&self) -> bool {
        false
    }

    fn resolve(&self, locator: &str) -> Result<SecretValue, ResolveError> {
        let selector: Selector = locator.parse().map_err(failed)?;
        // A store whose user has panicked was left between two transactions.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let store = match &mut *store {
            Some(store) => store,
            empty => {
                let place = self
                    .place
                    .as_ref()
                    .ok_or(StoreError::NoPlace)
                    .map_err(failed)?;
                empty.insert(Store::open(place, self.requester.clone()).map_err(failed)?)
            }
        };
        store
            .get(&selector)
            .map(|fetched| fetched.value)
            .map_err(failed)
    }
}
