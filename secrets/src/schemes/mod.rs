//! What fetches values: one scheme for each kind of place that a reference can name.

pub(crate) mod dotenv;
mod env;
mod file;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use dotenv::{Dotenv, MAX_DOTENV_LEN, MAX_LINE_LEN};
pub use env::Env;
pub use file::File;
use serde::Serialize;

use crate::fetch::{Fetch, fetch_all};
use crate::locked::LockError;
use crate::reference::Reference;
use crate::value::{MAX_VALUE_LEN, SecretValue, ValueError};

/// How long a scheme may take for one value: 30 seconds, as long as people wait for a program before they
/// think that it hangs.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Fetches the values of references that begin with one scheme's name.
///
/// What a scheme needs beyond the locator (a store, an address, credentials, whose secrets may be
/// read) it is constructed with.
pub trait Scheme: Send + Sync {
    /// The name in front of the colon.
    fn name(&self) -> &'static str;

    /// Whether the value lies unencrypted at its place, which every use of it warns of.
    fn is_plaintext(&self) -> bool;

    /// Fetches the value that `locator`, the part after the colon, stands for.
    ///
    /// # Errors
    /// See [`ResolveError`]. There is no way to answer with nothing.
    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError>;

    /// How long [`Scheme::resolve`] may take before it is given up. `None` is for one that never waits: it is
    /// called on the thread that asks, all others on threads of their own.
    fn time_limit(&self) -> Option<Duration> {
        Some(TIME_LIMIT)
    }

    /// The variable of this process's environment that holds the value, or what gives access to it, for
    /// [`scrub_environment`](crate::scrub_environment).
    fn variable<'a>(&'a self, _locator: &'a str) -> Option<&'a str> {
        None
    }
}

/// A value and where in its place it was.
#[derive(Debug)]
pub struct Fetched {
    /// The value.
    pub value: SecretValue,
    /// Which of the place's values it is.
    pub origin: Origin,
}

impl From<SecretValue> for Fetched {
    /// Of a place that has one value for a reference, and does not count them.
    fn from(value: SecretValue) -> Self {
        Self {
            value,
            origin: Origin::default(),
        }
    }
}

/// Which of the values that a place keeps for a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Scope, where the place has scopes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Version, from 1, where the place counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// Why no value is given, in a few fixed words for records that stay: nothing in them was typed by a user, as a value
/// may have been that was taken for a variable's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not open to who asks.
    Denied,
    /// There is none.
    Failed(&'static str),
}

/// Why a reference has no value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No such scheme.
    #[error("there is no secret scheme {scheme:?}: use one of {known}")]
    UnknownScheme {
        /// The name in the reference.
        scheme: String,
        /// The names that there are, with commas.
        known: String,
    },
    /// `env:` the variable is not set.
    #[error("the environment variable {0:?} is not set: set and export it for this command")]
    NoVariable(String),
    /// There is nothing at the path.
    #[error(
        "there is no file {0:?}: check the path (a relative one begins in the working directory)"
    )]
    NoFile(PathBuf),
    /// The user may not read the path.
    #[error("no permission to read {0:?}: grant it to the user that runs this command")]
    Permission(PathBuf),
    /// The path is a directory.
    #[error("{0:?} is a directory: name a file in it")]
    Directory(PathBuf),
    /// The path is a device, a terminal or a socket.
    #[error("{0:?} is neither a regular file nor a pipe: name one that is")]
    NotAFile(PathBuf),
    /// The path is there, but opening or reading it fails.
    #[error("cannot read {path:?}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `dotenv:` the locator has no `#KEY`.
    #[error("the reference does not say which key of the file is meant: write dotenv:PATH#KEY")]
    NoKeyNamed,
    /// `dotenv:` the file has no such key.
    #[error("{path:?} has no key {key:?}: add the line {key}=... or name another key")]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The key that was looked for.
        key: String,
    },
    /// A line of a dotenv file is neither blank, nor a comment, nor `KEY=value`.
    #[error(
        "line {line} of {path:?} is not KEY=value: correct it (a value of several lines needs a file of its own and file:PATH)"
    )]
    NotKeyValue {
        /// The file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: usize,
    },
    /// A line of a dotenv file has nothing in front of its `=`.
    #[error("line {line} of {path:?} has no key in front of its equals sign: correct it")]
    EmptyKey {
        /// The file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: usize,
    },
    /// A line of a dotenv file is over [`MAX_LINE_LEN`].
    #[error(
        "line {line} of {path:?} is over the limit of {MAX_LINE_LEN} bytes: put the value into a file of its own and use file:PATH"
    )]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: usize,
    },
    /// A dotenv file is over [`MAX_DOTENV_LEN`].
    #[error("{path:?} is over the limit of {MAX_DOTENV_LEN} bytes for a dotenv file: split it")]
    DotenvTooLong {
        /// The file.
        path: PathBuf,
    },
    /// The place is there and holds no bytes.
    #[error(
        "{place} is empty: an empty secret is never delivered; give it a value or drop the declaration"
    )]
    Empty {
        /// The reference, without its value.
        place: String,
    },
    /// The value is over [`MAX_VALUE_LEN`].
    #[error("{place} is over the limit of {MAX_VALUE_LEN} bytes for a secret")]
    TooLong {
        /// The reference, without its value.
        place: String,
    },
    /// There was no answer in time.
    #[error(
        "{scheme}: did not answer within {} s: see why it hangs, or take the value from another place",
        .limit.as_secs()
    )]
    TimedOut {
        /// Name of the scheme.
        scheme: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The scheme's code panicked, which is a mistake in it.
    #[error("{0}: failed where it must not: please report it with what was printed before this")]
    Panicked(&'static str),
    /// There is no thread to fetch the value.
    #[error("cannot start a thread to fetch the value")]
    Thread(#[source] io::Error),
    /// There is no locked memory for the value.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What a scheme of another crate says to somebody who may not have the value, be there one or not.
    #[error(transparent)]
    Denied(Box<dyn std::error::Error + Send + Sync>),
    /// What a scheme of another crate says.
    #[error(transparent)]
    Scheme(Box<dyn std::error::Error + Send + Sync>),
}

impl ResolveError {
    /// What is wrong in a few fixed words.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::Failed(match self {
            Self::Denied(_) => return Refusal::Denied,
            Self::UnknownScheme { .. } => "unknown scheme",
            Self::NoVariable(_) => "no such variable",
            Self::NoFile(_) => "no such file",
            Self::Permission(_) => "no permission",
            Self::Directory(_) | Self::NotAFile(_) => "not a file",
            Self::Unreadable { .. } => "cannot be read",
            Self::NoKeyNamed => "no key named",
            Self::NoKey { .. } => "no such key",
            Self::NotKeyValue { .. }
            | Self::EmptyKey { .. }
            | Self::LineTooLong { .. }
            | Self::DotenvTooLong { .. } => "malformed file",
            Self::Empty { .. } => "empty",
            Self::TooLong { .. } => "too long",
            Self::Lock(_) => "no locked memory",
            Self::TimedOut { .. } => "no answer in time",
            Self::Thread(_) => "no thread to ask",
            Self::Panicked(_) | Self::Scheme(_) => "the scheme has failed",
        })
    }

    /// An error of the file itself.
    fn of_file(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoFile(path),
            io::ErrorKind::PermissionDenied => Self::Permission(path),
            io::ErrorKind::IsADirectory => Self::Directory(path),
            _ => Self::Unreadable {
                path,
                source: error,
            },
        }
    }

    /// An error of the bytes at a place; `path` is the file they were read from.
    fn of_value(place: impl fmt::Display, path: &Path, error: ValueError) -> Self {
        match error {
            ValueError::Empty => Self::Empty {
                place: place.to_string(),
            },
            ValueError::TooLong => Self::TooLong {
                place: place.to_string(),
            },
            ValueError::Lock(error) => Self::Lock(error),
            ValueError::Read(error) => Self::of_file(path, error),
        }
    }
}

/// The schemes that references may use.
pub struct Schemes(Vec<Arc<dyn Scheme>>);

impl Default for Schemes {
    /// `env:`, `file:` and `dotenv:`, which need nothing but this process.
    fn default() -> Self {
        Self(vec![Arc::new(Env), Arc::new(File), Arc::new(Dotenv)])
    }
}

impl Schemes {
    /// Adds a scheme; of two with the same name the later one counts.
    #[must_use]
    pub fn with(mut self, scheme: impl Scheme + 'static) -> Self {
        self.0.insert(0, Arc::new(scheme));
        self
    }

    /// The scheme that a reference names.
    ///
    /// # Errors
    /// [`ResolveError::UnknownScheme`].
    pub fn of(&self, reference: &Reference) -> Result<&Arc<dyn Scheme>, ResolveError> {
        self.0
            .iter()
            .find(|scheme| scheme.name() == reference.scheme())
            .ok_or_else(|| ResolveError::UnknownScheme {
                scheme: reference.scheme().to_owned(),
                known: self.names().join(", "),
            })
    }

    /// Fetches the value of a reference, as [`Schemes::resolve_all`] does.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve(&self, reference: &Reference) -> Result<Fetched, ResolveError> {
        let results = self.resolve_all([reference]);
        results.into_iter().next().expect("one result a reference")
    }

    /// Fetches the values of references, several at once; each is there, or why it is not, in their order.
    ///
    /// Where all have ended in time no thread is left over.
    pub fn resolve_all<'a>(
        &self,
        references: impl IntoIterator<Item = &'a Reference>,
    ) -> Vec<Result<Fetched, ResolveError>> {
        let mut fetches = vec![];
        let mut results = vec![];
        for reference in references {
            match self.of(reference) {
                Ok(scheme) => {
                    fetches.push(Fetch::new(results.len(), scheme, reference.locator()));
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        fetch_all(fetches, |at, result| results[at] = Some(result));
        results
            .into_iter()
            .map(|result| result.expect("every fetch has a result"))
            .collect()
    }

    /// The variable of this process's environment that holds the value of a reference, or access to it.
    pub fn variable<'a>(&'a self, reference: &'a Reference) -> Option<&'a str> {
        self.of(reference).ok()?.variable(reference.locator())
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.iter().map(|scheme| scheme.name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static [u8]);

    impl Scheme for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }

        fn is_plaintext(&self) -> bool {
            false
        }

        fn resolve(&self, _: &str) -> Result<Fetched, ResolveError> {
            SecretValue::copy_of(self.0)
                .map(Fetched::from)
                .map_err(|error| ResolveError::of_value("fixed", Path::new(""), error))
        }
    }

    fn resolve(schemes: &Schemes, text: &str) -> Result<Fetched, ResolveError> {
        schemes.resolve(&text.parse().expect("a reference"))
    }

    #[test]
    fn test_schemes_unknown_names_those_that_are() {
        let error = resolve(&Schemes::default(), "vaul:a").expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "there is no secret scheme \"vaul\": use one of dotenv, env, file"
        );
    }

    #[test]
    fn test_schemes_with_a_scheme_of_ones_own() {
        let schemes = Schemes::default().with(Fixed(b"old")).with(Fixed(b"new"));
        let fetched = resolve(&schemes, "fixed:x").expect("a value");
        assert_eq!(fetched.value.expose(), b"new");
        assert_eq!(fetched.origin, Origin::default());
        let error = resolve(&schemes, "none:x").expect_err("unknown");
        assert!(error.to_string().ends_with("dotenv, env, file, fixed"));
    }
}
