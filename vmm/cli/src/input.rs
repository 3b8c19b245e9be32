//! Values and answers of the user: fetched by a reference, read from standard input, typed on the terminal.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;

use cachot_secrets::{
    Reference, ResolveError, Schemes, ScrubError, SecretValue, ValueError, scrub_environment,
};
use zeroize::Zeroizing;

use crate::vm::error::OWN_FAILURE;

/// Exit code of a command that did not find what it was to work on, or was told not to.
pub const FOUND_WRONG: u8 = 1;

/// Why there is no value, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// `--from` has no value.
    #[error("--from: {}", crate::text::with_causes(.0))]
    From(ResolveError),
    /// What was read is no value.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A value stays in the environment.
    #[error(transparent)]
    Scrub(#[from] ScrubError),
    /// Standard input cannot be used.
    #[error("cannot read standard input")]
    Stdin(#[source] io::Error),
    /// The terminal cannot be used.
    #[error("cannot ask on the terminal: {hint}")]
    Terminal {
        /// What to do.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The question was not answered with yes.
    #[error("nothing was shown or written: the answer was not yes")]
    NotConfirmed,
}

impl InputError {
    /// The exit code to report it with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotConfirmed => FOUND_WRONG,
            _ => OWN_FAILURE,
        }
    }
}

/// The value that a reference stands for; it is taken out of this process's environment.
///
/// # Errors
/// [`InputError::From`], [`InputError::Scrub`].
pub fn fetch(reference: &Reference, schemes: &Schemes) -> Result<SecretValue, InputError> {
    let fetched = schemes.resolve(reference);
    scrub_environment(schemes.variable(reference))?;
    match fetched {
        Ok(fetched) => Ok(fetched.value),
        Err(error) => Err(InputError::From(error)),
    }
}

/// All of standard input, which is as long as a secret at most. Not by way of the standard library's reader, which
/// would keep a copy in its buffer.
///
/// # Errors
/// [`InputError::Stdin`], [`InputError::Value`].
pub fn read() -> Result<SecretValue, InputError> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    let mut input = File::from(input.map_err(InputError::Stdin)?);
    Ok(SecretValue::read_from(&mut input)?)
}

/// A line that is typed without being shown.
///
/// # Errors
/// [`InputError::Terminal`].
pub fn typed(prompt: &str) -> Result<Zeroizing<String>, InputError> {
    let line = rpassword::prompt_password(prompt).map_err(|source| InputError::Terminal {
        hint: "give the value on standard input, or with --from",
        source,
    })?;
    Ok(Zeroizing::new(line))
}

/// Asks a question on the terminal, whatever the standard streams are.
///
/// # Errors
/// [`InputError::NotConfirmed`] unless the answer is yes, [`InputError::Terminal`].
pub fn confirm(question: &str) -> Result<(), InputError> {
    let failed = |source| InputError::Terminal {
        hint: "give --yes if you mean it",
        source,
    };
    let mut terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(failed)?;
    write!(terminal, "{question} [y/N] ").map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(terminal)
        .read_line(&mut answer)
        .map_err(failed)?;
    match answer.trim() {
        "y" | "Y" | "yes" | "Yes" | "YES" => Ok(()),
        _ => Err(InputError::NotConfirmed),
    }
}
