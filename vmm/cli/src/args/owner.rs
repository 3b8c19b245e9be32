//! On whose behalf a command looks into the store.

use cachot_custody::{Requester, UserId};
use clap::Args;

use crate::vm_name::VmName;

/// On whose behalf a command looks into the store.
#[derive(Debug, Clone, Default, Args)]
pub struct OwnerArgs {
    /// User on whose behalf the store is read and written, for a front end that runs VMs for others; the number of
    /// the user that runs this command otherwise
    #[arg(long, value_name = "ID", help_heading = "Secrets")]
    pub secrets_user: Option<UserId>,
}

impl OwnerArgs {
    /// Who asks for secrets: this user, for the VM of this name.
    pub fn requester(&self, instance: Option<&VmName>) -> Requester {
        let user = self.secrets_user.clone();
        Requester {
            user: user.unwrap_or_else(UserId::of_this_process),
            instance: instance.map(ToString::to_string),
        }
    }
}
