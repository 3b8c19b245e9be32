//! How a VM is kept: what `run` and `restore` have in common.

use cachot_custody::Requester;
use clap::Args;

use super::owner::OwnerArgs;
use crate::vm_name::VmName;

/// How a VM is kept.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "VM")]
pub struct KeepingArgs {
    /// Name of the VM; one is made up otherwise
    #[arg(long, value_name = "NAME")]
    pub name: Option<VmName>,

    /// Print the VM's name once its workload runs, and leave it running; `cachot logs NAME` shows its output
    #[arg(long, short = 'd')]
    pub detach: bool,

    /// Keep nothing of a detached VM once it has ended, instead of its logs and exit code
    #[arg(long, requires = "detach")]
    pub rm: bool,

    /// Show and store what the guest prints as it is, even if values of secrets are in it
    #[arg(long)]
    pub no_mask: bool,

    /// Keep an audit log of the VM's own beside the host's: who was given which secret, when (`cachot secret audit NAME`);
    /// its copies keep one too. The VM starts once both are on the disk, not only written
    #[arg(long)]
    pub secrets_audit: bool,

    /// Show the guest's serial console on standard error
    #[arg(long, conflicts_with = "detach")]
    pub console: bool,

    /// Go on although this machine may write guest memory, and with it secrets, to its swap
    #[arg(long)]
    pub dangerously_allow_swap: bool,

    /// Who asks for secrets
    #[command(flatten)]
    pub owner: OwnerArgs,
}

impl KeepingArgs {
    /// Who asks for the VM's secrets.
    pub fn requester(&self) -> Requester {
        let name = self.name.as_ref().map(VmName::to_string);
        Requester {
            instance: Some(name.unwrap_or_default()),
            ..self.owner.requester(None)
        }
    }
}
