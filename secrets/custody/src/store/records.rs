//! What the store is given, and what it tells.

use std::path::PathBuf;

use cachot_secrets::{Name, Origin, SecretValue};
use serde::Serialize;

use super::Scope;
use crate::keys::KeyChoice;
use crate::requester::Requester;

/// A value of the store.
#[derive(Debug)]
pub struct Stored {
    /// Where it was found.
    pub scope: Scope,
    /// Its version.
    pub version: u64,
    /// The value.
    pub value: SecretValue,
}

impl Stored {
    /// Its scope and version.
    #[must_use]
    pub fn origin(&self) -> Origin {
        Origin {
            scope: Some(self.scope.to_string()),
            version: Some(self.version),
        }
    }
}

/// A value that comes from elsewhere, and on whose behalf it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Whose it is.
    pub requester: &'a Requester,
    /// Whom it is for.
    pub scope: &'a Scope,
    /// Its name.
    pub name: &'a Name,
    /// The value.
    pub value: &'a SecretValue,
}

/// What is told of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Whom it is for.
    pub scope: Scope,
    /// Its name.
    pub name: Name,
    /// Its newest version.
    pub version: u64,
    /// How many versions are kept; 0 if it was deleted.
    pub versions: u64,
    /// When it was last changed, in seconds since 1970.
    pub updated: u64,
}

/// What is told of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// Its number.
    pub version: u64,
    /// When it was stored, in seconds since 1970.
    pub created: u64,
    /// Whether it is the one that is used.
    pub current: bool,
}

/// What is told of a store's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// What wraps it.
    #[serde(flatten)]
    pub choice: KeyChoice,
    /// The key file, if that is what wraps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// When it was wrapped, in seconds since 1970.
    pub created: u64,
    /// Whether a rotation was begun and could not be finished yet: the older source opens the store as well.
    pub unfinished: bool,
}
