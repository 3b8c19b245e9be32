//! Audit logs: one that is found to be good can be read to its end and gone on with, and is good then.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cachot_custody::audit::{AuditError, Log, Read, Reader, Signer, Trust, Verifier, verify};

/// Everybody's signature is good: what is searched for is not a forged one.
struct Anybody;

impl Signer for Anybody {
    fn key(&self) -> [u8; 32] {
        [1; 32]
    }

    fn sign(&self, _message: &[u8]) -> [u8; 64] {
        [2; 64]
    }
}

impl Verifier for Anybody {
    fn check(&self, _key: &[u8; 32], _message: &[u8], _signature: &[u8; 64]) -> Trust {
        Trust::Good
    }
}

/// The file of one log, whose head is its last whole line.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    put(&folder.join("log.jsonl"), input);
    let whole = input
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(&[][..], |end| &input[..=end]);
    let last = whole.split_inclusive(|byte| *byte == b'\n').next_back();
    put(&folder.join("log.head"), last.unwrap_or_default());

    let before = verify(folder, &Anybody, None).expect("it can be read");
    let records = read(folder);
    let added = Log::new(folder, before.vm.as_deref(), &Anybody).append(&[]);

    if !before.is_good() {
        return false;
    }
    assert_eq!(records, Some(before.records));
    match added {
        Ok(_) => {}
        // It is good for whoever trusts that key, and another host's all the same.
        Err(AuditError::OtherKey { .. }) => return true,
        Err(error) => panic!("a good log cannot be gone on with: {error}"),
    }
    let after = verify(folder, &Anybody, None).expect("it can be read");
    assert!(after.is_good(), "{after:?}");
    assert_eq!(after.records, before.records);
    true
}

fn put(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
}

/// How many records there are; `None` if some line cannot be read.
fn read(folder: &Path) -> Option<u64> {
    let mut reader = Reader::open(folder).expect("it can be opened");
    let (mut records, mut all) = (0, true);
    while let Some(read) = reader.read().expect("it can be read") {
        match read {
            Read::Record { .. } => records += 1,
            Read::Unreadable { .. } => all = false,
        }
    }
    all.then_some(records)
}
