//! A value for a bundle: typed without being shown, read from standard input, or fetched by a reference. Never from the
//! command line, which others see.

use std::io::{self, IsTerminal};

use cachot_custody::bundle::{Document, SecretText};
use cachot_secrets::{Reference, Schemes, SecretValue, ValueError};

use super::BundleCommandError;
use crate::input::{self, InputError};
use crate::settings;

/// Whether a line's end after a value belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It does: the value is lines.
    Kept,
    /// It does not: the value is one word.
    Stripped,
}

/// Reads a value.
///
/// # Errors
/// See [`BundleCommandError`].
pub fn read(
    from: Option<&Reference>,
    what: &'static str,
    ending: Ending,
) -> Result<SecretText, BundleCommandError> {
    let value = match from {
        Some(reference) => {
            let schemes = Schemes::default().with(settings::bundle_scheme());
            input::fetch(reference, &schemes)?
        }
        None => match (io::stdin().is_terminal(), ending) {
            (true, Ending::Kept) => return Err(BundleCommandError::Lines(what)),
            (true, Ending::Stripped) => {
                let typed = input::typed(&format!("{what} (not shown): "))?;
                SecretValue::copy_of(typed.as_bytes()).map_err(InputError::Value)?
            }
            (false, _) => input::read()?,
        },
    };
    let bytes = match ending {
        Ending::Kept => value.expose(),
        Ending::Stripped => without_line_end(value.expose()),
    };
    if bytes.is_empty() {
        return Err(InputError::Value(ValueError::Empty).into());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| BundleCommandError::NotText)?;
    Ok(text.into())
}

/// Reads a document, of no more bytes than a secret, from standard input: so it is never in a file.
///
/// # Errors
/// See [`BundleCommandError`].
pub fn document() -> Result<Document, BundleCommandError> {
    let text = input::read()?;
    Document::parse(text.expose()).map_err(BundleCommandError::Document)
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    match bytes {
        [rest @ .., b'\r', b'\n'] | [rest @ .., b'\n'] => rest,
        all => all,
    }
}
