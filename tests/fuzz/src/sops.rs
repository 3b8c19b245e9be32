//! Files of sops: what is not refused has the secrets that were encrypted, all of them and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cachot_custody::bundle::{Bundles, Document};
use tempfile::TempDir;

/// The key that the corpus is encrypted to.
fn key() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let fixtures = "../../secrets/custody/tests/bundles/fixtures/mine.key";
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixtures);
        let to = folder.path().join("key");
        fs::copy(from, &to).expect("the key of the tests");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("its mode");
        folder
    });
    folder.path().join("key")
}

/// What every file of the corpus was made of.
fn original() -> &'static Document {
    static DOCUMENT: OnceLock<Document> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let text = include_bytes!("../../../secrets/custody/tests/bundles/fixtures/default.yaml");
        Document::parse(text).expect("a bundle")
    })
}

/// One file.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("b.sops.yaml");
    fs::write(&path, input).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    let bundles = Bundles {
        folder: folder.path().to_owned(),
        key: key(),
        sops: None,
        allow_plaintext: false,
    };
    let Ok(opened) = bundles.open(&"b".parse().expect("a name")) else {
        return false;
    };
    let found = opened.document;
    let expected = original();
    let added = found.fields();
    for field in expected.fields().iter().chain(&added) {
        // The rules of the corpus have every secret encrypted. Nobody needs a key to add what has no value.
        if field.is_secret() {
            let value = found.value(field).filter(|value| !value.is_empty());
            assert!(value == expected.value(field), "{field} is another one");
        }
    }
    true
}
