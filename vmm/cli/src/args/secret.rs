//! `cachot secret ...`.

use cachot_custody::store::{Scope, Selector};
use cachot_secrets::{Name, Reference};
use clap::{Args, Subcommand};

use super::import::ImportCommand;
use super::owner::OwnerArgs;
use crate::vm_name::VmName;

const CHECK_EXAMPLES: &str = "\
Examples:
  cachot secret check API_KEY=env:API_TOKEN
  cachot secret check API_KEY=file:/run/keys/api DB=dotenv:.env#DB_PASSWORD --json
  cachot secret check DB=vault:secret/data/app/db#password 'GH=exec:/usr/bin/pass show github'

Exit codes: 0 if every reference has a value, 1 if not, 125 if the command line is wrong.";

const SET_EXAMPLES: &str = "\
Examples:
  cachot secret set API_KEY                               asks for the value, twice, and does not show it
  printf %s \"$TOKEN\" | cachot secret set API_KEY          all bytes of standard input, a final newline included
  cachot secret set DB_PASSWORD --from dotenv:.env#DB --scope user:1000
  cachot secret set SIGNING_KEY --generate

Every change is a further version. `cachot run --secret API_KEY=store:API_KEY` delivers the newest.

Exit codes: 0, or 125 if nothing was stored.";

const FOUND_EXIT_CODES: &str =
    "Exit codes: 0, 1 if there is no such secret or version, 125 if the command failed otherwise.";

const EXPORT_EXAMPLES: &str = "\
Examples:
  cachot secret export API_KEY > key                      asks before it does
  cachot secret export user:1000/API_KEY@2 --yes | ./job

Exit codes: 0, 1 if there is no such secret or version or the question was not answered with yes, 125 if the
command failed otherwise.";

/// `cachot secret ...`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Resolve references and say how long their values are; never shows a value
    Check(CheckArgs),
    /// Put a value into the store, encrypted
    Set(SetArgs),
    /// List the secrets of the store; never shows a value
    List(SecretListArgs),
    /// Give a secret of the store another value
    Rotate(RotateArgs),
    /// List the versions of a secret that the store keeps
    History(HistoryArgs),
    /// Make an earlier value of a secret the newest again
    Rollback(RollbackArgs),
    /// Remove all values of a secret from the store
    Delete(SecretNameArgs),
    /// Write a value of the store to standard output, after asking
    Export(ExportArgs),
    /// Put the secrets of another system, or of a file, into the store, all or none
    #[command(subcommand)]
    Import(Box<ImportCommand>),
    /// Show who was given which secret, or check that this record is as it was written
    Audit(AuditArgs),
}

const AUDIT_EXAMPLES: &str = "\
Examples:
  cachot secret audit                     every use of a secret on this host
  cachot secret audit web --follow        those of the VM web, which was started with --secrets-audit
  cachot secret audit --json | jq .name
  cachot secret audit verify              the host's log and those of all VMs
  cachot secret audit verify ./web/audit  a copy of a log

Exit codes: 0; of `verify` 1 if anything is not as it was written; 125 if there is no log or it cannot be read.";

/// `cachot secret audit`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = AUDIT_EXAMPLES)]
pub struct AuditArgs {
    /// Check a log instead of showing it
    #[command(subcommand)]
    pub command: Option<AuditCommand>,

    /// Name of the VM whose log is shown; the host's otherwise
    #[arg(value_name = "VM")]
    pub vm: Option<VmName>,

    /// Print the records as they are in the log: one JSON object a line
    #[arg(long)]
    pub json: bool,

    /// Go on as records are added, until the VM has ended
    #[arg(long, short = 'f')]
    pub follow: bool,
}

/// `cachot secret audit ...`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check every line, signature and file of a log
    Verify(AuditVerifyArgs),
}

/// `cachot secret audit verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 if all is as it was written, 1 if not, 125 if that cannot be found out."
)]
pub struct AuditVerifyArgs {
    /// Name of a VM, or the folder of a log, with a slash in it; the host's log and those of all VMs otherwise
    #[arg(value_name = "VM|PATH")]
    pub target: Option<String>,

    /// Print a JSON array with one object a log
    #[arg(long)]
    pub json: bool,
}

/// `cachot secret check`.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub struct CheckArgs {
    /// Names of secrets and where their values are
    #[arg(value_name = "NAME=SCHEME:REF", required = true)]
    pub references: Vec<String>,

    /// Print a JSON array with one object a reference
    #[arg(long)]
    pub json: bool,

    /// Who asks
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// Which secret of the store.
#[derive(Debug, Clone, Args)]
pub struct SecretName {
    /// Name of the secret
    #[arg(value_name = "NAME")]
    pub name: Name,

    /// Whom it is for: `workspace` is every VM, `user:ID` every VM of a user, `instance:NAME` your VM of that name
    #[arg(long, value_name = "SCOPE", default_value = "workspace")]
    pub scope: Scope,

    /// Who asks
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// Where a new value comes from, if it is not asked for.
#[derive(Debug, Args)]
pub struct ValueArgs {
    /// Take the value that this reference has, as in env:VARIABLE, file:PATH or dotenv:PATH#KEY
    #[arg(long, value_name = "SCHEME:REF", conflicts_with = "generate")]
    pub from: Option<Reference>,

    /// Take a random value: 43 letters, digits, hyphens and underscores
    #[arg(long)]
    pub generate: bool,
}

/// `cachot secret set`.
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub struct SetArgs {
    /// Which secret
    #[command(flatten)]
    pub secret: SecretName,

    /// The value itself, which everybody on this machine can read while the command runs, and your shell remembers:
    /// leave it out
    #[arg(value_name = "VALUE", conflicts_with_all = ["from", "generate"])]
    pub inline: Vec<String>,

    /// Where the value comes from
    #[command(flatten)]
    pub value: ValueArgs,
}

/// `cachot secret rotate`.
#[derive(Debug, Args)]
#[command(after_help = FOUND_EXIT_CODES)]
pub struct RotateArgs {
    /// Which secret
    #[command(flatten)]
    pub secret: SecretName,

    /// Where the value comes from
    #[command(flatten)]
    pub value: ValueArgs,
}

/// `cachot secret list`.
#[derive(Debug, Args)]
pub struct SecretListArgs {
    /// Show deleted secrets as well
    #[arg(long)]
    pub all: bool,

    /// Print a JSON array with one object a secret
    #[arg(long)]
    pub json: bool,

    /// Who asks
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// `cachot secret history`.
#[derive(Debug, Args)]
#[command(after_help = FOUND_EXIT_CODES)]
pub struct HistoryArgs {
    /// Which secret
    #[command(flatten)]
    pub secret: SecretName,

    /// Print a JSON array with one object a version
    #[arg(long)]
    pub json: bool,
}

/// `cachot secret rollback`.
#[derive(Debug, Args)]
#[command(after_help = FOUND_EXIT_CODES)]
pub struct RollbackArgs {
    /// Which secret
    #[command(flatten)]
    pub secret: SecretName,

    /// The version whose value becomes that of a new version
    #[arg(value_name = "VERSION")]
    pub version: u64,
}

/// `cachot secret delete`.
#[derive(Debug, Args)]
#[command(after_help = FOUND_EXIT_CODES)]
pub struct SecretNameArgs {
    /// Which secret
    #[command(flatten)]
    pub secret: SecretName,
}

/// `cachot secret export`.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportArgs {
    /// Which secret: of the narrowest scope that has it, and its newest version, if the reference names none
    #[arg(value_name = "[SCOPE/]NAME[@VERSION]")]
    pub selector: Selector,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// Who asks
    #[command(flatten)]
    pub owner: OwnerArgs,
}
