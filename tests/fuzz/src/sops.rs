//! Files of sops: whatever is in one, it is refused or a bundle.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cachot_custody::bundle::Bundles;
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
    let opened = bundles.open(&"b".parse().expect("a name"));
    opened.is_ok_and(|opened| !opened.document.fields().is_empty())
}
