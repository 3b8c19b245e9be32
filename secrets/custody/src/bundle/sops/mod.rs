//! Bundles that sops has encrypted: read, never written.
//!
//! sops leaves the keys of a document as they are and encrypts each value by itself, under one data key, with its path
//! as additional data; a MAC over all values, in their order, keeps them from being removed or exchanged. This is a
//! reader of our own: `rops` 0.1.7, the crate for it, needs a YAML crate that is not maintained any more and another version of
//! `age`, finds keys by itself in the environment and in home folders, and holds values in memory that is not wiped.

mod metadata;
mod rule;
mod value;

use sha2::{Digest, Sha512};
use zeroize::{Zeroize, Zeroizing};

use super::age::{AgeError, decrypt};
use super::node::{Entries, Node, Scalar};
use crate::identities::Identities;
use metadata::Metadata;
use rule::Rule;
use value::Cipher;

/// Key of a document under which sops has its own.
const METADATA: &str = "sops";

/// What the MAC begins with where it covers encrypted values only: the SHA-256 of `sops`, by the implementation of
/// getsops/sops (`MACOnlyEncryptedInitialization`).
const ONLY_ENCRYPTED: [u8; 32] = [
    0x8a, 0x3f, 0xd2, 0xad, 0x54, 0xce, 0x66, 0x52, 0x7b, 0x10, 0x34, 0xf3, 0xd1, 0x47, 0xbe, 0x0b,
    0x0b, 0x97, 0x5b, 0x3b, 0xf4, 0x4f, 0x72, 0xc6, 0xfd, 0xad, 0xec, 0x81, 0x76, 0xf2, 0x7d, 0x69,
];

/// Why a file of sops is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SopsError {
    /// There is no metadata of sops.
    #[error("it is not encrypted")]
    NotEncrypted,
    /// The metadata has something else than belongs there.
    #[error("its sops.{0} is missing or not what sops writes: take the file from a backup")]
    Metadata(&'static str),
    /// Several groups of keys.
    #[error(
        "its data key is split among groups of keys, which is not supported: encrypt it without key groups"
    )]
    KeyGroups,
    /// Rules that speak of comments.
    #[error(
        "comments decide which of its values are encrypted, which is not supported: use encrypted_regex or a suffix"
    )]
    CommentRule,
    /// More than one rule.
    #[error("it has more than one rule of which values are encrypted: sops allows one")]
    Rules,
    /// A regular expression that is none.
    #[error("its sops.{0} is not a regular expression that can be used: correct it with sops")]
    Regex(&'static str),
    /// No age recipient.
    #[error("it is not encrypted to a key of age: add one with `sops rotate --add-age`")]
    NoAge,
    /// No key fits.
    #[error(
        "none of the private keys opens it: it was encrypted to others; name the key file that belongs to it"
    )]
    WrongKey,
    /// The data key cannot be had.
    #[error("its data key is damaged: take the file from a backup")]
    DataKey,
    /// A value that is not as sops writes it.
    #[error(
        "{0} is not a value that sops has encrypted: it was changed by hand or by somebody else"
    )]
    Form(String),
    /// A value that is not authentic.
    #[error("{0} was changed since sops encrypted it: take the file from a backup")]
    Value(String),
    /// The MAC is not authentic.
    #[error("its MAC or its time was changed since sops wrote it: take the file from a backup")]
    Mac,
    /// The MAC is of other values.
    #[error(
        "its MAC does not match: values were added, removed, exchanged or changed since sops wrote it; take the file from a backup"
    )]
    MacMismatch,
}

/// What was in a file of sops.
#[derive(Debug)]
pub struct Opened {
    /// The document.
    pub document: Node,
    /// Values that are neither encrypted nor covered by the MAC (`mac_only_encrypted`).
    pub unauthenticated: usize,
}

/// Decrypts what was read of a file of sops, and verifies its MAC.
///
/// # Errors
/// See [`SopsError`].
pub fn open(node: Node, identities: &Identities) -> Result<Opened, SopsError> {
    let Node::Map(mut document) = node else {
        return Err(SopsError::NotEncrypted);
    };
    let at = document
        .iter()
        .position(|(key, _)| key.expose() == METADATA);
    let Node::Map(metadata) = document.remove(at.ok_or(SopsError::NotEncrypted)?).1 else {
        return Err(SopsError::NotEncrypted);
    };
    let metadata = Metadata::parse(&metadata)?;
    let cipher = Cipher::new(&data_key(&metadata, identities)?).ok_or(SopsError::DataKey)?;

    let mut walk = Walk {
        cipher: &cipher,
        rule: &metadata.rule,
        only_encrypted: metadata.mac_only_encrypted,
        mac: Sha512::new(),
        path: Vec::new(),
        unauthenticated: 0,
    };
    if metadata.mac_only_encrypted {
        walk.mac.update(ONLY_ENCRYPTED);
    }
    walk.entries(&mut document)?;

    let (found, _) = cipher
        .open(&metadata.mac, &metadata.last_modified)
        .map_err(|_| SopsError::Mac)?;
    let computed: String = walk
        .mac
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    // What is compared is authentic: there is nobody to learn from how long it takes.
    if found.as_slice() != computed.as_bytes() {
        return Err(SopsError::MacMismatch);
    }
    Ok(Opened {
        document: Node::Map(document),
        unauthenticated: walk.unauthenticated,
    })
}

/// The key of the values, of the first of its copies that one of the private keys opens.
fn data_key(metadata: &Metadata, identities: &Identities) -> Result<Zeroizing<Vec<u8>>, SopsError> {
    let mut failure = SopsError::WrongKey;
    for wrapped in &metadata.age {
        match decrypt(wrapped.as_bytes(), identities) {
            Ok(opened) => return Ok(opened.plain),
            Err(AgeError::WrongKey) => {}
            Err(_) => failure = SopsError::DataKey,
        }
    }
    Err(failure)
}

/// The way through a document, in the order of its text.
struct Walk<'a> {
    cipher: &'a Cipher,
    rule: &'a Rule,
    only_encrypted: bool,
    mac: Sha512,
    path: Vec<String>,
    unauthenticated: usize,
}

impl Walk<'_> {
    fn entries(&mut self, entries: &mut Entries) -> Result<(), SopsError> {
        for (key, node) in entries {
            // Keys are not secret: sops leaves them readable.
            self.path.push(key.expose().to_owned());
            self.node(node)?;
            self.path.pop();
        }
        Ok(())
    }

    fn node(&mut self, node: &mut Node) -> Result<(), SopsError> {
        match node {
            Node::Map(entries) => self.entries(entries),
            // What is in a list has the path of the list.
            Node::List(nodes) => nodes.iter_mut().try_for_each(|node| self.node(node)),
            null if null.is_null() => Ok(()),
            Node::Scalar(scalar) => self.scalar(scalar),
        }
    }

    fn scalar(&mut self, scalar: &mut Scalar) -> Result<(), SopsError> {
        if !self.rule.encrypts(&self.path) {
            match self.only_encrypted {
                true => self.unauthenticated += 1,
                false => {
                    let mut bytes = value::canonical(scalar);
                    self.mac.update(&bytes);
                    bytes.zeroize();
                }
            }
            // The MAC covers what it means: how it is spelled, whoever can write the file chooses.
            if let Some(text) = value::spelling(scalar) {
                scalar.text = text.into();
            }
            return Ok(());
        }
        // An empty text is not encrypted; the MAC notices one that takes the place of a value.
        if scalar.text.expose().is_empty() {
            return Ok(());
        }
        let associated = format!("{}:", self.path.join(":"));
        let opened = self.cipher.open(scalar.text.expose(), &associated);
        let (bytes, kind) = opened.map_err(|error| match error {
            value::OpenError::Form => SopsError::Form(self.place()),
            value::OpenError::NotAuthentic => SopsError::Value(self.place()),
        })?;
        let node = kind
            .scalar(bytes)
            .ok_or_else(|| SopsError::Form(self.place()))?;
        self.mac.update(value::canonical(&node));
        *scalar = node;
        Ok(())
    }

    /// The path, if it looks like one.
    fn place(&self) -> String {
        let word = |key: &String| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            (1..=64).contains(&key.len()) && key.bytes().all(allowed)
        };
        match self.path.iter().all(word) {
            true => self.path.join("."),
            false => "a value".to_owned(),
        }
    }
}
