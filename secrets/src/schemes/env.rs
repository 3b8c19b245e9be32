//! `env:VARIABLE`: a variable of this process's environment.

use std::os::unix::ffi::OsStringExt;

use zeroize::Zeroizing;

use super::{ResolveError, Scheme};
use crate::value::SecretValue;

/// `env:VARIABLE`: the variable's bytes as they are.
///
/// The value stays in the environment until [`scrub_environment`](crate::scrub_environment)
/// overwrites it there.
pub struct Env;

impl Scheme for Env {
    fn name(&self) -> &'static str {
        "env"
    }

    fn is_plaintext(&self) -> bool {
        true
    }

    fn resolve(&self, locator: &str) -> Result<SecretValue, ResolveError> {
        let value = std::env::var_os(locator)
            .ok_or_else(|| ResolveError::NoVariable(locator.to_owned()))?;
        let value = Zeroizing::new(value.into_vec());
        SecretValue::copy_of(&value).map_err(|error| {
            ResolveError::of_value(
                format_args!("the environment variable {locator:?}"),
                locator.as_ref(),
                error,
            )
        })
    }
}
