//! Schemes that ask the store or others for values: programs, a server, the service manager.

mod bundle;
mod exec;
mod program;
mod store;
mod systemd;
mod vault;

use std::ffi::OsString;
use std::sync::Arc;

use cachot_secrets::{ResolveError, Schemes, ValueError};

pub use bundle::Bundle;
pub use exec::{Exec, Helper};
pub use program::ExecError;
pub use store::StoreScheme;
pub use systemd::{Systemd, SystemdError};
pub use vault::{PlaceError, Vault, VaultError};

/// Where schemes find their settings: the variables of an environment.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<OsString> + Send + Sync;

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::new(|name| std::env::var_os(name))
    }

    /// One in which `variable` looks names up.
    pub fn new(variable: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static) -> Self {
        Self(Arc::new(variable))
    }

    /// The value of a variable; one that is empty counts as not set.
    fn get(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }
}

/// Adds `exec:`, `helper:`, `systemd:` and `vault:`, which find their settings in `environment`.
#[must_use]
pub fn with_providers(schemes: Schemes, environment: &Environment) -> Schemes {
    schemes
        .with(Exec::new(environment.clone()))
        .with(Helper::new(environment.clone()))
        .with(Systemd::new(environment.clone()))
        .with(Vault::new(environment.clone()))
}

/// What keeps the bytes of `place` from being a value; `read` says what a failing source means.
fn of_value<E>(
    place: String,
    error: ValueError,
    read: impl FnOnce(std::io::Error) -> E,
) -> ResolveError
where
    E: std::error::Error + Send + Sync + 'static,
{
    match error {
        ValueError::Empty => ResolveError::Empty { place },
        ValueError::TooLong => ResolveError::TooLong { place },
        ValueError::Lock(error) => ResolveError::Lock(error),
        ValueError::Read(error) => ResolveError::Scheme(Box::new(read(error))),
    }
}
