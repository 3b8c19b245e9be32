//! `env:VARIABLE`: a variable of this process's environment.

use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Fetched, ResolveError, Scheme};
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

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        let value = std::env::var_os(locator)
            .ok_or_else(|| ResolveError::NoVariable(locator.to_owned()))?;
        let value = Zeroizing::new(value.into_vec());
        let value = SecretValue::copy_of(&value);
        value.map(Fetched::from).map_err(|error| {
            ResolveError::of_value(
                format_args!("the environment variable {locator:?}"),
                locator.as_ref(),
                error,
            )
        })
    }

    fn time_limit(&self) -> Option<Duration> {
        None
    }

    fn variable<'a>(&'a self, locator: &'a str) -> Option<&'a str> {
        Some(locator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Variables with values of a test's choice are in tests/process.rs: setting one is not safe here.

    #[test]
    fn test_env_set_variable_is_its_value() {
        let fetched = Env.resolve("PATH").expect("PATH is set for every test");
        let expected = std::env::var("PATH").expect("PATH is text");
        assert_eq!(fetched.value.expose(), expected.as_bytes());
    }

    #[test]
    fn test_env_not_set_is_a_distinct_error() {
        for name in ["CACHOT_NOT_SET", "", "=", "PATH=", "PATH\0"] {
            let error = Env.resolve(name).expect_err("not set");
            assert!(matches!(error, ResolveError::NoVariable(n) if n == name));
        }
    }
}
