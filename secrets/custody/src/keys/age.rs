//! A root key as an age file (age-encryption.org/v1) to several recipients.

use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::x25519;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{KeyError, KeySource};
use crate::crypto::{KEY_LEN, Key};
use crate::files::{self, Access, FileError};

/// Longest identity file, in bytes: some hundred keys with comments.
const MAX_IDENTITY_FILE: u64 = 64 << 10;

/// A public key of age, `age1...`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Recipient(String);

/// Not a public key of age. The text is not repeated: it may be a private one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a public key of age: give age1... as age-keygen prints it")]
pub struct RecipientError;

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        match text.parse::<x25519::Recipient>() {
            Ok(key) => Ok(Self(key.to_string())),
            Err(_) => Err(RecipientError),
        }
    }
}

impl TryFrom<String> for Recipient {
    type Error = RecipientError;

    fn try_from(text: String) -> Result<Self, RecipientError> {
        text.parse()
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An age file to these recipients, read with this identity file.
#[derive(Debug)]
pub struct AgeKey {
    identity: PathBuf,
    recipients: Vec<Recipient>,
}

/// The private keys in a file as `age-keygen` makes it: one a line, between blank lines and comments.
fn identities(path: &Path) -> Result<Vec<x25519::Identity>, KeyError> {
    let refused = || KeyError::NoIdentities(path.to_owned());
    let mut file = files::open(path, Access::Private, MAX_IDENTITY_FILE)?;
    // The file may grow meanwhile, a string that grew would have left copies behind.
    let limit = usize::try_from(MAX_IDENTITY_FILE).unwrap_or(usize::MAX);
    let mut text = Zeroizing::new(String::with_capacity(limit));
    (&mut file)
        .take(MAX_IDENTITY_FILE)
        .read_to_string(&mut text)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => refused(),
            _ => FileError::system("read", path)(error).into(),
        })?;
    let lines = text.lines().map(str::trim);
    let keys: Vec<x25519::Identity> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.parse().map_err(|_| refused()))
        .collect::<Result<_, _>>()?;
    match keys.is_empty() {
        true => Err(refused()),
        false => Ok(keys),
    }
}

/// The public keys that belong to the private ones in an identity file.
///
/// # Errors
/// [`KeyError::File`], [`KeyError::NoIdentities`].
pub fn recipients_of(identity: &Path) -> Result<Vec<Recipient>, KeyError> {
    let keys = identities(identity)?;
    let public = |key: &x25519::Identity| Recipient(key.to_public().to_string());
    Ok(keys.iter().map(public).collect())
}

impl AgeKey {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(identity: PathBuf, recipients: Vec<Recipient>) -> Self {
        Self {
            identity,
            recipients,
        }
    }
}

impl KeySource for AgeKey {
    fn wrap(&self, root: &Key) -> Result<Vec<u8>, KeyError> {
        if self.recipients.is_empty() {
            return Err(KeyError::NotForUs(self.identity.clone()));
        }
        let recipients: Vec<x25519::Recipient> = self
            .recipients
            .iter()
            .map(|recipient| recipient.0.parse().map_err(|_| KeyError::Damaged))
            .collect::<Result<_, _>>()?;
        let encrypt = || -> Result<Vec<u8>, std::io::Error> {
            let recipients = recipients.iter().map(|key| key as &dyn age::Recipient);
            let encryptor =
                age::Encryptor::with_recipients(recipients).map_err(std::io::Error::other)?;
            let mut wrapped = Vec::new();
            let mut writer = encryptor.wrap_output(&mut wrapped)?;
            writer.write_all(root.bytes())?;
            writer.finish()?;
            Ok(wrapped)
        };
        let wrapped = encrypt().map_err(|_| KeyError::Damaged)?;
        match self.unwrap(&wrapped) {
            Err(KeyError::Wrong(_)) => Err(KeyError::NotForUs(self.identity.clone())),
            other => other.map(|_| wrapped),
        }
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Key, KeyError> {
        let identities = identities(&self.identity)?;
        let decryptor = age::Decryptor::new(wrapped).map_err(|_| KeyError::Damaged)?;
        let mut reader = decryptor
            .decrypt(identities.iter().map(|key| key as &dyn age::Identity))
            .map_err(|error| match error {
                age::DecryptError::NoMatchingKeys => {
                    KeyError::Wrong(format!("the age identity {:?}", self.identity))
                }
                _ => KeyError::Damaged,
            })?;
        let key = Key::filled_by(|bytes| reader.read_exact(bytes).map_err(|_| KeyError::Damaged))?;
        match reader.read(&mut [0; KEY_LEN]) {
            Ok(0) => Ok(key),
            _ => Err(KeyError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use age::secrecy::ExposeSecret;

    use super::*;

    fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("private");
        path
    }

    fn identity(folder: &Path, name: &str) -> (PathBuf, Recipient) {
        let key = x25519::Identity::generate();
        let text = key.to_string();
        let text = format!("# created: today\n\n{}\n", text.expose_secret());
        let public = key.to_public().to_string();
        (
            put(folder, name, &text),
            public.parse().expect("a recipient"),
        )
    }

    #[test]
    fn test_age_every_recipient_unwraps_and_nobody_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, two, three] = ["1", "2", "3"].map(|name| identity(folder.path(), name));
        let root = Key::random().expect("a key");
        let both = vec![one.1.clone(), two.1.clone()];

        let wrapped = AgeKey::new(one.0.clone(), both.clone()).wrap(&root);
        let wrapped = wrapped.expect("wrapped");

        for path in [&one.0, &two.0] {
            let key = AgeKey::new(path.clone(), both.clone()).unwrap(&wrapped);
            assert_eq!(key.expect("the key").bytes(), root.bytes());
        }
        let other = AgeKey::new(three.0, both.clone()).unwrap(&wrapped);
        assert!(matches!(other, Err(KeyError::Wrong(_))), "{other:?}");
        assert_eq!(
            recipients_of(&one.0).expect("read"),
            std::slice::from_ref(&one.1)
        );
        let not_ours = AgeKey::new(one.0, vec![two.1]).wrap(&root);
        assert!(
            matches!(not_ours, Err(KeyError::NotForUs(_))),
            "{not_ours:?}"
        );
    }

    #[test]
    fn test_age_file_without_good_keys_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for text in ["", "# only a comment\n", "AGE-SECRET-KEY-1QQQ\n", "\u{0}\n"] {
            let path = put(folder.path(), "key", text);
            let refused = recipients_of(&path);
            assert!(
                matches!(refused, Err(KeyError::NoIdentities(_))),
                "{text:?}"
            );
        }
        let (path, _) = identity(folder.path(), "open");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("opened up");
        assert!(matches!(recipients_of(&path), Err(KeyError::File(_))));
    }

    #[test]
    fn test_recipient_that_is_none_is_not_repeated() {
        let secret = x25519::Identity::generate().to_string();
        let error = secret.expose_secret().parse::<Recipient>();
        let text = error.expect_err("refused").to_string();
        assert!(!text.contains("SECRET"), "{text}");
    }
}
