//! `cachot secret import ...`.

use std::path::PathBuf;

use cachot_custody::bundle::BundleName;
use cachot_custody::store::Scope;
use cachot_secrets::Name;
use clap::{Args, Subcommand};

use super::bundle::PlaceArgs;
use super::owner::OwnerArgs;

const EXAMPLES: &str = "\
Examples:
  cachot secret import aegis --db ~/.aegis/data/aegis.db --key ~/.aegis/master.key --dry-run
  cachot secret import bhatti --db state.db --key age.key --user usr_1=user:1000
  cachot secret import agentlab default staging --rename 'staging#git.token=STAGING_GIT_TOKEN'
  cachot secret import dotenv .env --scope instance:web --replace
  cachot secret import sops secrets.yaml --identity age.key --skip-empty

What is read is not changed. Either all of it is stored or nothing; values are never shown.

Exit codes: 0, or 125 if nothing was stored.";

/// `cachot secret import ...`.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum ImportCommand {
    /// The database of aegis: secrets of the workspace, and of apps as those of instances
    Aegis(AegisArgs),
    /// The database of bhatti: secrets of each user
    Bhatti(BhattiArgs),
    /// Bundles of agentlab: their parts under the names that `run --secrets-bundle` gives them
    Agentlab(AgentlabArgs),
    /// A file of lines KEY=value
    Dotenv(DotenvArgs),
    /// Any file of sops: nested keys joined by underscores
    Sops(SopsArgs),
}

/// How it is stored.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub struct PolicyArgs {
    /// Say what would be stored, where, and store nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Make what is imported the next version of secrets that are there already, which are refused otherwise
    #[arg(long)]
    pub replace: bool,

    /// Leave out secrets without a value, which the store does not keep and which are refused otherwise
    #[arg(long)]
    pub skip_empty: bool,

    /// Leave this one out, by what it is called under FROM
    #[arg(long, value_name = "FROM")]
    pub skip: Vec<String>,

    /// Another name for a secret, by what it is called under FROM
    #[arg(long = "rename", value_name = "FROM=NAME", value_parser = parse_rename)]
    pub renames: Vec<(String, Name)>,

    /// Print a JSON array with one object a secret
    #[arg(long)]
    pub json: bool,

    /// Who asks
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// Where it is stored.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub struct IntoArgs {
    /// Whom the secrets are for: `workspace`, `user:ID` or `instance:NAME`
    #[arg(long, value_name = "SCOPE", default_value = "workspace")]
    pub scope: Scope,
}

/// `cachot secret import aegis`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AegisArgs {
    /// The database, aegis.db
    #[arg(long, value_name = "FILE")]
    pub db: PathBuf,

    /// The master key, 32 bytes
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,

    /// Where the secrets of an app go, instead of `instance:ID`
    #[arg(long = "app", value_name = "ID=SCOPE", value_parser = parse_owner)]
    pub apps: Vec<(String, Scope)>,

    /// Where those of the workspace go
    #[command(flatten)]
    pub into: IntoArgs,

    /// How they are stored
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `cachot secret import bhatti`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BhattiArgs {
    /// The database
    #[arg(long, value_name = "FILE")]
    pub db: PathBuf,

    /// The private key of age, age.key
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,

    /// Where the secrets of a user go, instead of `user:ID`; without ID those of no user
    #[arg(long = "user", value_name = "ID=SCOPE", value_parser = parse_owner)]
    pub users: Vec<(String, Scope)>,

    /// How they are stored
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `cachot secret import agentlab`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AgentlabArgs {
    /// Names of bundles
    #[arg(value_name = "BUNDLE", required_unless_present = "all")]
    pub names: Vec<BundleName>,

    /// Import every bundle of the folder
    #[arg(long, conflicts_with = "names")]
    pub all: bool,

    /// Where bundles are
    #[command(flatten)]
    pub place: PlaceArgs,

    /// Where the secrets go
    #[command(flatten)]
    pub into: IntoArgs,

    /// How they are stored
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `cachot secret import dotenv`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DotenvArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Where the secrets go
    #[command(flatten)]
    pub into: IntoArgs,

    /// How they are stored
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `cachot secret import sops`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SopsArgs {
    /// The file: JSON if it is named so, YAML otherwise
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// File with private keys of age (default: that of bundles)
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,

    /// Where the secrets go
    #[command(flatten)]
    pub into: IntoArgs,

    /// How they are stored
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// Splits at the last `=`, for what others named may have some.
fn split(text: &str) -> Result<(&str, &str), String> {
    text.rsplit_once('=')
        .ok_or_else(|| "there is no `=` in it".to_owned())
}

fn parse_rename(text: &str) -> Result<(String, Name), String> {
    let (from, name) = split(text)?;
    let name = name.parse::<Name>().map_err(|error| error.to_string())?;
    Ok((from.to_owned(), name))
}

fn parse_owner(text: &str) -> Result<(String, Scope), String> {
    let (id, scope) = split(text)?;
    let scope = scope.parse::<Scope>().map_err(|error| error.to_string())?;
    Ok((id.to_owned(), scope))
}
