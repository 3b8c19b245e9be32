//! Databases of aegis and bhatti: what is not refused has values of the lengths that were encrypted and places of their own, and
//! what is refused is told without a value.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cachot_custody::import::{self, Plan, Rules};
use cachot_custody::store::Scope;
use cachot_custody::{Requester, UserId};
use tempfile::TempDir;

/// What every value of the corpus has in it.
const MARK: &str = "7c1d0";

/// Lengths of the values of the corpus: one that is not there was not authenticated.
const LENGTHS: [usize; 3] = [14, 15, 29];

/// A copy of a key of the tests that only this user reads.
fn key(name: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let fixtures = "../../secrets/custody/tests/imports/fixtures";
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixtures);
        for name in ["master.key", "age.key"] {
            let to = folder.path().join(name);
            fs::copy(fixtures.join(name), &to).expect("a key of the tests");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("its mode");
        }
        folder
    });
    folder.path().join(name)
}

/// One database.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("some.db");
    fs::write(&path, input).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    let rules = Rules {
        requester: Requester {
            user: UserId::of_this_process(),
            instance: None,
        },
        scope: Scope::Workspace,
        owners: Vec::new(),
        renames: Vec::new(),
        skip: Vec::new(),
        skip_empty: true,
    };
    let aegis = import::aegis(&path, &key("master.key"));
    let found = aegis.or_else(|_| import::bhatti(&path, &key("age.key")));
    assert!(fs::read(&path).expect("read") == input, "it was changed");
    let plan = match found.and_then(|found| Plan::new(found, &rules)) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().contains(MARK), "{error}");
            return false;
        }
    };
    let mut places = BTreeSet::new();
    for planned in &plan.planned {
        assert!(LENGTHS.contains(&planned.bytes()), "{planned:?}");
        assert!(places.insert((&planned.scope, &planned.name)));
    }
    !plan.planned.is_empty()
}
