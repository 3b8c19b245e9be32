//! Logs as writers make them, and as those find them who have changed them.

mod life;
mod processes;
mod tamper;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use super::*;

/// A key of tests; it trusts itself only.
pub(super) struct Key(SigningKey);

impl Key {
    pub fn new(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }
}

impl Signer for Key {
    fn key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl Verifier for Key {
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Trust {
        if *key != self.key() {
            return Trust::UntrustedKey;
        }
        let key = VerifyingKey::from_bytes(key).expect("a key");
        match key.verify_strict(message, &Signature::from_bytes(signature)) {
            Ok(()) => Trust::Good,
            Err(_) => Trust::WrongSignature,
        }
    }
}

pub(super) fn record(name: &str) -> Entry {
    Entry::Record(Record {
        vm: Some("web".into()),
        user: "1000".into(),
        name: Some(name.parse().expect("a name")),
        scope: None,
        version: Some(1),
        source: Some("env".into()),
        access: Access::Materialize,
        decision: Decision::Allow,
        reason: None,
        lineage: vec![],
    })
}

/// A folder for a log, and the key that it is signed with.
pub(super) struct Place {
    above: tempfile::TempDir,
    pub key: Key,
}

impl Place {
    pub fn new() -> Self {
        Self {
            above: tempfile::tempdir().expect("a folder"),
            key: Key::new(1),
        }
    }

    pub fn folder(&self) -> PathBuf {
        self.above.path().join("audit")
    }

    pub fn log(&self) -> Log<'_> {
        Log::new(&self.folder(), None, &self.key)
    }

    /// Appends a batch of records of these names, and closes the log.
    pub fn write(&self, names: &[&str]) -> Head {
        write(&self.log(), names)
    }

    pub fn verify(&self) -> Report {
        verify(&self.folder(), &self.key, None).expect("a log")
    }

    pub fn names(&self) -> Vec<String> {
        let mut reader = Reader::open(&self.folder()).expect("a log");
        names(&mut reader)
    }

    pub fn current(&self) -> PathBuf {
        self.folder().join(layout::CURRENT)
    }

    pub fn head(&self) -> PathBuf {
        self.folder().join(layout::HEAD)
    }
}

pub(super) fn write(log: &Log<'_>, names: &[&str]) -> Head {
    let entries: Vec<_> = names.iter().copied().map(record).collect();
    let head = log.append(&entries).expect("recorded");
    log.close(&head).expect("closed");
    head
}

/// The names of the records that a reader has for now.
pub(super) fn names(reader: &mut Reader) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(read) = reader.read().expect("read") {
        match read {
            Read::Record { record, .. } => names.push(record.name.expect("named").to_string()),
            Read::Unreadable { path, line } => names.push(format!("{path:?}:{line}")),
        }
    }
    names
}

pub(super) fn flaws(report: &Report) -> Vec<Flaw> {
    report.wrong.iter().map(|one| one.flaw.clone()).collect()
}
