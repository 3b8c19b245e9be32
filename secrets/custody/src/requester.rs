//! Who asks for a secret: the user, and the VM that it is for.

use std::fmt;
use std::str::FromStr;

/// Longest name of a user or of a VM, in bytes.
const MAX_LEN: usize = 64;

/// A user that secrets can belong to: a name that whoever runs VMs for others gives them, or the number of a
/// user of this machine. 1 to 64 letters, digits and any of `_.@-`, not beginning with a dot or hyphen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(String);

/// Why a text is not a [`UserId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the name of a user: it has 1 to {MAX_LEN} letters, digits and any of `_.@-`, and begins with none of `.-`"
)]
pub struct UserIdError;

impl UserId {
    /// The user that runs this process: its number.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self(rustix::process::getuid().as_raw().to_string())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserId {
    type Err = UserIdError;

    fn from_str(text: &str) -> Result<Self, UserIdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@-".contains(&byte);
        let good = (1..=MAX_LEN).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(allowed);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(UserIdError)
        }
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asks for a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// On whose behalf.
    pub user: UserId,
    /// Name of the VM that it is for, if it is for one; empty for a VM that was given no name, which has no secrets of
    /// its own.
    pub instance: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_user_id_accepts_names_and_numbers_only() {
        let longest = "a".repeat(MAX_LEN);
        for good in ["0", "1000", "alice", "a.b-c_d@example.org", &longest] {
            assert_eq!(good.parse::<UserId>().expect("a user").as_str(), good);
        }
        let too_long = "a".repeat(MAX_LEN + 1);
        for bad in [
            "", ".", "-a", ".a", "a/b", "a b", "a:b", "é", "a\n", &too_long,
        ] {
            assert_eq!(bad.parse::<UserId>(), Err(UserIdError), "{bad:?}");
        }
    }
}
