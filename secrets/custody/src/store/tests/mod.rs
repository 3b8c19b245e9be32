//! Tests of the store through its public face, and through the database behind its back.

use std::fs;
use std::path::{Path, PathBuf};

use cachot_secrets::{Name, SecretValue};

use super::*;
use crate::requester::Requester;

mod basics;
mod keys;
mod tampering;

/// Who asks.
fn requester(user: &str, instance: Option<&str>) -> Requester {
    Requester {
        user: user.parse().expect("a user"),
        instance: instance.map(str::to_owned),
    }
}

/// A folder for a store.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("secrets")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The store, for the user `alice`.
    fn store(&self) -> Store {
        self.store_of("alice", None)
    }

    fn store_of(&self, user: &str, instance: Option<&str>) -> Store {
        Store::open_or_create(&self.path(), requester(user, instance)).expect("opened")
    }

    fn open(&self) -> Result<Store, StoreError> {
        Store::open(&self.path(), requester("alice", None))
    }

    /// The database without what cachot sets: as an attacker has it.
    fn sql(&self) -> Connection {
        Connection::open(self.file(DATABASE)).expect("opened")
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn scope(text: &str) -> Scope {
    text.parse().expect("a scope")
}

fn value(text: &str) -> SecretValue {
    SecretValue::copy_of(text.as_bytes()).expect("a value")
}

fn set(store: &mut Store, to: &str, text: &str) -> u64 {
    let (in_scope, of) = to.split_once('/').unwrap_or(("workspace", to));
    let set = store.set(&scope(in_scope), &name(of), &value(text));
    set.expect("stored")
}

fn get(store: &mut Store, selector: &str) -> Result<String, StoreError> {
    let fetched = store.get(&selector.parse().expect("a selector"))?;
    Ok(String::from_utf8(fetched.value.expose().to_vec()).expect("text"))
}
