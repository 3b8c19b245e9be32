//! `cachot secret ...`.

use clap::{Args, Subcommand};

use crate::vm_name::VmName;

const CHECK_EXAMPLES: &str = "\
Examples:
  cachot secret check API_KEY=env:API_TOKEN
  cachot secret check API_KEY=file:/run/keys/api DB=dotenv:.env#DB_PASSWORD --json

Exit codes: 0 if every reference has a value, 1 if not, 125 if the command line is wrong.";

/// `cachot secret ...`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Resolve references and say how long their values are; never shows a value
    Check(CheckArgs),
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
}
