//! A value for a bundle: typed without being shown, read from standard input, or fetched by a reference. Never from the
//! command line, which others see.

use std::io;
use std::os::fd::AsFd;

use cachot_custody::bundle::{Document, DocumentError, SecretText};
use cachot_secrets::{Reference, ReferenceError, ResolveError, Schemes, SecretValue, ValueError};
use rustix::termios::isatty;
use zeroize::Zeroizing;

use crate::settings;

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The reference has none.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Standard input has none.
    #[error("standard input has no value for the bundle")]
    Value(#[from] ValueError),
    /// Not a bundle.
    #[error("standard input holds no bundle: {0}")]
    Document(DocumentError),
    /// Not UTF-8.
    #[error(
        "the value is not text in UTF-8, and a bundle holds text only: encode it, as with base64"
    )]
    NotText,
    /// It cannot be asked for.
    #[error("cannot ask for the value on the terminal")]
    Prompt(#[source] io::Error),
    /// Several lines are not typed.
    #[error("{0} has several lines: give it by `< FILE` or --from file:PATH")]
    Lines(&'static str),
}

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
/// See [`InputError`].
pub fn read(
    from: Option<&str>,
    what: &'static str,
    ending: Ending,
) -> Result<SecretText, InputError> {
    let value = match from {
        Some(reference) => {
            let reference: Reference = reference.parse()?;
            let schemes = Schemes::default().with(settings::bundle_scheme());
            schemes.resolve(&reference)?.value
        }
        None => match (isatty(io::stdin().as_fd()), ending) {
            (true, Ending::Kept) => return Err(InputError::Lines(what)),
            (true, Ending::Stripped) => {
                let typed = rpassword::prompt_password(format!("{what} (not shown): "));
                let typed = Zeroizing::new(typed.map_err(InputError::Prompt)?);
                SecretValue::copy_of(typed.as_bytes())?
            }
            // The descriptor itself: the standard library's reader keeps a copy in its buffer.
            (false, _) => SecretValue::read_from(&mut Descriptor)?,
        },
    };
    let bytes = match ending {
        Ending::Kept => value.expose(),
        Ending::Stripped => without_line_end(value.expose()),
    };
    if bytes.is_empty() {
        return Err(ValueError::Empty.into());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| InputError::NotText)?;
    Ok(text.into())
}

/// Reads a document, of no more bytes than a secret, from standard input: so it is never in a file.
///
/// # Errors
/// See [`InputError`].
pub fn document() -> Result<Document, InputError> {
    let text = SecretValue::read_from(&mut Descriptor)?;
    Document::parse(text.expose()).map_err(InputError::Document)
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    match bytes {
        [rest @ .., b'\r', b'\n'] | [rest @ .., b'\n'] => rest,
        all => all,
    }
}

/// Standard input without a buffer.
struct Descriptor;

impl io::Read for Descriptor {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(rustix::stdio::stdin(), into)?)
    }
}
