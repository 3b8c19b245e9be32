//! What sops writes down about a document, under its key `sops`.

use regex::{Regex, RegexBuilder};

use super::super::node::{Entries, Node, Resolved, get};
use super::SopsError;
use super::rule::Rule;

/// Suffix of keys whose values are not encrypted, if nothing else is said.
const DEFAULT_SUFFIX: &str = "_unencrypted";

/// Most copies of the data key that are tried.
const MAX_RECIPIENTS: usize = 256;

/// Most bytes of a regular expression once it is compiled: megabytes of it would only cost time.
const MAX_REGEX: usize = 1 << 20;

/// The part of it that readers need.
#[derive(Debug)]
pub struct Metadata {
    /// The data key, encrypted to one recipient each: age files in ASCII armour.
    pub age: Vec<String>,
    /// When it was written (RFC 3339): the additional data of the MAC.
    pub last_modified: String,
    /// The MAC, encrypted.
    pub mac: String,
    /// Whether the MAC covers encrypted values only.
    pub mac_only_encrypted: bool,
    /// Which values are encrypted.
    pub rule: Rule,
}

impl Metadata {
    /// Reads it.
    ///
    /// # Errors
    /// See [`SopsError`].
    pub fn parse(entries: &Entries) -> Result<Self, SopsError> {
        let is_there = |key| get(entries, key).is_some_and(|node| !is_empty(node));
        if is_there("key_groups") || is_there("shamir_threshold") {
            return Err(SopsError::KeyGroups);
        }
        if is_there("encrypted_comment_regex") || is_there("unencrypted_comment_regex") {
            return Err(SopsError::CommentRule);
        }
        Ok(Self {
            age: age(entries)?,
            last_modified: text(entries, "lastmodified")?
                .ok_or(SopsError::Metadata("lastmodified"))?,
            mac: text(entries, "mac")?.ok_or(SopsError::Metadata("mac"))?,
            mac_only_encrypted: match get(entries, "mac_only_encrypted") {
                None => false,
                Some(Node::Scalar(scalar)) => match scalar.resolve() {
                    Resolved::Bool(value) => value,
                    _ => return Err(SopsError::Metadata("mac_only_encrypted")),
                },
                Some(_) => return Err(SopsError::Metadata("mac_only_encrypted")),
            },
            rule: rule(entries)?,
        })
    }
}

fn is_empty(node: &Node) -> bool {
    match node {
        Node::List(nodes) => nodes.is_empty(),
        Node::Scalar(scalar) => matches!(
            scalar.resolve(),
            Resolved::Null | Resolved::Int(0) | Resolved::Text("")
        ),
        Node::Map(_) => false,
    }
}

fn age(entries: &Entries) -> Result<Vec<String>, SopsError> {
    let wrong = SopsError::Metadata("age");
    let list = match get(entries, "age") {
        None => return Err(SopsError::NoAge),
        Some(node) if is_empty(node) => return Err(SopsError::NoAge),
        Some(Node::List(list)) if list.len() <= MAX_RECIPIENTS => list,
        Some(_) => return Err(wrong),
    };
    let wrapped = list.iter().map(|node| match node {
        Node::Map(recipient) => text(recipient, "enc")?.ok_or(SopsError::Metadata("age")),
        _ => Err(wrong.clone()),
    });
    wrapped.collect()
}

/// A text that is not empty.
fn text(entries: &Entries, key: &'static str) -> Result<Option<String>, SopsError> {
    match get(entries, key) {
        None => Ok(None),
        Some(Node::Scalar(scalar)) => {
            let text = scalar.text.expose();
            let none = text.is_empty() || scalar.resolve() == Resolved::Null;
            Ok((!none).then(|| text.to_owned()))
        }
        Some(_) => Err(SopsError::Metadata(key)),
    }
}

fn rule(entries: &Entries) -> Result<Rule, SopsError> {
    let regex = |key: &'static str| -> Result<Option<Regex>, SopsError> {
        let compile = |text: String| RegexBuilder::new(&text).size_limit(MAX_REGEX).build();
        let compiled = text(entries, key)?.map(compile).transpose();
        compiled.map_err(|_| SopsError::Regex(key))
    };
    let given = [
        text(entries, "unencrypted_suffix")?.map(Rule::UnencryptedSuffix),
        text(entries, "encrypted_suffix")?.map(Rule::EncryptedSuffix),
        regex("unencrypted_regex")?.map(Rule::UnencryptedRegex),
        regex("encrypted_regex")?.map(Rule::EncryptedRegex),
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (None, _) => Ok(Rule::UnencryptedSuffix(DEFAULT_SUFFIX.to_owned())),
        (Some(rule), None) => Ok(rule),
        _ => Err(SopsError::Rules),
    }
}
