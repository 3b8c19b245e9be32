//! What is recorded: one use of one secret, and how it was decided.

use std::fmt;

use cachot_secrets::Name;
use serde::{Deserialize, Serialize};

/// What a value was wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// To be a file of a VM that starts.
    Materialize,
    /// To answer a guest that asked for it.
    OnDemand,
    /// To be put back into a VM that is restored or forked.
    Rehydrate,
    /// To see whether there is one, or to be searched for.
    Check,
    /// To be shown to the user.
    Export,
}

/// How it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The value was given.
    Allow,
    /// It may not be given.
    Deny,
    /// There is no value.
    Error,
}

/// One use of one secret; never a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the VM, if there is one.
    pub vm: Option<String>,
    /// On whose behalf: see [`UserId`](crate::UserId).
    pub user: String,
    /// Name of the secret; none where the declaration has no good name.
    pub name: Option<Name>,
    /// Scope in the store, for a value of the store.
    pub scope: Option<String>,
    /// Version, where the value has one.
    pub version: Option<u64>,
    /// Name of the scheme, where the reference names one.
    pub source: Option<String>,
    /// What the value was wanted for.
    pub access: Access,
    /// How that was decided.
    pub decision: Decision,
    /// Why, where it was not [`Decision::Allow`]: words of this program, nothing that a user typed.
    pub reason: Option<String>,
    /// What the VM was made from, nearest first: `vm:NAME`, `image:ID`.
    pub lineage: Vec<String>,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Materialize => "materialize",
            Self::OnDemand => "on-demand",
            Self::Rehydrate => "rehydrate",
            Self::Check => "check",
            Self::Export => "export",
        })
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Error => "error",
        })
    }
}
