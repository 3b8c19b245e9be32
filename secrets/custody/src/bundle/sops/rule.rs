//! Which values of a document sops has encrypted.

use regex::Regex;

/// By the keys of a value's path; any of them decides.
#[derive(Debug)]
pub enum Rule {
    /// All but those under a key that ends so.
    UnencryptedSuffix(String),
    /// Those under a key that ends so.
    EncryptedSuffix(String),
    /// All but those under a key in which this is found.
    UnencryptedRegex(Regex),
    /// Those under a key in which this is found.
    EncryptedRegex(Regex),
}

impl Rule {
    /// Whether the value at a path is encrypted.
    pub fn encrypts(&self, path: &[String]) -> bool {
        match self {
            Self::UnencryptedSuffix(suffix) => !path.iter().any(|key| key.ends_with(suffix)),
            Self::EncryptedSuffix(suffix) => path.iter().any(|key| key.ends_with(suffix)),
            Self::UnencryptedRegex(regex) => !path.iter().any(|key| regex.is_match(key)),
            Self::EncryptedRegex(regex) => path.iter().any(|key| regex.is_match(key)),
        }
    }
}
