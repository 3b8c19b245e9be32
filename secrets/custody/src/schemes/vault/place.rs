//! Where in the store a value is: the part of a reference after `vault:`.

use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What is not written as it is in the path of an address (RFC 3986: all but the unreserved letters), but for the
/// slashes.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// A field of a secret, `MOUNT/data/PATH[?version=N]#FIELD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Mount, `data` and path of the secret.
    pub secret: String,
    /// The version that is wanted; the newest, if none is named.
    pub version: Option<u64>,
    pub field: String,
}

/// Why a text is no [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// No field is named.
    #[error(
        "vault: the reference does not say which field is meant: write vault:MOUNT/data/PATH#FIELD"
    )]
    NoField,
    /// The path is not that of a secret of a key-value store, version 2.
    #[error(
        "vault: the reference is not a secret's path: write vault:MOUNT/data/PATH#FIELD, without empty parts and . or .."
    )]
    BadPath,
    /// What follows the question mark is no version.
    #[error(
        "vault: the reference's version is not a number from 1: write vault:MOUNT/data/PATH?version=N#FIELD"
    )]
    BadVersion,
}

impl Place {
    /// Path and query of the request for it (`GET /v1/MOUNT/data/PATH?version=N`).
    pub fn request(&self) -> String {
        let path = utf8_percent_encode(&self.secret, ENCODED);
        match self.version {
            Some(version) => format!("/v1/{path}?version={version}"),
            None => format!("/v1/{path}"),
        }
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let (secret, field) = text.rsplit_once('#').ok_or(PlaceError::NoField)?;
        if field.is_empty() {
            return Err(PlaceError::NoField);
        }
        let (secret, version) = match secret.split_once('?') {
            None => (secret, None),
            Some((secret, query)) => (secret, Some(version(query)?)),
        };
        let parts: Vec<_> = secret.split('/').collect();
        let is_good = |part: &&str| !matches!(*part, "" | "." | "..");
        // A mount and a path have one part each at least.
        let has_data = parts.len() >= 3 && parts[1..parts.len() - 1].contains(&"data");
        if !has_data || !parts.iter().all(is_good) {
            return Err(PlaceError::BadPath);
        }
        Ok(Self {
            secret: secret.to_owned(),
            version,
            field: field.to_owned(),
        })
    }
}

fn version(query: &str) -> Result<u64, PlaceError> {
    query
        .strip_prefix("version=")
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        // The server takes 0 for the newest.
        .filter(|version| *version > 0)
        .ok_or(PlaceError::BadVersion)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(text: &str) -> Result<String, PlaceError> {
        text.parse().map(|place: Place| place.request())
    }

    #[test]
    fn test_place_is_the_request_of_the_documented_api() {
        let place: Place = "secret/data/app/db#pass#word".parse().expect("a place");
        assert_eq!(place.field, "word");
        for (text, expected) in [
            ("secret/data/db#f", "/v1/secret/data/db"),
            ("a/b/data/c/d#f", "/v1/a/b/data/c/d"),
            ("kv/data/data#f", "/v1/kv/data/data"),
            ("kv/data/d?version=7#f", "/v1/kv/data/d?version=7"),
            ("kv/data/a b%é\r\n#f", "/v1/kv/data/a%20b%25%C3%A9%0D%0A"),
            ("kv/data/a#b#f", "/v1/kv/data/a%23b"),
        ] {
            assert_eq!(request(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn test_place_that_is_none_is_a_distinct_error() {
        for text in ["", "a", "kv/data/d", "kv/data/d#", "#"] {
            assert_eq!(request(text), Err(PlaceError::NoField), "{text}");
        }
        for text in [
            "kv/d#f",
            "data/d#f",
            "kv/data#f",
            "kv/data/#f",
            "/kv/data/d#f",
            "kv//data/d#f",
            "kv/data/../sys#f",
            "kv/data/./d#f",
        ] {
            assert_eq!(request(text), Err(PlaceError::BadPath), "{text}");
        }
        for query in [
            "",
            "version=",
            "version=0",
            "version=-1",
            "version=+1",
            "version=1&x=y",
            "v=1",
            "version=99999999999999999999",
        ] {
            let text = format!("kv/data/d?{query}#f");
            assert_eq!(request(&text), Err(PlaceError::BadVersion), "{text}");
        }
    }

    proptest! {
        /// Whatever is written, the request stays within the store, and is one line of an address.
        #[test]
        fn test_place_never_leaves_its_path(text in "(kv/data/)?[ -~é/.?#%\n]{0,30}#f") {
            let Ok(place) = text.parse::<Place>() else { return Ok(()) };
            let request = place.request();
            let path = request.split('?').next().expect("a path");
            prop_assert!(request.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(request.bytes().filter(|byte| *byte == b'?').count() <= 1);
            prop_assert!(!request.contains('#'));
            prop_assert!(path.split('/').skip(1).all(|part| !matches!(part, "" | "." | "..")));
            let decoded = percent_encoding::percent_decode_str(path).decode_utf8().expect("text");
            prop_assert_eq!(decoded, format!("/v1/{}", place.secret));
        }
    }
}
