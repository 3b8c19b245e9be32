//! What a user writes to declare a secret: `NAME=scheme:locator[,mode=0400][,uid=0][,gid=0][,env]`.

use std::fmt;
use std::str::FromStr;

use crate::name::{Name, NameError};

/// Longest name of a scheme, in bytes.
const MAX_SCHEME_LEN: usize = 32;

/// The mode bits that `/run/secrets` can have: it is read-only, and its files are data.
const READ_BITS: u32 = 0o444;

/// Where a value is: `scheme:locator`, for example `file:/etc/token`. What a locator looks like is
/// its scheme's affair; here it is any text that is not empty.
///
/// A scheme's name is `^[a-z][a-z0-9-]*$`, at most 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    scheme: String,
    locator: String,
}

/// Why a text is not a [`Reference`]. The text itself is not repeated: it may be a value that was
/// typed where the reference belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is no `scheme:` in front.
    #[error(
        "the reference has no scheme: write where the value is, not the value itself, as in env:VARIABLE or file:PATH"
    )]
    NoScheme,
    /// What is in front of the colon is not the name of a scheme.
    #[error(
        "the reference does not begin with the name of a scheme (lower-case letters, digits, hyphens): \
         write it as in env:VARIABLE or file:PATH"
    )]
    BadScheme,
    /// There is nothing after the colon.
    #[error("the reference ends after its scheme: write it as in env:VARIABLE or file:PATH")]
    NoLocator,
}

impl Reference {
    /// Name of the scheme, without the colon.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What the scheme looks up.
    pub fn locator(&self) -> &str {
        &self.locator
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (scheme, locator) = text.split_once(':').ok_or(ReferenceError::NoScheme)?;
        if scheme.is_empty() {
            return Err(ReferenceError::NoScheme);
        }
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if scheme.len() > MAX_SCHEME_LEN
            || !scheme.starts_with(|first: char| first.is_ascii_lowercase())
            || !scheme.bytes().all(allowed)
        {
            return Err(ReferenceError::BadScheme);
        }
        if locator.is_empty() {
            return Err(ReferenceError::NoLocator);
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            locator: locator.to_owned(),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme, self.locator)
    }
}

/// How a secret appears in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Permission bits of the file, some of `0o444`; default `0o400`.
    pub mode: u32,
    /// The file's owner in the guest; default 0.
    pub uid: u32,
    /// The file's group in the guest; default 0.
    pub gid: u32,
    /// Whether the workload also gets an environment variable of the same name; default no.
    pub export_env: bool,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            mode: 0o400,
            uid: 0,
            gid: 0,
            export_env: false,
        }
    }
}

/// One declared secret: `NAME=scheme:locator[,mode=0400][,uid=0][,gid=0][,env]`.
///
/// Options are the longest run of `,mode=...`, `,uid=...`, `,gid=...` and `,env` at the *end* of
/// the text, each at most once and in any order. Every other comma belongs to the locator:
/// `file:/srv/a,b` names the file `/srv/a,b`, and so does `file:/srv/a,b,mode=0440`. A locator that
/// itself ends like an option cannot be written; reach such a file through a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// The secret's name.
    pub name: Name,
    /// Where its value is.
    pub reference: Reference,
    /// How it appears in the guest.
    pub delivery: Delivery,
}

/// Why a text is not a [`Declaration`]. Only the parts that are known not to be a value are
/// repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeclarationError {
    /// There is no `NAME=` in front.
    #[error("the declaration has no name: write NAME=scheme:reference, as in API_KEY=env:API_KEY")]
    NoName,
    /// What is in front of the `=` is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What follows the `=` is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// An option is given twice.
    #[error("the option {0:?} is given twice: give it once")]
    RepeatedOption(&'static str),
    /// `mode` is not an octal number, or has bits outside `0o444`, or none.
    #[error(
        "the option mode={0} is not possible: it is octal with read bits only, as in 0400, 0440 or 0444 (/run/secrets is read-only)"
    )]
    Mode(String),
    /// `uid` or `gid` is not the number of a user or group.
    #[error("the option {option}={text} is not possible: it is a number from 0 to 4294967294")]
    Id {
        /// `uid` or `gid`.
        option: &'static str,
        /// What was given.
        text: String,
    },
    /// `env` was given a value.
    #[error("the option env takes no value: write ,env alone")]
    EnvValue,
}

impl Declaration {
    /// Splits `NAME=rest`; where only the rest is wrong the name is still good for reports.
    pub(crate) fn split(text: &str) -> Result<(Name, &str), DeclarationError> {
        let (name, rest) = text.split_once('=').ok_or(DeclarationError::NoName)?;
        Ok((name.parse()?, rest))
    }

    /// Parses what follows `NAME=`.
    pub(crate) fn parse_rest(name: Name, rest: &str) -> Result<Self, DeclarationError> {
        let mut reference = rest;
        let mut options = Options::default();
        while let Some((before, segment)) = reference.rsplit_once(',') {
            if !options.take(segment)? {
                break;
            }
            reference = before;
        }
        Ok(Self {
            name,
            reference: reference.parse()?,
            delivery: options.into_delivery(),
        })
    }
}

/// Options found so far, from the end of the text.
#[derive(Default)]
struct Options {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<()>,
}

impl Options {
    /// Takes one segment between commas; `false` if it is no option.
    fn take(&mut self, segment: &str) -> Result<bool, DeclarationError> {
        let (key, text) = match segment.split_once('=') {
            Some((key, text)) => (key, Some(text)),
            None => (segment, None),
        };
        match (key, text) {
            ("mode", Some(text)) => set(&mut self.mode, "mode", parse_mode(text)?)?,
            ("uid", Some(text)) => set(&mut self.uid, "uid", parse_id("uid", text)?)?,
            ("gid", Some(text)) => set(&mut self.gid, "gid", parse_id("gid", text)?)?,
            ("env", None) => set(&mut self.env, "env", ())?,
            ("env", Some(_)) => return Err(DeclarationError::EnvValue),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn into_delivery(self) -> Delivery {
        let default = Delivery::default();
        Delivery {
            mode: self.mode.unwrap_or(default.mode),
            uid: self.uid.unwrap_or(default.uid),
            gid: self.gid.unwrap_or(default.gid),
            export_env: self.env.is_some(),
        }
    }
}

fn set<T>(option: &mut Option<T>, name: &'static str, value: T) -> Result<(), DeclarationError> {
    match option.replace(value) {
        None => Ok(()),
        Some(_) => Err(DeclarationError::RepeatedOption(name)),
    }
}

fn parse_mode(text: &str) -> Result<u32, DeclarationError> {
    let octal = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    octal
        .then(|| u32::from_str_radix(text, 8).ok())
        .flatten()
        .filter(|mode| *mode != 0 && mode & !READ_BITS == 0)
        .ok_or_else(|| DeclarationError::Mode(text.to_owned()))
}

fn parse_id(option: &'static str, text: &str) -> Result<u32, DeclarationError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        // The kernel reads the last one as "no change".
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| DeclarationError::Id {
            option,
            text: text.to_owned(),
        })
}

impl FromStr for Declaration {
    type Err = DeclarationError;

    fn from_str(text: &str) -> Result<Self, DeclarationError> {
        let (name, rest) = Self::split(text)?;
        Self::parse_rest(name, rest)
    }
}

impl fmt::Display for Declaration {
    /// Writes options only where they differ from the defaults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Delivery::default();
        write!(f, "{}={}", self.name, self.reference)?;
        if self.delivery.mode != default.mode {
            write!(f, ",mode={:04o}", self.delivery.mode)?;
        }
        if self.delivery.uid != default.uid {
            write!(f, ",uid={}", self.delivery.uid)?;
        }
        if self.delivery.gid != default.gid {
            write!(f, ",gid={}", self.delivery.gid)?;
        }
        if self.delivery.export_env {
            f.write_str(",env")?;
        }
        Ok(())
    }
}
