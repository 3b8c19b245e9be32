//! Names of VMs: what `--name` takes, and what folders of state are called.

use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes: that of a host name's label, which it becomes in restored guests.
const MAX_LEN: usize = 63;

/// A name of a VM: letters, digits, `-`, `_` and `.`, at most 63 of them, a letter or digit first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VmName(String);

/// Not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a VM's name has 1 to {MAX_LEN} letters, digits, hyphens, underscores and dots, and begins with a letter or digit"
)]
pub struct VmNameError;

impl FromStr for VmName {
    type Err = VmNameError;

    fn from_str(text: &str) -> Result<Self, VmNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = (1..=MAX_LEN).contains(&text.len())
            && text.bytes().all(allowed)
            && text.starts_with(|first: char| first.is_ascii_alphanumeric());
        fits.then(|| Self(text.to_owned())).ok_or(VmNameError)
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for VmName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_names_that_are_folders_of_their_own_and_no_others() {
        for good in ["a", "vm-1", "A_b.c", "0", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "-a",
            "a b",
            "ä",
            "a\n",
            &"x".repeat(64),
        ] {
            assert_eq!(bad.parse::<VmName>(), Err(VmNameError), "{bad}");
        }
    }
}
