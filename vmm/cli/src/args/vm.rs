//! Commands about VMs that there are.

use clap::Args;

use super::run::parse_variable;
use crate::vm_name::VmName;

/// `cachot pause` and `cachot resume`.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Name of the VM
    pub name: VmName,
}

/// `cachot ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// VMs that have ended as well
    #[arg(long, short = 'a')]
    pub all: bool,

    /// Print a JSON array with one object a VM
    #[arg(long)]
    pub json: bool,
}

/// `cachot logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name of the VM
    pub name: VmName,

    /// Go on until the VM has ended
    #[arg(long, short = 'f')]
    pub follow: bool,

    /// Show the guest's serial console instead
    #[arg(long)]
    pub console: bool,
}

const EXEC_EXAMPLES: &str = "\
Examples:
  cachot exec web -- ls -l /run/secrets
  cachot exec -it web -- sh

A paused VM is to be resumed first. The command gets the signals that this one gets, and SIGHUP when it goes away.

Exit codes: the command's own; 128+N for signal N; 125 cachot or guest failed; 126 command cannot be run;
127 command not found.";

/// `cachot exec`.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES)]
pub struct ExecArgs {
    /// Name of the VM
    pub name: VmName,

    /// Environment variable of the command; wins over those of the workload and over secrets
    #[arg(long = "env", short = 'e', value_name = "KEY=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,

    /// User to run the command as, looked up in the guest: USER[:GROUP] or UID[:GID]
    #[arg(long, short = 'u', value_name = "USER")]
    pub user: Option<String>,

    /// Working directory of the command
    #[arg(long, short = 'w', value_name = "DIR")]
    pub workdir: Option<String>,

    /// Connect standard input; it is /dev/null otherwise
    #[arg(long, short = 'i')]
    pub interactive: bool,

    /// Give the command a terminal of the size of this one
    #[arg(long, short = 't')]
    pub tty: bool,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// `cachot stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Names of the VMs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<VmName>,

    /// Seconds between SIGTERM to the workload and the end of the VM; 0 ends it at once, and so is a paused VM ended
    #[arg(long, short = 't', value_name = "SECONDS", default_value = "10")]
    pub time: u32,
}

/// `cachot rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names of the VMs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<VmName>,

    /// End VMs that are running
    #[arg(long, short = 'f')]
    pub force: bool,
}
