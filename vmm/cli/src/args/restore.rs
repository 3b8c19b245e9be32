//! `cachot restore` and `cachot fork`.

use std::path::PathBuf;
use std::time::Duration;

use cachot_secrets::Name;
use clap::Args;

use super::keeping::KeepingArgs;
use super::owner::OwnerArgs;
use super::run::parse_duration;
use crate::vm_name::VmName;

const RESTORE_EXAMPLES: &str = "\
Examples:
  cachot restore snap1                                    in the foreground, secrets resolved again
  cachot restore snap1 -d --name web2 --secret API_KEY=env:OTHER_TOKEN
  cachot restore snap1 --drop-secret DB_PASSWORD

Every secret of the image is resolved again by its recorded reference, or by the one that is given here. If one has no
value, nothing starts. A copy of a value that the workload had made is the new value then, if the two are of the
same length and have 16 bytes at least; otherwise it is zero bytes.

Exit codes: as `cachot run`.";

const FORK_EXAMPLES: &str = "\
Examples:
  cachot fork web --count 3                               three copies of a running VM
  cachot fork snap1 --count 2 --names a,b --secrets-per-child children.jsonl

The file has one line a child, a JSON object of references, for example {\"API_KEY\":\"env:KEY_1\",\"DB\":null}; null drops
the secret. Children run detached; a line is printed for each.

Exit codes: 0 if all children run, 1 if not, 125 if nothing was started.";

/// What `restore` and `fork` do with an image.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// Another value for a secret of the image, or a further secret, by reference
    #[arg(long = "secret", value_name = "NAME=SCHEME:REF[,OPTION]...")]
    pub secrets: Vec<String>,

    /// Secret of the image that the VM is to have no more
    #[arg(long = "drop-secret", value_name = "NAME")]
    pub dropped: Vec<Name>,

    /// Use guest memory as it is in the image's file, unchecked: whoever can change that file changes the VM
    #[arg(long)]
    pub trust_image: bool,

    /// age identity file that an encrypted image is read with
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,

    /// Accept an image that was made with this flag and holds values
    #[arg(long)]
    pub dangerously_keep_residue: bool,
}

/// `cachot restore`.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub struct RestoreArgs {
    /// The image's folder
    #[arg(value_name = "DIR")]
    pub image_path: PathBuf,

    /// What is done with it
    #[command(flatten)]
    pub image: ImageArgs,

    /// How the VM is kept
    #[command(flatten)]
    pub keeping: KeepingArgs,

    /// Connect standard input, if the workload had it connected
    #[arg(long, short = 'i')]
    pub interactive: bool,

    /// Send SIGTERM to the workload after this time, and stop the VM 5 seconds later
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// `cachot fork`.
#[derive(Debug, Args)]
#[command(after_help = FORK_EXAMPLES)]
pub struct ForkArgs {
    /// Name of a running VM, or an image's folder (then with a slash in it)
    #[arg(value_name = "SRC")]
    pub source: String,

    /// Number of children
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub count: u32,

    /// Names of the children; they are made up otherwise
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub names: Vec<VmName>,

    /// File with one line of references a child
    #[arg(long, value_name = "FILE")]
    pub secrets_per_child: Option<PathBuf>,

    /// What is done with the image
    #[command(flatten)]
    pub image: ImageArgs,

    /// Keep nothing of a child once it has ended, instead of its logs and exit code
    #[arg(long)]
    pub rm: bool,

    /// Show and store what the guests print as it is, even if values of secrets are in it
    #[arg(long)]
    pub no_mask: bool,

    /// Keep an audit log of each child's own beside the host's; a child starts once both are on the disk, not only written
    #[arg(long)]
    pub secrets_audit: bool,

    /// Bring a running VM's workload to rest before the copy is made
    #[arg(long)]
    pub quiesce_workload: bool,

    /// Go on although this machine may write guest memory, and with it secrets, to its swap
    #[arg(long)]
    pub dangerously_allow_swap: bool,

    /// Print a JSON array with one object a child
    #[arg(long)]
    pub json: bool,

    /// Who asks for secrets
    #[command(flatten)]
    pub owner: OwnerArgs,
}
