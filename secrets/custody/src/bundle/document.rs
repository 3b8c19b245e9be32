//! The document in a bundle: version 1 of agentlab's schema, checked.

use std::fmt;
use std::str::FromStr;

use cachot_secrets::Name;
use zeroize::Zeroizing;

use super::json;
use super::node::{Entries, Node, Resolved, Scalar, SecretText, get};
use super::read::{TextError, read};
use super::write::write;

/// The version that this reads. 0, or none, is the same.
const VERSION: i64 = 1;

/// Longest name of an ssh key, in bytes: with `SSH_KEY_` in front it is still a secret's name.
const MAX_KEY_NAME: usize = 64;

/// The keys of each section that are known, in the order of the specification.
const SECTIONS: [(&str, &[&str]); 7] = [
    ("version", &[]),
    ("metadata", &[]),
    (
        "git",
        &[
            "username",
            "token",
            "ssh_private_key",
            "ssh_public_key",
            "known_hosts",
        ],
    ),
    ("env", &[]),
    ("claude", &["settings_json", "settings"]),
    ("artifact", &["endpoint", "token"]),
    ("ssh", &["keys"]),
];

/// The keys of an ssh key.
const SSH_KEY: &[&str] = &["key", "type", "comment"];

/// Why a text is not a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It cannot be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A version that this does not read.
    #[error("unsupported bundle version {0}: this cachot reads version {VERSION}")]
    Version(i64),
    /// `version` is no number.
    #[error("its version is not a number: write version: {VERSION}")]
    VersionForm,
    /// Something else is there than belongs there.
    #[error("{place} is not {expected}: correct it")]
    Form {
        /// Where; never what.
        place: String,
        /// What belongs there.
        expected: &'static str,
    },
}

/// One thing in a bundle that has a value, as it is named in `bundle:NAME#section.key`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `git.username`
    GitUsername,
    /// `git.token`
    GitToken,
    /// `git.ssh_private_key`
    GitSshPrivateKey,
    /// `git.ssh_public_key`
    GitSshPublicKey,
    /// `git.known_hosts`
    GitKnownHosts,
    /// `env.KEY`
    Env(Name),
    /// `claude.settings`: the text of `settings_json`, else the JSON of `settings`.
    ClaudeSettings,
    /// `artifact.endpoint`
    ArtifactEndpoint,
    /// `artifact.token`
    ArtifactToken,
    /// `ssh.NAME`: the private key of this name under `ssh.keys`.
    SshKey(KeyName),
}

/// The name of an ssh key: 1 to 64 letters, digits and any of `_.-`, not beginning with a dot or hyphen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName(String);

/// Not the name of an ssh key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the name of an ssh key: it has 1 to {MAX_KEY_NAME} letters, digits and any of `_.-`, and begins with none of `.-`"
)]
pub struct KeyNameError;

impl KeyName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = KeyNameError;

    fn from_str(text: &str) -> Result<Self, KeyNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let good = (1..=MAX_KEY_NAME).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(allowed);
        match good {
            true => Ok(Self(text.to_owned())),
            false => Err(KeyNameError),
        }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Field {
    /// Whether its value is a secret. The others are shown.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        !matches!(
            self,
            Self::GitUsername
                | Self::GitSshPublicKey
                | Self::GitKnownHosts
                | Self::ArtifactEndpoint
        )
    }

    /// Name of the secret that its value becomes; `None` if it stays on the host.
    #[must_use]
    pub fn secret_name(&self) -> Option<String> {
        Some(match self {
            Self::GitToken => "GIT_TOKEN".to_owned(),
            Self::GitSshPrivateKey => "GIT_SSH_KEY".to_owned(),
            Self::GitKnownHosts => "GIT_KNOWN_HOSTS".to_owned(),
            Self::Env(name) => name.to_string(),
            Self::ClaudeSettings => "CLAUDE_SETTINGS".to_owned(),
            Self::ArtifactToken => "ARTIFACT_TOKEN".to_owned(),
            Self::SshKey(name) => {
                let name = name.as_str().to_ascii_uppercase();
                format!("SSH_KEY_{}", name.replace(['.', '-'], "_"))
            }
            Self::GitUsername | Self::GitSshPublicKey | Self::ArtifactEndpoint => return None,
        })
    }

    /// Whether its value is a file of lines for ssh, which does not read a last line that has no end.
    fn is_lines(&self) -> bool {
        matches!(
            self,
            Self::GitSshPrivateKey | Self::GitKnownHosts | Self::SshKey(_)
        )
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GitUsername => f.write_str("git.username"),
            Self::GitToken => f.write_str("git.token"),
            Self::GitSshPrivateKey => f.write_str("git.ssh_private_key"),
            Self::GitSshPublicKey => f.write_str("git.ssh_public_key"),
            Self::GitKnownHosts => f.write_str("git.known_hosts"),
            Self::Env(name) => write!(f, "env.{name}"),
            Self::ClaudeSettings => f.write_str("claude.settings"),
            Self::ArtifactEndpoint => f.write_str("artifact.endpoint"),
            Self::ArtifactToken => f.write_str("artifact.token"),
            Self::SshKey(name) => write!(f, "ssh.{name}"),
        }
    }
}

/// Not a place in a bundle. The text itself is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a bundle has no such place: name one of git.username, git.token, git.ssh_private_key, git.ssh_public_key, \
     git.known_hosts, env.KEY, claude.settings, artifact.endpoint, artifact.token, ssh.KEYNAME"
)]
pub struct FieldError;

impl FromStr for Field {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let (section, key) = text.split_once('.').ok_or(FieldError)?;
        Ok(match (section, key) {
            ("git", "username") => Self::GitUsername,
            ("git", "token") => Self::GitToken,
            ("git", "ssh_private_key") => Self::GitSshPrivateKey,
            ("git", "ssh_public_key") => Self::GitSshPublicKey,
            ("git", "known_hosts") => Self::GitKnownHosts,
            ("env", key) => Self::Env(key.parse().map_err(|_| FieldError)?),
            ("claude", "settings") => Self::ClaudeSettings,
            ("artifact", "endpoint") => Self::ArtifactEndpoint,
            ("artifact", "token") => Self::ArtifactToken,
            ("ssh", key) => Self::SshKey(key.parse().map_err(|_| FieldError)?),
            _ => return Err(FieldError),
        })
    }
}

/// A bundle's document. It holds all that its text had, known or not, but for comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub(super) root: Entries,
}

impl Document {
    /// Reads and checks YAML or JSON.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn parse(text: &[u8]) -> Result<Self, DocumentError> {
        Self::of_node(read(text)?)
    }

    /// Checks what was read.
    pub(super) fn of_node(node: Node) -> Result<Self, DocumentError> {
        let root = match node {
            Node::Map(root) => root,
            empty if empty.is_null() => Entries::new(),
            _ => return Err(form("the bundle", "a mapping of sections")),
        };
        let document = Self { root };
        document.check()?;
        Ok(document)
    }

    /// Its YAML.
    #[must_use]
    pub fn to_yaml(&self) -> Zeroizing<String> {
        write(&self.root)
    }

    fn check(&self) -> Result<(), DocumentError> {
        match get(&self.root, "version") {
            None => {}
            Some(Node::Scalar(scalar)) => match scalar.resolve() {
                Resolved::Null | Resolved::Int(0 | VERSION) => {}
                Resolved::Int(other) => return Err(DocumentError::Version(other)),
                _ => return Err(DocumentError::VersionForm),
            },
            Some(_) => return Err(DocumentError::VersionForm),
        }
        for (section, keys) in SECTIONS {
            let is_free = |key: &str| (section, key) == ("claude", "settings");
            for (key, node) in self.section(section)? {
                let key = key.expose();
                if section == "ssh" && key == "keys" {
                    check_ssh_keys(node)?;
                } else if section == "env" {
                    let name: Result<Name, _> = key.parse();
                    let name = name
                        .map_err(|_| form("a key of env", "the name of an environment variable"))?;
                    text_of(node, || Field::Env(name.clone()).to_string())?;
                } else if keys.contains(&key) && !is_free(key) {
                    text_of(node, || format!("{section}.{key}"))?;
                }
            }
        }
        match self
            .section("claude")
            .ok()
            .and_then(|claude| get(claude, "settings"))
        {
            None | Some(Node::Map(_)) => Ok(()),
            Some(node) if node.is_null() => Ok(()),
            Some(_) => Err(form("claude.settings", "a mapping")),
        }
    }

    /// The entries of a section; none where there is none.
    fn section(&self, name: &str) -> Result<&Entries, DocumentError> {
        static NONE: Entries = Entries::new();
        match get(&self.root, name) {
            _ if name == "version" => Ok(&NONE),
            None => Ok(&NONE),
            Some(Node::Map(entries)) => Ok(entries),
            Some(node) if node.is_null() => Ok(&NONE),
            Some(_) => Err(form(name, "a mapping")),
        }
    }

    /// The scalar at `section.key`; `None` where there is none.
    fn scalar(&self, section: &str, key: &str) -> Option<&Scalar> {
        match get(self.section(section).ok()?, key)? {
            Node::Scalar(scalar) if scalar.resolve() != Resolved::Null => Some(scalar),
            _ => None,
        }
    }

    fn ssh_keys(&self) -> &[(SecretText, Node)] {
        match self.section("ssh").ok().and_then(|ssh| get(ssh, "keys")) {
            Some(Node::Map(keys)) => keys,
            _ => &[],
        }
    }

    /// What the bundle has, in the order of the specification; what is empty is not there, but in `env`, where it is a
    /// mistake.
    #[must_use]
    pub fn fields(&self) -> Vec<Field> {
        let mut fields = vec![
            Field::GitUsername,
            Field::GitToken,
            Field::GitSshPrivateKey,
            Field::GitSshPublicKey,
            Field::GitKnownHosts,
            Field::ClaudeSettings,
            Field::ArtifactEndpoint,
            Field::ArtifactToken,
        ];
        let keys = self.ssh_keys().iter();
        fields.extend(keys.filter_map(|(name, _)| name.expose().parse().ok().map(Field::SshKey)));
        fields.retain(|field| self.value(field).is_some_and(|value| !value.is_empty()));
        let env = self.section("env").into_iter().flatten();
        fields.extend(env.filter_map(|(name, _)| name.expose().parse().ok().map(Field::Env)));
        fields
    }

    /// The value of a field; `None` where there is none.
    #[must_use]
    pub fn value(&self, field: &Field) -> Option<Zeroizing<String>> {
        let scalar = match field {
            Field::GitUsername => self.scalar("git", "username"),
            Field::GitToken => self.scalar("git", "token"),
            Field::GitSshPrivateKey => self.scalar("git", "ssh_private_key"),
            Field::GitSshPublicKey => self.scalar("git", "ssh_public_key"),
            Field::GitKnownHosts => self.scalar("git", "known_hosts"),
            Field::Env(name) => self.scalar("env", name.as_str()),
            Field::ArtifactEndpoint => self.scalar("artifact", "endpoint"),
            Field::ArtifactToken => self.scalar("artifact", "token"),
            Field::ClaudeSettings => {
                let text = self.scalar("claude", "settings_json");
                match text.filter(|text| !text.text.expose().is_empty()) {
                    Some(text) => Some(text),
                    None => return self.settings(),
                }
            }
            Field::SshKey(name) => {
                let keys = self.ssh_keys().iter();
                let mut found = keys.filter(|(key, _)| key.expose() == name.as_str());
                match found.next().map(|(_, node)| node) {
                    Some(Node::Map(key)) => match get(key, "key") {
                        Some(Node::Scalar(scalar)) => Some(scalar),
                        _ => None,
                    },
                    _ => None,
                }
            }
        };
        let text = scalar?.text.expose();
        let mut value = Zeroizing::new(String::with_capacity(text.len() + 1));
        value.push_str(text);
        if field.is_lines() && !text.is_empty() && !text.ends_with('\n') {
            value.push('\n');
        }
        Some(value)
    }

    /// `claude.settings` as JSON.
    fn settings(&self) -> Option<Zeroizing<String>> {
        match get(self.section("claude").ok()?, "settings")? {
            Node::Map(settings) => Some(json::write(settings)),
            _ => None,
        }
    }

    /// `metadata`, as far as it is text.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.section("metadata").into_iter().flatten();
        entries.filter_map(|(key, node)| match node {
            Node::Scalar(scalar) => Some((key.expose(), scalar.text.expose())),
            _ => None,
        })
    }

    /// Keys that this does not know and does not use, with how many more there are of which not even the key can be
    /// shown. They stay where they are.
    #[must_use]
    pub fn unknown_keys(&self) -> (Vec<String>, usize) {
        let mut unknown = Vec::new();
        let mut hidden = 0;
        let mut add = |section: &str, key: &str| {
            let shown = key.len() <= 32
                && !key.is_empty()
                && key
                    .bytes()
                    .all(|byte| byte == b'_' || byte.is_ascii_lowercase());
            match shown {
                true => unknown.push(format!("{section}{key}")),
                // It may be a value that was typed where the key belongs.
                false => hidden += 1,
            }
        };
        for (key, _) in &self.root {
            if !SECTIONS.iter().any(|(section, _)| *section == key.expose()) {
                add("", key.expose());
            }
        }
        for (section, keys) in SECTIONS.iter().filter(|(_, keys)| !keys.is_empty()) {
            for (key, _) in self.section(section).into_iter().flatten() {
                if !keys.contains(&key.expose()) {
                    add(&format!("{section}."), key.expose());
                }
            }
        }
        for (_, key) in self.ssh_keys() {
            if let Node::Map(entries) = key {
                for (key, _) in entries {
                    if !SSH_KEY.contains(&key.expose()) {
                        add("ssh.keys.*.", key.expose());
                    }
                }
            }
        }
        (unknown, hidden)
    }
}

fn form(place: &str, expected: &'static str) -> DocumentError {
    DocumentError::Form {
        place: place.to_owned(),
        expected,
    }
}

fn text_of(node: &Node, place: impl Fn() -> String) -> Result<(), DocumentError> {
    match node {
        Node::Scalar(_) => Ok(()),
        _ => Err(form(&place(), "a text")),
    }
}

fn check_ssh_keys(node: &Node) -> Result<(), DocumentError> {
    let keys = match node {
        Node::Map(keys) => keys,
        empty if empty.is_null() => return Ok(()),
        _ => return Err(form("ssh.keys", "a mapping of names")),
    };
    for (name, key) in keys {
        let name: KeyName = name.expose().parse().map_err(|_| {
            form(
                "a key of ssh.keys",
                "a name of letters, digits and any of `_.-`",
            )
        })?;
        let Node::Map(entries) = key else {
            return Err(form(
                &format!("ssh.keys.{}", name.0),
                "a mapping with key, type and comment",
            ));
        };
        for part in SSH_KEY {
            if let Some(node) = get(entries, part) {
                text_of(node, || format!("ssh.keys.{}.{part}", name.0))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document, DocumentError> {
        Document::parse(text.as_bytes())
    }

    #[test]
    fn test_agentlab_version_0_or_none_is_1_and_others_are_refused() {
        for good in ["", "version: 0", "version: 1", "version: null", "{}"] {
            parse(good).expect(good);
        }
        let refused = parse("version: 2").expect_err("refused");
        assert!(
            refused
                .to_string()
                .starts_with("unsupported bundle version 2")
        );
        for bad in [
            "version: '1'",
            "version: 1.5",
            "version: [1]",
            "version: one",
        ] {
            assert_eq!(parse(bad), Err(DocumentError::VersionForm), "{bad}");
        }
    }

    #[test]
    fn test_agentlab_settings_json_wins_over_settings() {
        let settings = |text: &str| {
            let document = parse(&format!("claude: {{{text}}}")).expect("a bundle");
            document
                .value(&Field::ClaudeSettings)
                .map(|value| value.to_string())
        };
        assert_eq!(
            settings("settings_json: a, settings: {b: 1}").as_deref(),
            Some("a")
        );
        assert_eq!(
            settings("settings_json: '', settings: {b: 1}").as_deref(),
            Some("{\"b\":1}")
        );
        assert_eq!(settings("settings: {}").as_deref(), Some("{}"));
        assert_eq!(settings("settings: null"), None);
    }

    #[test]
    fn test_sections_that_are_null_are_not_there() {
        let text = "metadata:\ngit:\nenv:\nclaude:\nartifact:\nssh:\n  keys:\n";
        assert_eq!(parse(text).expect("a bundle").fields(), []);
        let text = "git: {token: null, username: ''}";
        assert_eq!(parse(text).expect("a bundle").fields(), []);
    }

    #[test]
    fn test_what_stands_in_the_wrong_place_is_named_and_not_shown() {
        for (text, place) in [
            ("[v-7c1d]", "the bundle is not"),
            ("v-7c1d", "the bundle is not"),
            ("git: v-7c1d", "git is not a mapping"),
            ("git: {token: [v-7c1d]}", "git.token is not a text"),
            ("env: [v-7c1d]", "env is not a mapping"),
            ("env: {v-7c1d: x}", "a key of env is not"),
            (
                "claude: {settings: v-7c1d}",
                "claude.settings is not a mapping",
            ),
            ("ssh: {keys: v-7c1d}", "ssh.keys is not"),
            ("ssh: {keys: {a/7c1d: {}}}", "a key of ssh.keys is not"),
            ("ssh: {keys: {a: v-7c1d}}", "ssh.keys.a is not a mapping"),
            (
                "ssh: {keys: {a: {key: [v-7c1d]}}}",
                "ssh.keys.a.key is not a text",
            ),
        ] {
            let said = parse(text).expect_err(text).to_string();
            assert!(
                said.starts_with(place) && !said.contains("7c1d"),
                "{text}: {said}"
            );
        }
    }

    #[test]
    fn test_field_names_are_read_as_they_are_written() {
        let text = "git: {username: a, token: a, ssh_private_key: a, ssh_public_key: a, known_hosts: a}\nenv: {A: a}\n\
                    claude: {settings_json: a}\nartifact: {endpoint: a, token: a}\nssh: {keys: {a.b: {key: a}}}";
        let fields = parse(text).expect("a bundle").fields();
        assert_eq!(fields.len(), 10);
        for field in fields {
            assert_eq!(field.to_string().parse(), Ok(field));
        }
        for bad in [
            "",
            "git",
            "git.",
            "git.none",
            "env.",
            "env.a-b",
            "ssh.",
            "ssh..",
            "version.1",
        ] {
            assert_eq!(bad.parse::<Field>(), Err(FieldError), "{bad:?}");
        }
    }
}
