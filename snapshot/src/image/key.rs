//! Who signs images, and whose images are used: the host's Ed25519 key and the trusted ones.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::chunk::{DIGEST_LEN, Digest};
use super::error::ImageError;
use super::folder;
use super::manifest::ImageId;

/// Name of the host key in the state folder: 32 bytes, the seed of an Ed25519 key (RFC 8032), mode 0600.
pub const HOST_KEY_FILE: &str = "host-key";

/// Name of the folder of trusted keys in the state folder.
pub const TRUSTED_KEYS_FOLDER: &str = "trusted-keys";

/// Longest file of a trusted key, in bytes: the digits and some white space.
const MAX_TRUSTED_KEY_LEN: u64 = 128;

const SEED_LEN: usize = 32;

/// What a signature file begins with.
const SIGNATURE_MAGIC: &[u8; 8] = b"cachot\x00\x01";

/// Bytes of a signature file: magic, public key, signature.
pub(super) const SIGNATURE_FILE_LEN: usize = SIGNATURE_MAGIC.len() + 32 + 64;

/// Put in front of the manifest before it is signed, so that a signature that the host key makes for
/// another purpose is never one of a manifest.
const SIGNATURE_CONTEXT: &str = "cachot image manifest v1";

/// Context of the key that commitments to needles are made with (BLAKE3's `derive_key`).
const COMMITMENT_CONTEXT: &str = "cachot image needle commitments v1";

/// An Ed25519 public key: says which host made an image. 64 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(#[serde(with = "hex::serde")] [u8; 32]);

impl PublicKey {
    /// The key as RFC 8032 writes it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// The key that this host signs its images with; wiped on drop.
pub struct HostKey(SigningKey);

impl HostKey {
    /// The key of this state folder; made, with the folder, if there is none yet.
    ///
    /// # Errors
    /// [`ImageError::Refused`] or [`ImageError::KeyLength`] if there is a file that is not a key of this
    /// user alone (it is never replaced), or [`ImageError::System`].
    pub fn load_or_create(state: &Path) -> Result<Self, ImageError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .map_err(ImageError::system("create the folder", state))?;
        let state_folder = folder::open_private(state)?;
        if let Some(key) = Self::load_from(&state_folder, state)? {
            return Ok(key);
        }
        // Two commands that start at the same time make one key.
        rustix::fs::flock(&state_folder, FlockOperation::LockExclusive)
            .map_err(ImageError::system("lock", state))?;
        if let Some(key) = Self::load_from(&state_folder, state)? {
            return Ok(key);
        }
        let path = state.join(HOST_KEY_FILE);
        let mut seed = Zeroizing::new([0; SEED_LEN]);
        folder::random(&mut *seed).map_err(ImageError::system("make", &path))?;
        // A writer that was killed leaves at most this file, which the next one overwrites.
        let temporary = "host-key.new";
        let create = || -> io::Result<()> {
            let flags = OFlags::WRONLY
                | OFlags::CREATE
                | OFlags::TRUNC
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let mut file = File::from(rustix::fs::openat(&state_folder, temporary, flags, mode)?);
            rustix::fs::fchmod(&file, mode)?;
            file.write_all(&*seed)?;
            file.sync_all()?;
            rustix::fs::renameat_with(
                &state_folder,
                temporary,
                &state_folder,
                HOST_KEY_FILE,
                RenameFlags::NOREPLACE,
            )?;
            rustix::fs::fsync(&state_folder)?;
            Ok(())
        };
        create().map_err(ImageError::system("make", &path))?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The key of this state folder, if there is one yet.
    ///
    /// # Errors
    /// As [`Self::load_or_create`].
    pub fn load(state: &Path) -> Result<Option<Self>, ImageError> {
        match folder::open_private(state) {
            Err(error) if error.is_not_found() => Ok(None),
            other => Self::load_from(&other?, state),
        }
    }

    /// The key in this folder, if there is one.
    fn load_from(
        state_folder: &impl std::os::fd::AsFd,
        state: &Path,
    ) -> Result<Option<Self>, ImageError> {
        let path = state.join(HOST_KEY_FILE);
        let file = match folder::open_file(state_folder, HOST_KEY_FILE, &path) {
            Err(ImageError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            other => other?,
        };
        let stat = rustix::fs::fstat(&file).map_err(ImageError::system("examine", &path))?;
        if stat.st_mode & 0o077 != 0 {
            return Err(ImageError::Refused {
                path,
                what: "a private key that others can read or write: `chmod 600` it, and make a new one if they may have read it",
            });
        }
        let mut seed = Zeroizing::new([0; SEED_LEN + 1]);
        let read =
            folder::read_up_to(&file, &mut *seed).map_err(ImageError::system("read", &path))?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        if read != SEED_LEN || length != SEED_LEN as u64 {
            return Err(ImageError::KeyLength {
                path,
                found: length,
            });
        }
        let mut exact = Zeroizing::new([0; SEED_LEN]);
        exact.copy_from_slice(&seed[..SEED_LEN]);
        Ok(Some(Self(SigningKey::from_bytes(&exact))))
    }

    /// What others put into their `trusted-keys`.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The key of the commitments in one image ([`commitments`]): who has only the image cannot try
    /// values against them; this host can.
    #[must_use]
    pub fn commitment_key(&self, id: &ImageId) -> Zeroizing<[u8; 32]> {
        let mut hasher = blake3::Hasher::new_derive_key(COMMITMENT_CONTEXT);
        hasher.update(self.0.as_bytes());
        hasher.update(id.as_bytes());
        Zeroizing::new(*hasher.finalize().as_bytes())
    }

    /// Signs something else than a manifest. `context` says what for, on one line; signatures of one context are
    /// never of another, nor of a manifest.
    #[must_use]
    pub fn sign_for(&self, context: &'static str, message: &[u8]) -> [u8; 64] {
        self.0.sign(&message_of(context, message)).to_bytes()
    }

    /// The signature file of a manifest.
    pub(super) fn sign(&self, manifest: &[u8]) -> Vec<u8> {
        let signature = self.0.sign(&signed_message(manifest));
        let mut file = SIGNATURE_MAGIC.to_vec();
        file.extend(self.public().0);
        file.extend(signature.to_bytes());
        file
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.public())
    }
}

/// What goes into the part `needles`: a keyed BLAKE3 digest of each value, sorted, so that it does not
/// tell their order.
#[must_use]
pub fn commitments<'a>(key: &[u8; 32], values: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut digests: Vec<Digest> = values
        .map(|value| Digest::from(*blake3::keyed_hash(key, value).as_bytes()))
        .collect();
    digests.sort_unstable();
    let mut bytes = Vec::with_capacity(digests.len() * DIGEST_LEN);
    for digest in &digests {
        bytes.extend(digest.as_bytes());
    }
    bytes
}

/// The keys whose images are used.
#[derive(Debug, Clone)]
pub struct TrustedKeys(Vec<VerifyingKey>);

impl TrustedKeys {
    /// This host's own key, where it has one, and those in `trusted-keys` of the state folder: one file a
    /// key, 64 hexadecimal digits and a line feed, under any name that does not begin with a dot.
    ///
    /// # Errors
    /// [`ImageError::TrustedKey`], [`ImageError::Refused`], [`ImageError::System`], and those of the host key.
    pub fn load(state: &Path) -> Result<Self, ImageError> {
        let state_folder = match folder::open_private(state) {
            Err(error) if error.is_not_found() => return Ok(Self(Vec::new())),
            other => other?,
        };
        let own = HostKey::load_from(&state_folder, state)?;
        let mut keys: Vec<_> = own.iter().map(|key| key.0.verifying_key()).collect();

        let path = state.join(TRUSTED_KEYS_FOLDER);
        let trusted = match folder::open_private(&path) {
            Err(error) if error.is_not_found() => return Ok(Self(keys)),
            other => other?,
        };
        for name in folder::entries(&trusted).map_err(ImageError::system("list", &path))? {
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            let path = path.join(&name);
            let file = folder::open_file(&trusted, &name, &path)?;
            let mut text = String::new();
            let refused = || ImageError::TrustedKey(path.clone());
            file.take(MAX_TRUSTED_KEY_LEN)
                .read_to_string(&mut text)
                .map_err(|_| refused())?;
            let bytes = <[u8; 32] as hex::FromHex>::from_hex(text.trim()).map_err(|_| refused())?;
            keys.push(trusted_key(&bytes).ok_or_else(refused)?);
        }
        Ok(Self(keys))
    }

    /// Only this key.
    ///
    /// # Errors
    /// [`ImageError::TrustedKey`] if it is not a point that can sign.
    pub fn only(key: &PublicKey) -> Result<Self, ImageError> {
        let key =
            trusted_key(&key.0).ok_or_else(|| ImageError::TrustedKey(key.to_string().into()))?;
        Ok(Self(vec![key]))
    }

    /// Whether this key is one of them.
    #[must_use]
    pub fn has(&self, key: &[u8; 32]) -> bool {
        self.0.iter().any(|trusted| trusted.as_bytes() == key)
    }

    /// Whether this key is one of them and has made this signature with [`HostKey::sign_for`].
    #[must_use]
    pub fn has_signed(
        &self,
        key: &[u8; 32],
        context: &'static str,
        message: &[u8],
        signature: &[u8; 64],
    ) -> bool {
        let trusted = self.0.iter().find(|trusted| trusted.as_bytes() == key);
        let signature = Signature::from_bytes(signature);
        let message = message_of(context, message);
        trusted.is_some_and(|key| key.verify_strict(&message, &signature).is_ok())
    }

    /// Checks a manifest, of which nothing was read before, against its signature file.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`], [`ImageError::UntrustedKey`] or [`ImageError::Signature`].
    pub(super) fn check(
        &self,
        path: &Path,
        manifest: &[u8],
        signature_file: &[u8],
    ) -> Result<PublicKey, ImageError> {
        let (key, signature) =
            split_signature_file(signature_file).ok_or_else(|| ImageError::NotAnImage {
                path: path.to_owned(),
                why: "its signature file is damaged".to_owned(),
            })?;
        let trusted = self.0.iter().find(|trusted| trusted.as_bytes() == key);
        let untrusted = || ImageError::UntrustedKey {
            path: path.to_owned(),
            key: PublicKey(*key),
        };
        trusted
            .ok_or_else(untrusted)?
            .verify_strict(&signed_message(manifest), &Signature::from_bytes(signature))
            .map_err(|_| ImageError::Signature(path.to_owned()))?;
        Ok(PublicKey(*key))
    }
}

/// Whether this is the file of a signature, of whatever key.
pub(super) fn is_signature_file(bytes: &[u8]) -> bool {
    split_signature_file(bytes).is_some()
}

fn split_signature_file(bytes: &[u8]) -> Option<(&[u8; 32], &[u8; 64])> {
    let rest = bytes.strip_prefix(SIGNATURE_MAGIC)?;
    let (key, signature) = rest.split_first_chunk::<32>()?;
    Some((key, signature.try_into().ok()?))
}

fn signed_message(manifest: &[u8]) -> Vec<u8> {
    message_of(SIGNATURE_CONTEXT, manifest)
}

/// What is signed: the context, a line feed, the message.
fn message_of(context: &str, message: &[u8]) -> Vec<u8> {
    debug_assert!(!context.contains('\n'), "a context is one line");
    [context.as_bytes(), b"\n", message].concat()
}

/// A key that only its owner can sign with: not one of the points of small order.
fn trusted_key(bytes: &[u8; 32]) -> Option<VerifyingKey> {
    let key = VerifyingKey::from_bytes(bytes).ok()?;
    (!key.is_weak()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    /// A state folder with a key.
    fn state() -> (tempfile::TempDir, PathBuf, HostKey) {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        let key = HostKey::load_or_create(&state).expect("made");
        (folder, state, key)
    }

    #[test]
    fn test_signature_is_of_its_context_message_and_key_only() {
        let (_folder, state, key) = state();
        let trusted = TrustedKeys::load(&state).expect("loaded");
        let public = key.public().0;
        let signature = key.sign_for("one", b"message");
        let has_signed =
            |context, message: &[u8]| trusted.has_signed(&public, context, message, &signature);
        assert!(trusted.has(&public) && has_signed("one", b"message"));
        assert!(!has_signed("other", b"message"));
        assert!(!has_signed("one", b"massage"));
        let other = TrustedKeys(Vec::new());
        assert!(!other.has(&public) && !other.has_signed(&public, "one", b"message", &signature));
    }

    #[test]
    fn test_host_key_is_made_once_and_private() {
        let (_folder, state, key) = state();
        let again = HostKey::load_or_create(&state).expect("loaded");
        assert_eq!(key.public(), again.public());
        let names: Vec<_> = fs::read_dir(&state).expect("a folder").collect();
        assert_eq!(names.len(), 1);
        let metadata = fs::metadata(state.join(HOST_KEY_FILE)).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert_eq!(metadata.len(), 32);
    }

    #[test]
    fn test_host_key_that_is_only_loaded_is_not_made() {
        let (folder, state, key) = state();
        let none = folder.path().join("none");
        assert!(HostKey::load(&none).expect("no key").is_none());
        assert!(!none.exists());
        let loaded = HostKey::load(&state).expect("loaded").expect("a key");
        assert_eq!(loaded.public(), key.public());
    }

    #[test]
    fn test_commands_that_start_together_make_one_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let make = || HostKey::load_or_create(&state).expect("a key").public();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("ended");
            threads.into_iter().map(join).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }

    #[test]
    fn test_what_a_killed_command_left_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("host-key.new"), "short").expect("written");
        let key = HostKey::load_or_create(folder.path()).expect("made");
        let again = HostKey::load_or_create(folder.path()).expect("loaded");
        assert_eq!(key.public(), again.public());
    }

    #[test]
    fn test_damaged_host_key_is_refused_and_never_replaced() {
        let (_folder, state, _) = state();
        let path = state.join(HOST_KEY_FILE);
        for len in [0, 1, 31, 33, 64] {
            fs::write(&path, vec![1; len]).expect("written");
            let refused = HostKey::load_or_create(&state);
            assert!(
                matches!(refused, Err(ImageError::KeyLength { found, .. }) if found == len as u64),
                "{len}: {refused:?}"
            );
            assert!(TrustedKeys::load(&state).is_err());
            assert_eq!(fs::read(&path).expect("there"), vec![1; len]);
        }
    }

    #[test]
    fn test_host_key_that_is_not_this_users_alone_is_refused() {
        let (_folder, state, key) = state();
        let path = state.join(HOST_KEY_FILE);
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610] {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("opened up");
            let refused = HostKey::load_or_create(&state);
            assert!(
                matches!(refused, Err(ImageError::Refused { .. })),
                "{mode:o}: {refused:?}"
            );
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).expect("closed");
        let again = HostKey::load_or_create(&state).expect("loaded");
        assert_eq!(key.public(), again.public());

        let aside = state.join("aside");
        fs::rename(&path, &aside).expect("moved");
        symlink(&aside, &path).expect("linked");
        let refused = HostKey::load_or_create(&state);
        assert!(
            matches!(refused, Err(ImageError::Refused { .. })),
            "{refused:?}"
        );

        fs::set_permissions(&state, PermissionsExt::from_mode(0o777)).expect("opened up");
        let refused = HostKey::load_or_create(&state);
        assert!(
            matches!(refused, Err(ImageError::Refused { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn test_trusted_keys_that_are_none_are_refused_by_name() {
        let (_folder, state, key) = state();
        let keys = state.join(TRUSTED_KEYS_FOLDER);
        fs::create_dir(&keys).expect("made");
        fs::write(keys.join(".note"), "ignored").expect("written");
        let file = keys.join("a");
        let good = key.public().to_string();
        // A point of small order: anybody can make signatures that it accepts.
        let weak = format!("01{}", "0".repeat(62));
        let long = " ".repeat(200) + &good;
        for text in ["", "x", &good[1..], &(good.clone() + "00"), &weak, &long] {
            fs::write(&file, text).expect("written");
            let refused = TrustedKeys::load(&state);
            assert!(
                matches!(&refused, Err(ImageError::TrustedKey(path)) if *path == file),
                "{text:?}: {refused:?}"
            );
        }
        fs::write(&file, good + "\n").expect("written");
        assert_eq!(TrustedKeys::load(&state).expect("loaded").0.len(), 2);
    }

    #[test]
    fn test_without_a_state_folder_nobody_is_trusted() {
        let folder = tempfile::tempdir().expect("a folder");
        let none = TrustedKeys::load(&folder.path().join("none")).expect("loaded");
        assert!(none.0.is_empty());
        assert!(!folder.path().join("none").exists());
    }

    #[test]
    fn test_signature_of_other_bytes_by_the_same_key_is_none_of_a_manifest() {
        let (_folder, _, key) = state();
        let trusted = TrustedKeys::only(&key.public()).expect("a key");
        let manifest = b"{}";
        let mut file = key.sign(manifest);
        trusted
            .check(Path::new("x"), manifest, &file)
            .expect("signed");
        let bare = key.0.sign(manifest).to_bytes();
        file[SIGNATURE_FILE_LEN - 64..].copy_from_slice(&bare);
        let refused = trusted.check(Path::new("x"), manifest, &file);
        assert!(
            matches!(refused, Err(ImageError::Signature(_))),
            "{refused:?}"
        );
    }

    #[test]
    fn test_commitments_depend_on_key_image_and_value_but_not_on_order() {
        let (_folder, _, key) = state();
        let (_other_folder, _, other) = state();
        let ids = [
            ImageId::random().expect("an id"),
            ImageId::random().expect("an id"),
        ];
        let commit = |key: &HostKey, id, values: [&[u8]; 2]| {
            commitments(&key.commitment_key(id), values.into_iter())
        };
        let first = commit(&key, &ids[0], [b"one", b"two"]);
        assert_eq!(first.len(), 2 * DIGEST_LEN);
        assert_eq!(first, commit(&key, &ids[0], [b"two", b"one"]));
        assert_ne!(first, commit(&key, &ids[0], [b"one", b"tw0"]));
        assert_ne!(first, commit(&key, &ids[1], [b"one", b"two"]));
        assert_ne!(first, commit(&other, &ids[0], [b"one", b"two"]));
    }

    #[test]
    fn test_debug_does_not_show_the_private_key() {
        let (_folder, state, key) = state();
        let seed = fs::read(state.join(HOST_KEY_FILE)).expect("read");
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("HostKey({})", key.public()));
        assert!(!shown.contains(&hex::encode(seed)));
    }
}
