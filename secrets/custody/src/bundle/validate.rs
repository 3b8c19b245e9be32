//! What is amiss with a bundle that can be read.

use std::fmt;

use super::document::{Document, Field};

/// One thing that is amiss. None of them says anything of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A variable without a value, with which no VM starts.
    Empty(Field),
    /// `claude.settings_json` is not JSON.
    SettingsNotJson,
    /// A key that is not known and not used.
    Unknown(String),
    /// Some more such keys, which may be values in the wrong place.
    UnknownHidden(usize),
    /// There is nothing in it.
    Nothing,
    /// A private key of git without the host keys to trust.
    NoKnownHosts,
    /// A private key of git and a token, of which the key is used.
    KeyBeatsToken,
    /// A part that is of no use without another one.
    Without(Field, Field),
}

impl Finding {
    /// Whether a VM does not start because of it, or does not get what it should.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Empty(_) | Self::SettingsNotJson)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(field) => write!(
                f,
                "{field} is empty: an empty secret is never delivered; give it a value or remove it"
            ),
            Self::SettingsNotJson => f.write_str("claude.settings_json is not JSON: correct it"),
            Self::Unknown(key) => write!(f, "{key} is not known and not used: check its spelling"),
            Self::UnknownHidden(count) => write!(
                f,
                "{count} more keys are not known; they are not shown, for they may be values in the wrong place"
            ),
            Self::Nothing => f.write_str("there is nothing in it"),
            Self::NoKnownHosts => f.write_str(
                "git.ssh_private_key has no git.known_hosts beside it: git trusts only hosts that the guest's image knows; \
                 add them with `cachot bundle set-git NAME known-hosts`",
            ),
            Self::KeyBeatsToken => {
                f.write_str("git has an ssh key and a token: it is given the key")
            }
            Self::Without(field, other) => write!(f, "{field} is there, but {other} is not"),
        }
    }
}

impl Document {
    /// What is amiss with it, in the order of the specification.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let fields = self.fields();
        let has = |field: Field| fields.contains(&field);
        let mut findings = Vec::new();
        if fields.is_empty() {
            findings.push(Finding::Nothing);
        }
        if has(Field::GitSshPrivateKey) && !has(Field::GitKnownHosts) {
            findings.push(Finding::NoKnownHosts);
        }
        if has(Field::GitSshPrivateKey) && has(Field::GitToken) {
            findings.push(Finding::KeyBeatsToken);
        }
        for (part, other) in [
            (Field::GitUsername, Field::GitToken),
            (Field::ArtifactEndpoint, Field::ArtifactToken),
            (Field::ArtifactToken, Field::ArtifactEndpoint),
        ] {
            if has(part.clone()) && !has(other.clone()) {
                findings.push(Finding::Without(part, other));
            }
        }
        let empty = |field: &&Field| self.value(field).is_none_or(|value| value.is_empty());
        findings.extend(fields.iter().filter(empty).cloned().map(Finding::Empty));
        if let Some(settings) = self.value(&Field::ClaudeSettings)
            && serde_json::from_str::<serde::de::IgnoredAny>(&settings).is_err()
        {
            findings.push(Finding::SettingsNotJson);
        }
        let (unknown, hidden) = self.unknown_keys();
        findings.extend(unknown.into_iter().map(Finding::Unknown));
        if hidden > 0 {
            findings.push(Finding::UnknownHidden(hidden));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let document = Document::parse(text.as_bytes()).expect("a bundle");
        document.findings().iter().map(Finding::to_string).collect()
    }

    #[test]
    fn test_findings_tell_what_is_missing_and_never_a_value() {
        let text = "git: {ssh_private_key: v-7c1d, user: v-7c1d, V-7C1D: x}\nenv: {A: ''}\nclaude: {settings_json: v-7c1d}\nartifact: {token: v-7c1d}\n";
        let found = findings(text);
        for expected in [
            "git.known_hosts",
            "artifact.endpoint is not",
            "env.A is empty",
            "not JSON",
            "git.user is not known",
            "1 more keys",
        ] {
            assert!(
                found.iter().any(|line| line.contains(expected)),
                "{expected}"
            );
        }
        assert!(!found.concat().to_lowercase().contains("7c1d"));
        assert_eq!(findings("env: {A: b}"), Vec::<String>::new());
        assert_eq!(findings(""), ["there is nothing in it"]);
    }
}
