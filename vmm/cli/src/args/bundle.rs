//! `cachot bundle ...`.
//!
//! What may be a value that was typed in the wrong place is read as text here and parsed by the command: what clap
//! refuses it repeats.

use std::path::PathBuf;

use cachot_custody::bundle::{BundleName, KeyName};
use cachot_secrets::Reference;
use clap::{Args, Subcommand, ValueEnum};

const SHOW_EXAMPLES: &str = "\
Examples:
  cachot bundle show default
  cachot bundle show default --reveal               asks before it prints values

That values are shown is written to the host's audit log first (`cachot secret audit`); if it cannot be, none are.

Exit codes: 0; 1 if the question was not answered with yes; 125 if the bundle cannot be read, if it cannot be recorded that
values are shown, or if the command line is wrong.";

const VALIDATE_EXAMPLES: &str = "\
Examples:
  cachot bundle validate default
  cachot bundle validate default --json

Says what is in a bundle and what is amiss with it; never a value.

Exit codes: 0 if VMs can be given it, 1 if it cannot be read or lacks something, 125 if the command line is wrong.";

const SET_EXAMPLES: &str = "\
Examples:
  printf %s \"$TOKEN\" | cachot bundle set-env default API_KEY
  cachot bundle set-env default API_KEY                       asks for the value
  cachot bundle set-git default token --from env:GITHUB_TOKEN
  cachot bundle set-git default ssh-private-key < ~/.ssh/id_ed25519
  cachot bundle set-git default known-hosts --from file:known_hosts

Of one line the line's end is not part of the value. The bundle is written anew, to the same keys, in one step; its
comments are lost.

Exit codes: 0, or 125 if the bundle was not changed.";

const ENCRYPT_EXAMPLES: &str = "\
Examples:
  cachot bundle encrypt default secrets.yaml
  generate-secrets | cachot bundle encrypt default -
  cachot bundle encrypt default secrets.yaml --recipient age1... --recipient age1...
  cachot bundle reencrypt default --recipient age1...

Without a recipient the bundle is for the keys of the own key file. The bundle is an age file: `age -d -i KEY
NAME.age` reads it as well. The plaintext file stays until you remove it.

Exit codes: 0, or 125 if nothing was written.";

/// `cachot bundle ...`.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// List what is in a bundle, secrets by their length only
    Show(ShowArgs),
    /// Say whether a bundle can be read, what is in it and what is amiss
    Validate(ValidateArgs),
    /// Set an environment variable; its value comes from standard input or a reference
    SetEnv(SetEnvArgs),
    /// Set one part of what git needs; its value comes from standard input or a reference
    SetGit(SetGitArgs),
    /// Add an ssh key, which comes from standard input or a reference
    AddSshKey(AddSshKeyArgs),
    /// Remove an ssh key
    RemoveSshKey(RemoveSshKeyArgs),
    /// Make a bundle of a YAML or JSON file
    Encrypt(EncryptArgs),
    /// Encrypt a bundle anew, to these keys and no others
    Reencrypt(ReencryptArgs),
}

/// Where bundles are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Bundles")]
pub struct PlaceArgs {
    /// Folder of the bundles (default: secrets_dir of the settings, else `secrets` beside the settings file)
    #[arg(long, value_name = "FOLDER")]
    pub secrets_dir: Option<PathBuf>,

    /// File with private keys of age (default: secrets_age_key_path of the settings, else `keys/age.key` beside the
    /// settings file)
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,

    /// Read a bundle that is not encrypted as well
    #[arg(long)]
    pub allow_plaintext: bool,
}

/// `cachot bundle show`.
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub struct ShowArgs {
    /// Name of the bundle
    pub name: BundleName,

    /// Print the values too; the audit log says so
    #[arg(long)]
    pub reveal: bool,

    /// With --reveal, do not ask
    #[arg(long, requires = "reveal")]
    pub yes: bool,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `cachot bundle validate`.
#[derive(Debug, Args)]
#[command(after_help = VALIDATE_EXAMPLES)]
pub struct ValidateArgs {
    /// Name of the bundle
    pub name: BundleName,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `cachot bundle set-env`.
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub struct SetEnvArgs {
    /// Name of the bundle
    pub name: BundleName,

    /// Name of the variable
    pub key: String,

    /// Reference to the value, instead of standard input
    #[arg(long, value_name = "SCHEME:REF")]
    pub from: Option<Reference>,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// A part of what git needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GitPart {
    /// User name that goes with the token
    Username,
    /// Token for https
    Token,
    /// Private key for ssh
    SshPrivateKey,
    /// Its public key
    SshPublicKey,
    /// Host keys to trust, as in ~/.ssh/known_hosts
    KnownHosts,
}

/// `cachot bundle set-git`.
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub struct SetGitArgs {
    /// Name of the bundle
    pub name: BundleName,

    /// What to set
    pub part: GitPart,

    /// Reference to the value, instead of standard input
    #[arg(long, value_name = "SCHEME:REF")]
    pub from: Option<Reference>,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `cachot bundle add-ssh-key`.
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub struct AddSshKeyArgs {
    /// Name of the bundle
    pub name: BundleName,

    /// Name of the key
    pub key: KeyName,

    /// Its kind, for people
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,

    /// A comment, for people
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,

    /// Reference to the key, instead of standard input
    #[arg(long, value_name = "SCHEME:REF")]
    pub from: Option<Reference>,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `cachot bundle remove-ssh-key`.
#[derive(Debug, Args)]
pub struct RemoveSshKeyArgs {
    /// Name of the bundle
    pub name: BundleName,

    /// Name of the key
    pub key: KeyName,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `cachot bundle encrypt`.
#[derive(Debug, Args)]
#[command(after_help = ENCRYPT_EXAMPLES)]
pub struct EncryptArgs {
    /// Name of the bundle to make
    pub name: BundleName,

    /// YAML or JSON file with what goes into it; - for standard input
    pub file: PathBuf,

    /// Public key of age of somebody who can read it
    #[arg(long = "recipient", short = 'r', value_name = "age1...")]
    pub recipients: Vec<String>,

    /// Take the place of a bundle that is there
    #[arg(long)]
    pub replace: bool,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `cachot bundle reencrypt`.
#[derive(Debug, Args)]
#[command(after_help = ENCRYPT_EXAMPLES)]
pub struct ReencryptArgs {
    /// Name of the bundle
    pub name: BundleName,

    /// Public key of age of somebody who can read it from now on
    #[arg(long = "recipient", short = 'r', value_name = "age1...")]
    pub recipients: Vec<String>,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,
}
