//! `store:[SCOPE/]NAME[@VERSION]`: a value of the store.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cachot_secrets::{Fetched, Refusal, ResolveError, Scheme};

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
    /// Name of the scheme.
    pub const NAME: &str = "store";

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

impl From<StoreError> for ResolveError {
    fn from(error: StoreError) -> Self {
        match error.refusal() {
            Refusal::Denied => Self::Denied(Box::new(error)),
            Refusal::Failed(_) => Self::Scheme(Box::new(error)),
        }
    }
}

impl Scheme for StoreScheme {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn is_plaintext(&self) -> bool {
        false
    }

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        let selector: Selector = locator
            .parse()
            .map_err(|error| ResolveError::Scheme(Box::new(error)))?;
        // A store whose user has panicked was left between two transactions.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let store = match &mut *store {
            Some(store) => store,
            empty => {
                let place = self.place.as_ref().ok_or(StoreError::NoPlace)?;
                empty.insert(Store::open(place, self.requester.clone())?)
            }
        };
        let stored = store.get(&selector)?;
        Ok(Fetched {
            origin: stored.origin(),
            value: stored.value,
        })
    }
}

#[cfg(test)]
mod tests {
    use cachot_secrets::SecretValue;

    use super::*;
    use crate::store::Scope;

    fn requester(instance: Option<&str>) -> Requester {
        Requester {
            user: "alice".parse().expect("a user"),
            instance: instance.map(str::to_owned),
        }
    }

    #[test]
    fn test_store_scheme_makes_no_store_and_finds_one_that_was_made_since() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("secrets");
        let scheme = StoreScheme::new(Some(place.clone()), requester(None));
        let absent = scheme.resolve("KEY").expect_err("absent").to_string();
        assert!(absent.contains("there is no store"), "{absent}");
        assert!(!place.exists());

        let mut store = Store::open_or_create(&place, requester(None)).expect("made");
        for (scope, text) in [
            ("workspace", "old"),
            ("workspace", "all"),
            ("instance:web", "web's"),
        ] {
            let scope: Scope = scope.parse().expect("a scope");
            let value = SecretValue::copy_of(text.as_bytes()).expect("a value");
            store
                .set(&scope, &"KEY".parse().expect("a name"), &value)
                .expect("stored");
        }

        let get = |scheme: &StoreScheme, locator: &str| {
            let fetched = scheme.resolve(locator).expect("a value");
            let text = String::from_utf8(fetched.value.expose().to_vec()).expect("text");
            let scope = fetched.origin.scope.expect("a scope");
            (text, scope, fetched.origin.version.expect("a version"))
        };
        let expected = |text: &str, scope: &str, version| (text.into(), scope.into(), version);
        assert_eq!(get(&scheme, "KEY"), expected("all", "workspace", 2));
        let web = StoreScheme::new(Some(place), requester(Some("web")));
        assert_eq!(get(&web, "KEY"), expected("web's", "instance:web", 1));
        let old = get(&web, "workspace/KEY@1");
        assert_eq!(old, expected("old", "workspace", 1));
        let denied = scheme.resolve("user:bob/KEY").expect_err("another's");
        assert_eq!(denied.refusal(), Refusal::Denied);
    }

    #[test]
    fn test_store_scheme_says_what_is_wrong_with_a_reference() {
        let nowhere = StoreScheme::new(None, requester(None));
        for (locator, expected) in [
            ("KEY", "set CACHOT_STATE"),
            ("KEY@0", "a version is a number from 1 on"),
            ("team:x/KEY", "a scope is `workspace`"),
            ("workspace/1KEY", "byte 1 of the secret's name"),
        ] {
            let error = nowhere.resolve(locator).expect_err("refused").to_string();
            assert!(error.contains(expected), "{locator}: {error}");
        }
    }
}
