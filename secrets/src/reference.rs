//! What a user writes to declare a secret: `NAME=scheme:locator[,mode=0400][,uid=0][,gid=0][,env]`.

use std::fmt;
use std::path::Path;
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

    /// Of a key of a dotenv file.
    pub(crate) fn in_env_file(path: &Path, key: &Name) -> Self {
        Self {
            scheme: "dotenv".to_owned(),
            locator: format!("{}#{key}", path.display()),
        }
    }

    /// The same, for use from any working folder: a relative path becomes one under `folder`, in which
    /// the reference was given.
    #[must_use]
    pub fn anchored(&self, folder: &Path) -> Self {
        let is_path = matches!(self.scheme.as_str(), "file" | "dotenv");
        if !is_path || self.locator.starts_with('/') {
            return self.clone();
        }
        Self {
            scheme: self.scheme.clone(),
            locator: format!("{}/{}", folder.display(), self.locator),
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Declaration, DeclarationError> {
        text.parse()
    }

    fn delivery(mode: u32, uid: u32, gid: u32, export_env: bool) -> Delivery {
        Delivery {
            mode,
            uid,
            gid,
            export_env,
        }
    }

    #[test]
    fn test_anchored_relative_paths_become_absolute_and_nothing_else() {
        let folder = Path::new("/srv/app");
        for (text, expected) in [
            ("file:key", "file:/srv/app/key"),
            ("dotenv:.env#KEY", "dotenv:/srv/app/.env#KEY"),
            ("file:/run/key", "file:/run/key"),
            ("env:KEY", "env:KEY"),
        ] {
            let reference: Reference = text.parse().expect("a reference");
            assert_eq!(reference.anchored(folder).to_string(), expected);
        }
    }

    #[test]
    fn test_declaration_without_options_has_the_defaults() {
        let declaration = parse("API_KEY=env:API_TOKEN").expect("a declaration");
        assert_eq!(declaration.name.as_str(), "API_KEY");
        assert_eq!(declaration.reference.scheme(), "env");
        assert_eq!(declaration.reference.locator(), "API_TOKEN");
        assert_eq!(declaration.delivery, delivery(0o400, 0, 0, false));
    }

    #[test]
    fn test_declaration_options_in_any_order() {
        for text in [
            "K=file:/a,mode=0440,uid=1000,gid=50,env",
            "K=file:/a,env,gid=50,mode=440,uid=01000",
        ] {
            let declaration = parse(text).expect("a declaration");
            assert_eq!(declaration.reference.locator(), "/a");
            assert_eq!(declaration.delivery, delivery(0o440, 1000, 50, true));
        }
    }

    #[test]
    fn test_declaration_options_only_at_the_end() {
        let cases = [
            ("K=file:/a,b", "/a,b", 0o400),
            ("K=file:/a,b,mode=0444", "/a,b", 0o444),
            ("K=file:/a,mode=0444,b", "/a,mode=0444,b", 0o400),
            ("K=file:/a,mode=9,b", "/a,mode=9,b", 0o400),
            ("K=file:/a,", "/a,", 0o400),
            ("K=file:/a,,mode=0444", "/a,", 0o444),
            ("K=file:/a, mode=0444", "/a, mode=0444", 0o400),
            ("K=file:/a,mod=0444", "/a,mod=0444", 0o400),
            ("K=file:/a,mode", "/a,mode", 0o400),
            ("K=file:/a=b:c#d", "/a=b:c#d", 0o400),
            ("K=file:env", "env", 0o400),
        ];
        for (text, locator, mode) in cases {
            let declaration = parse(text).expect("a declaration");
            assert_eq!(declaration.reference.locator(), locator, "{text}");
            assert_eq!(declaration.delivery.mode, mode, "{text}");
        }
    }

    #[test]
    fn test_declaration_malformed_is_a_distinct_error() {
        let mode = |text: &str| DeclarationError::Mode(text.to_owned());
        let id = |option, text: &str| DeclarationError::Id {
            option,
            text: text.to_owned(),
        };
        let cases = [
            ("", DeclarationError::NoName),
            ("API_KEY", DeclarationError::NoName),
            ("=env:X", NameError::Empty.into()),
            ("A-B=env:X", NameError::Character(2).into()),
            ("K=", ReferenceError::NoScheme.into()),
            ("K=value", ReferenceError::NoScheme.into()),
            ("K=:X", ReferenceError::NoScheme.into()),
            ("K=ENV:X", ReferenceError::BadScheme.into()),
            ("K=1env:X", ReferenceError::BadScheme.into()),
            ("K=a b:X", ReferenceError::BadScheme.into()),
            ("K=é:X", ReferenceError::BadScheme.into()),
            ("K=env:", ReferenceError::NoLocator.into()),
            ("K=env:,env", ReferenceError::NoLocator.into()),
            ("K=file:/a,mode=", mode("")),
            ("K=file:/a,mode=0600", mode("0600")),
            ("K=file:/a,mode=0666", mode("0666")),
            ("K=file:/a,mode=0500", mode("0500")),
            ("K=file:/a,mode=04400", mode("04400")),
            ("K=file:/a,mode=0", mode("0")),
            ("K=file:/a,mode=0o400", mode("0o400")),
            ("K=file:/a,mode=+400", mode("+400")),
            ("K=file:/a,mode=777777777777", mode("777777777777")),
            ("K=file:/a,uid=-1", id("uid", "-1")),
            ("K=file:/a,uid=+1", id("uid", "+1")),
            ("K=file:/a,uid=root", id("uid", "root")),
            ("K=file:/a,gid=4294967295", id("gid", "4294967295")),
            ("K=file:/a,gid=", id("gid", "")),
            ("K=file:/a,env=1", DeclarationError::EnvValue),
            ("K=file:/a,env,env", DeclarationError::RepeatedOption("env")),
            (
                "K=file:/a,mode=0400,uid=1,mode=0400",
                DeclarationError::RepeatedOption("mode"),
            ),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
        let longest = format!("K={}:X", "s".repeat(MAX_SCHEME_LEN));
        assert!(parse(&longest).is_ok());
        let too_long = format!("K={}:X", "s".repeat(MAX_SCHEME_LEN + 1));
        assert_eq!(parse(&too_long), Err(ReferenceError::BadScheme.into()));
    }

    #[test]
    fn test_declaration_error_never_repeats_what_may_be_a_value() {
        let secret = "Sk-live/0123456789+abc";
        for text in [
            secret.to_owned(),
            format!("{secret}=env:X"),
            format!("API_KEY={secret}"),
            format!("API_KEY={secret}:{secret}"),
        ] {
            let error = parse(&text).expect_err("not a declaration").to_string();
            assert!(!error.contains("live"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn test_declaration_arbitrary_text_never_panics(text in "\\PC*|[A-Z]=[a-z:,=0-7]*") {
            if let Ok(declaration) = parse(&text) {
                let again = parse(&declaration.to_string());
                prop_assert_eq!(again, Ok(declaration));
            }
        }

        #[test]
        fn test_declaration_round_trip(
            name in "[A-Za-z_][A-Za-z0-9_]{0,20}",
            scheme in "[a-z][a-z0-9-]{0,10}",
            locator in "[^,]{1,20}(,[^,=]{0,3}!)?",
            mode in prop::sample::select(vec![0o400, 0o440, 0o444, 0o004, 0o040]),
            uid in 0..u32::MAX,
            gid in 0..u32::MAX,
            export_env: bool,
        ) {
            let declaration = Declaration {
                name: name.parse().expect("a name"),
                reference: format!("{scheme}:{locator}").parse().expect("a reference"),
                delivery: delivery(mode, uid, gid, export_env),
            };
            prop_assert_eq!(parse(&declaration.to_string()), Ok(declaration));
        }
    }
}
