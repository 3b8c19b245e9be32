//! Names of bundles.

use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes: with the longest extension it is a file name everywhere.
const MAX_LEN: usize = 128;

/// The name of a bundle, without folder and extension: 1 to 128 letters, digits and any of `_.@+-`, not beginning with
/// a dot or hyphen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BundleName(String);

/// Not the name of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the name of a bundle: it has 1 to {MAX_LEN} letters, digits and any of `_.@+-`, begins with none of `.-`, \
     and names no folder"
)]
pub struct BundleNameError;

impl BundleName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BundleName {
    type Err = BundleNameError;

    fn from_str(text: &str) -> Result<Self, BundleNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@+-".contains(&byte);
        let good = (1..=MAX_LEN).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(allowed);
        match good {
            true => Ok(Self(text.to_owned())),
            false => Err(BundleNameError),
        }
    }
}

impl fmt::Display for BundleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_bundle_name_names_no_folder_and_no_hidden_file() {
        for good in ["default", "default-2026-01-30", "a.b", "ci@host"] {
            assert_eq!(good.parse::<BundleName>().expect("a name").as_str(), good);
        }
        let long = "a".repeat(MAX_LEN + 1);
        for bad in [
            "", ".", "..", ".a", "-a", "a/b", "/a", "a b", "a#b", "é", "a\0", &long,
        ] {
            assert_eq!(bad.parse::<BundleName>(), Err(BundleNameError), "{bad:?}");
        }
    }
}
