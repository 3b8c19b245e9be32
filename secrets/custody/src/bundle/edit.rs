//! Changes of bundles: the whole file is read, changed, encrypted again and put in the place of the old one.
//!
//! An age file does not say to whom it is encrypted. So that a change does not lock anybody out, the public keys are
//! written down inside, as `metadata.age_recipients`: there nobody else sees or alters them, and they cannot come apart from the
//! bundle as a file beside it could. A file that `age` itself has made has no such entry: it can be changed if
//! it is encrypted to one key only, which then is the one that has opened it.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::age::{Readers, encrypt};
use super::document::{Document, DocumentError, Field, KeyName};
use super::lookup::{Bundles, Format, MAX_FILE_LEN};
use super::node::{Entries, Node, SecretText};
use super::{BundleError, BundleName};
use crate::files::{self, Access, Existing, FileError};
use crate::identities::{Identities, Recipient};

/// Key of `metadata` that has the public keys, with commas.
const RECIPIENTS: &str = "age_recipients";

/// File whose lock makes writers of a folder's bundles take turns.
const LOCK: &str = ".bundles.lock";

/// Why a bundle cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is one of sops, or plaintext.
    #[error(
        "it is not an age file, and only those are changed: use `sops edit` for one of sops, and an editor for plaintext"
    )]
    NotAge,
    /// It is not known for whom to encrypt it again: it names no keys, another number of them, or not the one that opens it.
    #[error(
        "it is encrypted to {0} keys and does not say, or not rightly, to which: name all of them once with \
         `cachot bundle reencrypt`"
    )]
    RecipientsUnknown(usize),
    /// It is encrypted to others than X25519 keys.
    #[error(
        "it is encrypted to {0} recipients that are not keys of age-keygen (of ssh, of a plugin), to which cachot encrypts \
         nothing: change it with `age`, or leave them out with `cachot bundle reencrypt`"
    )]
    OtherRecipients(usize),
    /// No recipient.
    #[error("nobody is to read it: name a recipient")]
    NoRecipients,
    /// A part that has no such entry.
    #[error("it has no ssh key {0}: `cachot bundle show` lists those that there are")]
    NoSshKey(KeyName),
    /// A part that is there.
    #[error("it has an ssh key {0} already: remove that one first")]
    SshKeyExists(KeyName),
    /// Not a private key.
    #[error(
        "what was given is not a private key in PEM form: give the file as ssh-keygen makes it, from its BEGIN to its END line"
    )]
    NotAPrivateKey,
    /// It would be too long.
    #[error("it would not be a bundle any more: {0}")]
    Document(DocumentError),
}

/// A bundle that was written.
#[derive(Debug)]
pub struct Written {
    /// Its file.
    pub path: PathBuf,
    /// Who can read it.
    pub recipients: Vec<Recipient>,
}

impl Bundles {
    /// Encrypts a document to `recipients`, or without any to the keys of the own key file, as the new bundle `name`.
    ///
    /// # Errors
    /// See [`BundleError`]; the bundle must not be there, unless it may be replaced.
    pub fn encrypt(
        &self,
        name: &BundleName,
        document: Document,
        recipients: &[Recipient],
        replace: bool,
    ) -> Result<Written, BundleError> {
        files::private_folder(&self.folder)?;
        let _turn = self.lock()?;
        let existing = match replace {
            true => Existing::Replace,
            false => Existing::Keep,
        };
        // A new age file would hide one of sops, whose name comes later.
        if !replace && let Some(path) = self.encrypted_path(name)? {
            return Err(FileError::Exists(path).into());
        }
        let recipients = match recipients.is_empty() {
            true => Identities::load(&self.key)?.recipients(),
            false => recipients.to_vec(),
        };
        self.write(name, document, recipients, existing)
    }

    /// Waits for the turn of this process among those that change bundles.
    fn lock(&self) -> Result<File, BundleError> {
        files::trusted_folder(&self.folder)?;
        let path = self.folder.join(LOCK);
        Ok(files::lock(&path)?)
    }

    /// Encrypts a bundle to these keys and to no other.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn reencrypt(
        &self,
        name: &BundleName,
        recipients: &[Recipient],
    ) -> Result<Written, BundleError> {
        let _turn = self.lock()?;
        let opened = self.open(name)?;
        if opened.format != Format::Age {
            return Err(edit_error(&opened.path, EditError::NotAge));
        }
        let recipients = match recipients.is_empty() {
            true => Identities::load(&self.key)?.recipients(),
            false => recipients.to_vec(),
        };
        self.write(name, opened.document, recipients, Existing::Replace)
    }

    /// Changes a bundle.
    ///
    /// # Errors
    /// See [`BundleError`]; the old one stays then.
    pub fn edit(
        &self,
        name: &BundleName,
        change: impl FnOnce(&mut Document) -> Result<(), EditError>,
    ) -> Result<Written, BundleError> {
        let _turn = self.lock()?;
        let opened = self.open(name)?;
        let failed = |error| edit_error(&opened.path, error);
        let Some(Readers { own, keys, others }) = opened.readers else {
            return Err(failed(EditError::NotAge));
        };
        if others > 0 {
            return Err(failed(EditError::OtherRecipients(others)));
        }
        let mut document = opened.document;
        let recipients = match document.recipients() {
            None if keys == 1 => vec![own],
            Some(named) if named.len() == keys && named.contains(&own) => named,
            _ => return Err(failed(EditError::RecipientsUnknown(keys))),
        };
        change(&mut document).map_err(failed)?;
        self.write(name, document, recipients, Existing::Replace)
    }

    fn write(
        &self,
        name: &BundleName,
        mut document: Document,
        mut recipients: Vec<Recipient>,
        existing: Existing,
    ) -> Result<Written, BundleError> {
        let path = self.age_path(name);
        distinct(&mut recipients);
        if recipients.is_empty() {
            return Err(edit_error(&path, EditError::NoRecipients));
        }
        document.set_recipients(&recipients);
        let text = document.to_yaml();
        // What is written can be read again.
        Document::parse(text.as_bytes())
            .map_err(|error| edit_error(&path, EditError::Document(error)))?;
        files::write(&path, existing, |file| {
            encrypt(text.as_bytes(), &recipients, file)
        })?;
        Ok(Written { path, recipients })
    }
}

/// Sorts keys, and leaves out those that are there already.
fn distinct(keys: &mut Vec<Recipient>) {
    keys.sort_by_key(ToString::to_string);
    keys.dedup();
}

fn edit_error(path: &Path, error: EditError) -> BundleError {
    BundleError::Edit {
        path: path.to_owned(),
        error,
    }
}

/// Sets a key of a mapping, in its place if it is there.
fn set(entries: &mut Entries, key: &str, node: Node) {
    match entries.iter_mut().find(|(name, _)| name.expose() == key) {
        Some((_, old)) => *old = node,
        None => entries.push((key.into(), node)),
    }
}

/// The mapping at a key, made where there is none.
fn section<'a>(entries: &'a mut Entries, key: &str) -> &'a mut Entries {
    let at = entries.iter().position(|(name, _)| name.expose() == key);
    let at = at.unwrap_or_else(|| {
        entries.push((key.into(), Node::Map(Entries::new())));
        entries.len() - 1
    });
    let node = &mut entries[at].1;
    // A document that was checked has a mapping there, or nothing.
    if !matches!(node, Node::Map(_)) {
        *node = Node::Map(Entries::new());
    }
    match node {
        Node::Map(entries) => entries,
        _ => unreachable!("it was made one above"),
    }
}

impl Document {
    /// Reads a file that is not encrypted, to encrypt it.
    ///
    /// # Errors
    /// [`BundleError::File`] or [`BundleError::Document`].
    pub fn read_plaintext(path: &Path) -> Result<Self, BundleError> {
        let text = files::read(path, Access::Trusted, MAX_FILE_LEN)?;
        Self::parse(&text).map_err(|error| BundleError::Document {
            path: path.to_owned(),
            error,
        })
    }

    /// Sets a text of `env`, `git` or `artifact`, or `claude.settings_json`.
    pub fn set(&mut self, field: &Field, value: SecretText) {
        let (name, key) = match field {
            Field::GitUsername => ("git", "username"),
            Field::GitToken => ("git", "token"),
            Field::GitSshPrivateKey => ("git", "ssh_private_key"),
            Field::GitSshPublicKey => ("git", "ssh_public_key"),
            Field::GitKnownHosts => ("git", "known_hosts"),
            Field::Env(name) => ("env", name.as_str()),
            Field::ArtifactEndpoint => ("artifact", "endpoint"),
            Field::ArtifactToken => ("artifact", "token"),
            Field::ClaudeSettings => ("claude", "settings_json"),
            Field::SshKey(name) => {
                let keys = section(section(&mut self.root, "ssh"), "keys");
                set(section(keys, name.as_str()), "key", Node::text(value));
                return;
            }
        };
        set(section(&mut self.root, name), key, Node::text(value));
    }

    /// Sets a part of `git`.
    ///
    /// # Errors
    /// [`EditError::NotAPrivateKey`].
    pub fn set_git(&mut self, part: &Field, value: SecretText) -> Result<(), EditError> {
        if *part == Field::GitSshPrivateKey && !is_private_key(value.expose()) {
            return Err(EditError::NotAPrivateKey);
        }
        self.set(part, value);
        Ok(())
    }

    /// Adds a private key under a name that is free.
    ///
    /// # Errors
    /// [`EditError::SshKeyExists`] or [`EditError::NotAPrivateKey`].
    pub fn add_ssh_key(
        &mut self,
        name: &KeyName,
        key: SecretText,
        kind: Option<&str>,
        comment: Option<&str>,
    ) -> Result<(), EditError> {
        if self.value(&Field::SshKey(name.clone())).is_some() {
            return Err(EditError::SshKeyExists(name.clone()));
        }
        if !is_private_key(key.expose()) {
            return Err(EditError::NotAPrivateKey);
        }
        self.set(&Field::SshKey(name.clone()), key);
        let entry = section(
            section(section(&mut self.root, "ssh"), "keys"),
            name.as_str(),
        );
        for (part, text) in [("type", kind), ("comment", comment)] {
            if let Some(text) = text {
                set(entry, part, Node::text(text));
            }
        }
        Ok(())
    }

    /// Removes a private key.
    ///
    /// # Errors
    /// [`EditError::NoSshKey`].
    pub fn remove_ssh_key(&mut self, name: &KeyName) -> Result<(), EditError> {
        let keys = section(section(&mut self.root, "ssh"), "keys");
        let before = keys.len();
        keys.retain(|(key, _)| key.expose() != name.as_str());
        match keys.len() < before {
            true => Ok(()),
            false => Err(EditError::NoSshKey(name.clone())),
        }
    }

    /// The public keys that the bundle says it is encrypted to.
    fn recipients(&self) -> Option<Vec<Recipient>> {
        let mut metadata = self.metadata();
        let (_, keys) = metadata.find(|(key, _)| *key == RECIPIENTS)?;
        // What is no key, or is there twice, counts as one less, which is noticed.
        let keys = keys.split(',').filter_map(|key| key.trim().parse().ok());
        let mut keys = keys.collect();
        distinct(&mut keys);
        Some(keys)
    }

    fn set_recipients(&mut self, recipients: &[Recipient]) {
        let text = recipients
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
        set(
            section(&mut self.root, "metadata"),
            RECIPIENTS,
            Node::text(text),
        );
    }
}

fn is_private_key(text: &str) -> bool {
    let mut lines = text.trim().lines();
    let (first, last) = (
        lines.next().unwrap_or_default(),
        lines.next_back().unwrap_or_default(),
    );
    first.starts_with("-----BEGIN ")
        && first.ends_with("PRIVATE KEY-----")
        && last.strip_prefix("-----END ") == first.strip_prefix("-----BEGIN ")
}
