//! A folder of bundles for a test, filled from `fixtures`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cachot_custody::bundle::{BundleName, Bundles};
use tempfile::TempDir;

/// A folder with a key and bundles.
pub struct Folder {
    folder: TempDir,
}

/// What is in `fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/bundles/fixtures")
        .join(name)
}

/// The name of a bundle.
pub fn name(text: &str) -> BundleName {
    text.parse().expect("a name")
}

impl Folder {
    /// With this key file.
    pub fn with_key(key: &str) -> Self {
        let folder = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        folder.add(key, "age.key");
        folder
    }

    /// Copies a fixture to a file that only this user can read.
    pub fn add(&self, from: &str, to: &str) {
        self.put(to, &fs::read(fixture(from)).expect("a fixture"));
    }

    /// Writes a file that only this user can read.
    pub fn put(&self, to: &str, bytes: &[u8]) {
        let path = self.path(to);
        fs::write(&path, bytes).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The bundles in it.
    pub fn bundles(&self) -> Bundles {
        Bundles {
            folder: self.folder.path().to_owned(),
            key: self.path("age.key"),
            sops: None,
            allow_plaintext: false,
        }
    }
}
