//! Whom a stored secret is for, and how references to stored secrets are written.

use std::fmt;
use std::str::FromStr;

use cachot_secrets::{Name, NameError};
use serde::{Serialize, Serializer};

use crate::requester::{Requester, UserId, UserIdError};

/// Longest name of a VM, in bytes: that of a label of a host name.
const MAX_INSTANCE_LEN: usize = 63;

/// Whom a secret is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every VM of every user of the store.
    Workspace,
    /// The VMs of one user.
    User(UserId),
    /// The VMs of this name of the user who asks: each user has instances of their own.
    Instance(Instance),
}

/// The name of a VM: 1 to 63 letters, digits and any of `-_.`, a letter or digit first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(String);

/// Why a text is not a [`Scope`]. The text is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Neither of the three.
    #[error("a scope is `workspace`, `user:ID` or `instance:NAME`")]
    Form,
    /// Not the name of a user.
    #[error(transparent)]
    User(#[from] UserIdError),
    /// Not the name of a VM.
    #[error(
        "the name of an instance has 1 to {MAX_INSTANCE_LEN} letters, digits, hyphens, underscores and dots, and begins \
         with a letter or digit"
    )]
    Instance,
}

impl FromStr for Instance {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let good = (1..=MAX_INSTANCE_LEN).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.bytes().all(allowed);
        match good {
            true => Ok(Self(text.to_owned())),
            false => Err(ScopeError::Instance),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        match text.split_once(':') {
            None if text == "workspace" => Ok(Self::Workspace),
            Some(("user", user)) => Ok(Self::User(user.parse()?)),
            Some(("instance", name)) => Ok(Self::Instance(name.parse()?)),
            _ => Err(ScopeError::Form),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workspace => f.write_str("workspace"),
            Self::User(user) => write!(f, "user:{user}"),
            Self::Instance(Instance(name)) => write!(f, "instance:{name}"),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Scope {
    /// Whether `requester` may use what is in it: a user all of their own, a VM no other VM's.
    pub(super) fn is_open_to(&self, requester: &Requester) -> bool {
        match self {
            Self::Workspace => true,
            Self::User(user) => *user == requester.user,
            Self::Instance(Instance(name)) => match &requester.instance {
                Some(own) => own == name,
                None => true,
            },
        }
    }

    /// As it is in the database: `workspace`, `user:ID`, or `instance:USER/NAME`.
    pub(super) fn stored(&self, requester: &Requester) -> String {
        match self {
            Self::Instance(Instance(name)) => format!("instance:{}/{name}", requester.user),
            other => other.to_string(),
        }
    }

    /// What `stored` is for `requester`: `None` if it belongs to somebody else.
    pub(super) fn visible(stored: &str, requester: &Requester) -> Option<Self> {
        let scope = match stored.strip_prefix("instance:") {
            Some(rest) => {
                let (user, name) = rest.split_once('/')?;
                if user != requester.user.as_str() {
                    return None;
                }
                Self::Instance(name.parse().ok()?)
            }
            None => stored.parse().ok()?,
        };
        scope.is_open_to(requester).then_some(scope)
    }

    /// Those that are searched for a name, the narrowest first.
    pub(super) fn of(requester: &Requester) -> impl Iterator<Item = Self> {
        // A VM's name that is none of an instance's has no secrets of its own.
        let instance = requester.instance.as_ref();
        let instance = instance.and_then(|name| name.parse().ok().map(Self::Instance));
        let others = [Self::User(requester.user.clone()), Self::Workspace];
        instance.into_iter().chain(others)
    }
}

/// Which stored secret is meant: `[SCOPE/]NAME[@VERSION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Where it is; the narrowest scope that has it otherwise.
    pub scope: Option<Scope>,
    /// Its name.
    pub name: Name,
    /// Which version; the newest otherwise.
    pub version: Option<u64>,
}

/// Why a text is not a [`Selector`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// What is in front of the slash is not a scope.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// It does not name a secret.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What follows the `@` is not a version.
    #[error("a version is a number from 1 on: write store:NAME@VERSION")]
    Version,
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (scope, rest) = match text.split_once('/') {
            Some((scope, rest)) => (Some(scope.parse()?), rest),
            None => (None, text),
        };
        let (name, version) = match rest.split_once('@') {
            Some((name, version)) => (name, Some(parse_version(version)?)),
            None => (rest, None),
        };
        Ok(Self {
            scope,
            name: name.parse()?,
            version,
        })
    }
}

/// A version as it is printed: no sign, no leading zero, and within what the database holds.
fn parse_version(text: &str) -> Result<u64, SelectorError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let version = text
        .parse()
        .ok()
        .filter(|version| i64::try_from(*version).is_ok());
    version.filter(|_| plain).ok_or(SelectorError::Version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(user: &str, instance: Option<&str>) -> Requester {
        Requester {
            user: user.parse().expect("a user"),
            instance: instance.map(str::to_owned),
        }
    }

    #[test]
    fn test_scope_round_trip() {
        for text in ["workspace", "user:1000", "user:a@b.c", "instance:web-1.x"] {
            assert_eq!(text.parse::<Scope>().expect("a scope").to_string(), text);
        }
        for text in [
            "",
            "workspace:",
            "user",
            "user:",
            "user:a/b",
            "instance:",
            "instance:.a",
            "x:y",
        ] {
            assert!(text.parse::<Scope>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn test_scope_is_seen_by_its_owner_only() {
        let alice = requester("alice", None);
        let scopes: Vec<Scope> = ["workspace", "user:alice", "instance:web"]
            .map(|text| text.parse().expect("a scope"))
            .into();
        for scope in &scopes {
            let stored = scope.stored(&alice);
            assert_eq!(Scope::visible(&stored, &alice).as_ref(), Some(scope));
            let shared = *scope == Scope::Workspace;
            for other in [requester("bob", None), requester("bob", Some("web"))] {
                assert_eq!(
                    Scope::visible(&stored, &other).is_some(),
                    shared,
                    "{stored}"
                );
            }
        }
        let stored = scopes[2].stored(&alice);
        let visible = |instance| Scope::visible(&stored, &requester("alice", Some(instance)));
        assert!(visible("web").is_some());
        assert!(visible("web2").is_none());
        // A VM without a name of its own is no user, to whom all are open.
        assert!(visible("").is_none());
    }

    #[test]
    fn test_selector_forms() {
        let whole: Selector = "instance:web/KEY@12".parse().expect("a selector");
        assert_eq!(
            whole.scope.map(|scope| scope.to_string()).as_deref(),
            Some("instance:web")
        );
        assert_eq!((whole.name.as_str(), whole.version), ("KEY", Some(12)));
        let short: Selector = "KEY".parse().expect("a selector");
        assert_eq!((short.scope, short.version), (None, None));
        let of_user: Selector = "user:a@b/KEY".parse().expect("a selector");
        assert_eq!(of_user.name.as_str(), "KEY");
        for bad in [
            "",
            "/KEY",
            "KEY@",
            "KEY@0",
            "KEY@01",
            "KEY@+1",
            "KEY@-1",
            "KEY@1@2",
            "a/b/KEY",
            "workspace/",
            "KEY@9223372036854775808",
        ] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
    }
}
