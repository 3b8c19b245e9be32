//! The store as a child would write it: everything in a map, every rule spelled out.

use std::collections::BTreeMap;
use std::path::Path;

use cachot_custody::keys::KeyChoice;
use cachot_custody::store::{MAX_VERSIONS, Scope, Selector};
use cachot_custody::{Requester, Store, StoreError};
use cachot_secrets::{Name, SecretValue};

/// Who uses the store: a user, and the VM they ask for.
const REQUESTERS: [(&str, Option<&str>); 4] = [
    ("alice", None),
    ("bob", None),
    ("alice", Some("web")),
    ("bob", Some("web")),
];

const SCOPES: [&str; 5] = [
    "workspace",
    "user:alice",
    "user:bob",
    "instance:web",
    "instance:db",
];

const NAMES: [&str; 2] = ["KEY", "TOKEN"];

/// What can be done, each with this share of all operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Set,
    Rotate,
    Rollback,
    Delete,
    RotateKey,
}

const KINDS: [Kind; 10] = [
    Kind::Set,
    Kind::Set,
    Kind::Set,
    Kind::Set,
    Kind::Rotate,
    Kind::Rotate,
    Kind::Rollback,
    Kind::Rollback,
    Kind::Delete,
    Kind::RotateKey,
];

/// An operation: what, by whom, on what, with which number.
#[derive(Debug, Clone)]
pub struct Operation {
    pub kind: Kind,
    by: usize,
    scope: usize,
    name: usize,
    /// A value, or a version.
    number: u64,
}

impl Operation {
    /// Every number gives one.
    pub fn new(random: [u8; 4], number: u64) -> Self {
        let pick = |random: u8, count: usize| usize::from(random) % count;
        let kind = KINDS[pick(random[0], KINDS.len())];
        Self {
            kind,
            by: pick(random[1], REQUESTERS.len()),
            scope: pick(random[2], SCOPES.len()),
            name: pick(random[3], NAMES.len()),
            number: match kind {
                Kind::Rollback => number % 12,
                _ => number,
            },
        }
    }

    fn value(&self) -> String {
        format!("the value {}", self.number)
    }
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A new version, or a number of deleted ones.
    Number(u64),
    Done,
    NoSecret,
    NoVersion,
    NotYours,
}

/// One secret: the newest version there ever was, and the values that are kept.
#[derive(Debug, Clone, Default)]
struct Secret {
    last: u64,
    values: BTreeMap<u64, String>,
}

/// All secrets, by owner (`*` is everybody), scope and name.
#[derive(Debug, Clone, Default)]
pub struct Model(BTreeMap<(String, String, String), Secret>);

impl Model {
    fn key(by: usize, scope: &str, name: &str) -> Option<(String, String, String)> {
        let (user, instance) = REQUESTERS[by];
        let owner = match scope.split_once(':') {
            None => "*",
            Some(("user", of)) if of != user => return None,
            Some(("instance", of)) if instance.is_some_and(|own| own != of) => return None,
            Some(_) => user,
        };
        Some((owner.to_owned(), scope.to_owned(), name.to_owned()))
    }

    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        if operation.kind == Kind::RotateKey {
            return Outcome::Done;
        }
        let (scope, name) = (SCOPES[operation.scope], NAMES[operation.name]);
        let Some(key) = Self::key(operation.by, scope, name) else {
            return Outcome::NotYours;
        };
        let there = self
            .0
            .get(&key)
            .is_some_and(|secret| !secret.values.is_empty());
        if !there && operation.kind != Kind::Set {
            return Outcome::NoSecret;
        }
        let secret = self.0.entry(key).or_default();
        let value = match operation.kind {
            Kind::Set | Kind::Rotate => operation.value(),
            Kind::Rollback => match secret.values.get(&operation.number) {
                Some(value) => value.clone(),
                None => return Outcome::NoVersion,
            },
            _ => {
                let count = secret.values.len() as u64;
                secret.values.clear();
                return Outcome::Number(count);
            }
        };
        secret.last += 1;
        secret.values.insert(secret.last, value);
        while secret.values.len() as u64 > MAX_VERSIONS {
            secret.values.pop_first();
        }
        Outcome::Number(secret.last)
    }

    fn newest(&self, by: usize, scope: &str, name: &str) -> Option<&String> {
        let secret = self.0.get(&Self::key(by, scope, name)?)?;
        secret.values.last_key_value().map(|(_, value)| value)
    }

    /// Why the stores, one a requester, do not have what this has; `None` if they do.
    pub fn difference(&self, stores: &mut [Store]) -> Option<String> {
        (0..REQUESTERS.len()).find_map(|by| self.difference_for(by, &mut stores[by]))
    }

    fn difference_for(&self, by: usize, store: &mut Store) -> Option<String> {
        let (user, instance) = REQUESTERS[by];
        let differs = |what: &str, real: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
            Some(format!(
                "{user}/{instance:?} {what}: {real:?} instead of {wanted:?}"
            ))
        };
        let mut listed: Vec<_> = store
            .list(true)
            .expect("listed")
            .into_iter()
            .map(|one| {
                (
                    one.scope.to_string(),
                    one.name.to_string(),
                    one.version,
                    one.versions,
                )
            })
            .collect();
        listed.sort();
        let mut wanted = Vec::new();
        for scope in SCOPES {
            for name in NAMES {
                let secret = Self::key(by, scope, name).and_then(|key| self.0.get(&key));
                if let Some(secret) = secret {
                    let kept = secret.values.len() as u64;
                    wanted.push((scope.to_owned(), name.to_owned(), secret.last, kept));
                    for (version, value) in &secret.values {
                        let real = get(store, &format!("{scope}/{name}@{version}"));
                        if real.as_ref() != Some(value) {
                            return differs(&format!("{scope}/{name}@{version}"), &real, value);
                        }
                    }
                }
                let real = get(store, &format!("{scope}/{name}"));
                if real.as_ref() != self.newest(by, scope, name) {
                    return differs(
                        &format!("{scope}/{name}"),
                        &real,
                        &self.newest(by, scope, name),
                    );
                }
            }
        }
        wanted.sort();
        if listed != wanted {
            return differs("list", &listed, &wanted);
        }
        for name in NAMES {
            let own = instance.map(|own| format!("instance:{own}"));
            let scopes = own
                .into_iter()
                .chain([format!("user:{user}"), "workspace".to_owned()]);
            let wanted = scopes
                .into_iter()
                .find_map(|scope| self.newest(by, &scope, name));
            let real = get(store, name);
            if real.as_ref() != wanted {
                return differs(name, &real, &wanted);
            }
        }
        None
    }
}

/// A store for each requester, over the same folder.
pub fn open(place: &Path) -> Vec<Store> {
    REQUESTERS
        .map(|(user, instance)| {
            let requester = Requester {
                user: user.parse().expect("a user"),
                instance: instance.map(str::to_owned),
            };
            Store::open_or_create(place, requester).expect("opened")
        })
        .into()
}

/// Does the operation for real.
pub fn apply(stores: &mut [Store], operation: &Operation) -> Outcome {
    let store = &mut stores[operation.by];
    let scope: Scope = SCOPES[operation.scope].parse().expect("a scope");
    let name: Name = NAMES[operation.name].parse().expect("a name");
    let value = SecretValue::copy_of(operation.value().as_bytes()).expect("a value");
    let done = match operation.kind {
        Kind::Set => store.set(&scope, &name, &value),
        Kind::Rotate => store.rotate(&scope, &name, &value),
        Kind::Rollback => store.rollback(&scope, &name, operation.number),
        Kind::Delete => store.delete(&scope, &name),
        Kind::RotateKey => {
            store.rotate_key(&KeyChoice::File {}).expect("rotated");
            return Outcome::Done;
        }
    };
    match done {
        Ok(number) => Outcome::Number(number),
        Err(StoreError::NoSecret { .. }) => Outcome::NoSecret,
        Err(StoreError::NoVersion { .. }) => Outcome::NoVersion,
        Err(StoreError::NotYours(_)) => Outcome::NotYours,
        Err(other) => panic!("{operation:?}: {other}"),
    }
}

fn get(store: &mut Store, selector: &str) -> Option<String> {
    let selector: Selector = selector.parse().expect("a selector");
    match store.get(&selector) {
        Ok(fetched) => Some(String::from_utf8(fetched.value.expose().to_vec()).expect("text")),
        Err(
            StoreError::NoSecret { .. } | StoreError::NoVersion { .. } | StoreError::NotYours(_),
        ) => None,
        Err(other) => panic!("{selector:?}: {other}"),
    }
}
