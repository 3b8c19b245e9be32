//! What `run --secrets-bundle` delivers: every secret of a bundle by its reference, so that snapshots and restores
//! treat it like any other, and variables without a value of a secret that say where programs find theirs.

use cachot_control::GIT_ASKPASS;
use cachot_custody::bundle::{BundleError, BundleName, Document, Field};

use crate::args::RunArgs;
use crate::settings;
use crate::vm::error::RunError;

/// Where a guest has its secrets.
const SECRETS: &str = "/run/secrets";

/// The bundle of a user who has said no other name.
const DEFAULT_BUNDLE: &str = "default";

/// What a bundle adds to a VM.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Secrets, as they would stand on the command line.
    pub declarations: Vec<String>,
    /// Variables of the workload.
    pub env: Vec<(String, String)>,
}

/// What the bundle that the command line names adds; nothing if it names none.
///
/// # Errors
/// [`RunError::Bundle`].
pub fn of_run(args: &RunArgs) -> Result<Delivered, RunError> {
    let Some(named) = &args.secrets_bundle else {
        return Ok(Delivered::default());
    };
    let setting = || settings::in_force().secrets_bundle.clone();
    let name = match named.clone().or_else(|| setting().map(|name| name.0)) {
        Some(name) => name,
        None => DEFAULT_BUNDLE.parse().map_err(BundleError::Name)?,
    };
    let opened = settings::bundles().open(&name)?;
    for finding in opened.document.findings() {
        eprintln!("cachot: warning: bundle {name}: {finding}");
    }
    let user = args.user.as_deref();
    if owner(user).is_empty() && user.is_some_and(|user| user != "root") {
        eprintln!(
            "cachot: warning: bundle {name}: its files in {SECRETS} belong to root: give --user as a number, and they belong to it"
        );
    }
    Ok(deliver(&name, &opened.document, user))
}

fn deliver(name: &BundleName, document: &Document, user: Option<&str>) -> Delivered {
    let fields = document.fields();
    let owner = owner(user);
    let mut delivered = Delivered::default();
    for field in &fields {
        if let Some(secret) = field.secret_name() {
            let export = match field {
                Field::Env(_) => ",env",
                _ => "",
            };
            let text = format!("{secret}=bundle:{name}#{field}{owner}{export}");
            delivered.declarations.push(text);
        }
    }
    let has = |field: Field| fields.contains(&field);
    let mut set = |variable: &str, value: String| delivered.env.push((variable.to_owned(), value));
    if has(Field::GitSshPrivateKey) {
        let mut command = format!("ssh -i {SECRETS}/GIT_SSH_KEY -o IdentitiesOnly=yes");
        if has(Field::GitKnownHosts) {
            command.push_str(&format!(" -o UserKnownHostsFile={SECRETS}/GIT_KNOWN_HOSTS"));
        }
        command.push_str(" -o StrictHostKeyChecking=yes");
        set("GIT_SSH_COMMAND", command);
    } else if has(Field::GitToken) {
        set("GIT_ASKPASS", GIT_ASKPASS.to_owned());
        if let Some(username) = document
            .value(&Field::GitUsername)
            .filter(|text| !text.is_empty())
        {
            set("GIT_USERNAME", username.to_string());
        }
    }
    if has(Field::GitSshPrivateKey) || has(Field::GitToken) {
        set("GIT_TERMINAL_PROMPT", "0".to_owned());
    }
    if has(Field::ClaudeSettings) {
        set("CLAUDE_SETTINGS_PATH", format!("{SECRETS}/CLAUDE_SETTINGS"));
    }
    if let Some(endpoint) = document
        .value(&Field::ArtifactEndpoint)
        .filter(|text| !text.is_empty())
    {
        set("ARTIFACT_ENDPOINT", endpoint.to_string());
    }
    if has(Field::ArtifactToken) {
        set("ARTIFACT_TOKEN_PATH", format!("{SECRETS}/ARTIFACT_TOKEN"));
    }
    delivered
}

/// Options that make the workload's user the owner of its secrets, which ssh insists on: where the user is given by
/// number. What number a name has is known in the guest only.
fn owner(user: Option<&str>) -> String {
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let (uid, gid) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some((uid, gid)) => (number(uid), number(gid)),
        None => (None, None),
    };
    let mut options = String::new();
    for (option, id) in [("uid", uid), ("gid", gid.filter(|_| uid.is_some()))] {
        if let Some(id) = id {
            options.push_str(&format!(",{option}={id}"));
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use cachot_secrets::Declaration;

    use super::*;

    fn delivered(text: &str, user: Option<&str>) -> Delivered {
        let document = Document::parse(text.as_bytes()).expect("a bundle");
        deliver(&"b".parse().expect("a name"), &document, user)
    }

    fn env(delivered: &Delivered) -> Vec<String> {
        let entries = delivered.env.iter();
        entries
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    #[test]
    fn test_agentlab_every_section_becomes_secrets_by_reference() {
        let text = "git: {token: v1, ssh_private_key: v2, known_hosts: v3, username: u}\nenv: {A: v4}\nclaude: {settings: {a: v5}}\nartifact: {endpoint: 'http://x', token: v6}\nssh: {keys: {ci-1.x: {key: v7}}}\n";
        let made = delivered(text, None);
        assert_eq!(
            made.declarations,
            [
                "GIT_TOKEN=bundle:b#git.token",
                "GIT_SSH_KEY=bundle:b#git.ssh_private_key",
                "GIT_KNOWN_HOSTS=bundle:b#git.known_hosts",
                "CLAUDE_SETTINGS=bundle:b#claude.settings",
                "ARTIFACT_TOKEN=bundle:b#artifact.token",
                "SSH_KEY_CI_1_X=bundle:b#ssh.ci-1.x",
                "A=bundle:b#env.A,env",
            ]
        );
        for text in &made.declarations {
            text.parse::<Declaration>().expect("a declaration");
        }
        assert!(!env(&made).concat().contains("v1"));
    }

    #[test]
    fn test_agentlab_ssh_key_beats_token() {
        let both = delivered("git: {token: t, ssh_private_key: k, known_hosts: h}", None);
        assert_eq!(
            env(&both),
            [
                "GIT_SSH_COMMAND=ssh -i /run/secrets/GIT_SSH_KEY -o IdentitiesOnly=yes \
                 -o UserKnownHostsFile=/run/secrets/GIT_KNOWN_HOSTS -o StrictHostKeyChecking=yes",
                "GIT_TERMINAL_PROMPT=0",
            ]
        );
        let token = delivered("git: {token: t, username: u}", None);
        assert_eq!(
            env(&token),
            [
                "GIT_ASKPASS=/run/git-askpass",
                "GIT_USERNAME=u",
                "GIT_TERMINAL_PROMPT=0"
            ]
        );
    }

    #[test]
    fn test_agentlab_claude_and_artifact_are_pointed_out() {
        let made = delivered(
            "claude: {settings_json: '{}'}\nartifact: {endpoint: e, token: t}",
            None,
        );
        assert_eq!(
            env(&made),
            [
                "CLAUDE_SETTINGS_PATH=/run/secrets/CLAUDE_SETTINGS",
                "ARTIFACT_ENDPOINT=e",
                "ARTIFACT_TOKEN_PATH=/run/secrets/ARTIFACT_TOKEN",
            ]
        );
        assert_eq!(delivered("", None), Delivered::default());
    }

    #[test]
    fn test_secrets_belong_to_a_user_that_is_a_number() {
        for (user, expected) in [
            (None, "A=bundle:b#env.A,env"),
            (Some("app"), "A=bundle:b#env.A,env"),
            (Some("7"), "A=bundle:b#env.A,uid=7,env"),
            (Some("7:8"), "A=bundle:b#env.A,uid=7,gid=8,env"),
            (Some("app:8"), "A=bundle:b#env.A,env"),
        ] {
            assert_eq!(delivered("env: {A: x}", user).declarations, [expected]);
        }
    }
}
