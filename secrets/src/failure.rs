//! What keeps a VM from getting its secrets: every failure of its declarations, by name.

use std::fmt;
use std::path::PathBuf;

use crate::declarations::{MAX_SECRETS, MAX_TOTAL_LEN};
use crate::name::{Name, NameError};
use crate::reference::DeclarationError;
use crate::schemes::{Refusal, ResolveError};

/// What a failure is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The secret of this name.
    Secret(Name),
    /// A declaration without a good name: its place among the declarations, counted from 1.
    Declaration(usize),
    /// The file of secrets.
    EnvFile(PathBuf),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "{name}"),
            Self::Declaration(place) => write!(f, "declaration {place}"),
            Self::EnvFile(path) => write!(f, "{path:?}"),
        }
    }
}

/// One thing that keeps a VM from getting its secrets.
#[derive(Debug, thiserror::Error)]
#[error("secret {subject}: {error}")]
pub struct Failure {
    /// What it is about.
    pub subject: Subject,
    /// Name of the scheme, where the reference names one that there is; another may be part of a value.
    pub scheme: Option<String>,
    /// What is wrong with it.
    #[source]
    pub error: SecretError,
}

/// What can be wrong with a declared secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The declaration cannot be read.
    #[error(transparent)]
    Declaration(#[from] DeclarationError),
    /// Another declaration has the same name.
    #[error("the secret is declared more than once: keep one of the declarations")]
    Duplicate,
    /// A key of the file of secrets is not a secret's name.
    #[error("line {line}: {error}")]
    Key {
        /// Line number, counted from 1.
        line: usize,
        /// What is wrong with the key.
        #[source]
        error: NameError,
    },
    /// There is no value.
    #[error("{}", with_cause(.0))]
    Resolve(#[from] ResolveError),
    /// The value is to be exported but has a zero byte in it.
    #[error(
        "the value contains a zero byte, which an environment variable cannot hold: drop the option env"
    )]
    ZeroByte,
    /// The values up to this one have more than [`MAX_TOTAL_LEN`] bytes.
    #[error(
        "with this one the secrets of the VM have more than {MAX_TOTAL_LEN} bytes together: declare fewer or shorter ones"
    )]
    TotalTooLong,
    /// More than [`MAX_SECRETS`] are declared; what follows the first one too many was not looked at.
    #[error("a VM has at most {MAX_SECRETS} secrets, and more are declared: declare fewer")]
    TooMany,
}

impl SecretError {
    /// Name of the scheme that has failed.
    pub(crate) fn scheme(&self, named: Option<&String>) -> Option<String> {
        match self {
            Self::Resolve(ResolveError::UnknownScheme { .. }) => None,
            _ => named.cloned(),
        }
    }

    /// What is wrong in a few fixed words.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::Failed(match self {
            Self::Declaration(_) => "malformed declaration",
            Self::Duplicate => "declared more than once",
            Self::Key { .. } => "malformed key in the file",
            Self::Resolve(error) => return error.refusal(),
            Self::ZeroByte => "zero byte in an exported value",
            Self::TotalTooLong => "values too long together",
            Self::TooMany => "too many secrets",
        })
    }
}

/// An error and what caused it, on one line.
fn with_cause(error: &ResolveError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Everything that keeps a VM from getting its secrets, one to a line; never empty.
#[derive(Debug)]
pub struct Failures(pub(crate) Vec<Failure>);

impl Failures {
    /// The failures, in the order of the declarations.
    pub fn iter(&self) -> impl Iterator<Item = &Failure> {
        self.0.iter()
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, failure) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{failure}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failures {}
