//! A root key as an age file (age-encryption.org/v1) to several recipients.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{KeyError, KeySource};
use crate::crypto::{KEY_LEN, Key};
use crate::identities::{Identities, Recipient};

/// An age file to these recipients, read with this identity file.
#[derive(Debug)]
pub struct AgeKey {
    identity: PathBuf,
    recipients: Vec<Recipient>,
}

/// The public keys that belong to the private ones in an identity file.
///
/// # Errors
/// [`KeyError::Identity`].
pub fn recipients_of(identity: &Path) -> Result<Vec<Recipient>, KeyError> {
    Ok(Identities::load(identity)?.recipients())
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
        let encrypt = || -> Result<Vec<u8>, std::io::Error> {
            let recipients = self.recipients.iter().map(Recipient::as_age);
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
        let identities = Identities::load(&self.identity)?;
        let decryptor = age::Decryptor::new(wrapped).map_err(|_| KeyError::Damaged)?;
        let mut reader = decryptor
            .decrypt(
                identities
                    .keys()
                    .iter()
                    .map(|key| key as &dyn age::Identity),
            )
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
    use age::x25519;

    use super::*;
    use crate::identities::IdentityError;

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
                matches!(
                    refused,
                    Err(KeyError::Identity(
                        IdentityError::Empty(_) | IdentityError::Line { .. }
                    ))
                ),
                "{text:?}"
            );
        }
        let (path, _) = identity(folder.path(), "open");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("opened up");
        assert!(matches!(
            recipients_of(&path),
            Err(KeyError::Identity(IdentityError::File(_)))
        ));
    }

    #[test]
    fn test_recipient_that_is_none_is_not_repeated() {
        let secret = x25519::Identity::generate().to_string();
        let error = secret.expose_secret().parse::<Recipient>();
        let text = error.expect_err("refused").to_string();
        assert!(!text.contains("SECRET"), "{text}");
    }
}
