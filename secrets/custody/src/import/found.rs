//! One secret of another system, before it is known whether it can be stored.

use cachot_secrets::{SecretValue, ValueError};

use super::{ImportError, Problem};

/// Whose a secret is in the system that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody's in particular: it goes where the user says.
    Nobody,
    /// An app's of aegis.
    App(String),
    /// A user's of bhatti.
    User(String),
}

/// What is known of the value.
#[derive(Debug)]
pub(super) enum Content {
    /// The value.
    Value(SecretValue),
    /// It is empty, which the store has no way to say.
    Empty,
    /// It is no secret, or another one counts in its place; why.
    LeftOut(String),
    /// It cannot be had.
    Problem(Problem),
}

/// One secret of another system.
#[derive(Debug)]
pub struct Found {
    /// Where it is, in the words of its system: unique, and what `--rename` calls it.
    pub(super) from: String,
    /// Where it is, as errors say it: of what may be no name, a number only.
    pub(super) shown: String,
    /// Its name, or what becomes of it by the rule of its system.
    pub(super) name: String,
    /// Whose it is.
    pub(super) owner: Owner,
    /// The value.
    pub(super) content: Content,
    /// What else its system knows and the store does not keep.
    pub(super) note: Option<String>,
}

impl Found {
    /// One that is shown as what it is called.
    pub(super) fn new(from: String, name: String, owner: Owner, content: Content) -> Self {
        Self {
            shown: from.clone(),
            from,
            name,
            owner,
            content,
            note: None,
        }
    }
}

impl Content {
    /// What to make of a value; the caller wipes it.
    ///
    /// # Errors
    /// [`ImportError::Lock`] if there is no memory for values.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, ImportError> {
        Self::of_result(SecretValue::copy_of(bytes))
    }

    /// The same of a value that was made in place.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(super) fn of_result(value: Result<SecretValue, ValueError>) -> Result<Self, ImportError> {
        match value {
            Ok(value) => Ok(Self::Value(value)),
            Err(ValueError::Empty) => Ok(Self::Empty),
            Err(ValueError::Lock(error)) => Err(error.into()),
            Err(error) => Ok(Self::Problem(Problem::Value(error))),
        }
    }
}
