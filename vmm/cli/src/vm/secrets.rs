//! Secrets of a VM in the keeper: resolved, sealed for the monitor, and taken out of this process's environment.

use std::collections::BTreeSet;
use std::path::Path;

use cachot_custody::Requester;
use cachot_secrets::{
    Declaration, Declarations, Delivery, Name, Origin, Resolved, SealedError, SealedValue, Warning,
    scrub_environment,
};
use cachot_snapshot::image::{RestorePolicy, Secret as Declared};
use cachot_vmm::protocol::SecretInfo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::{RunError, system};
use crate::custody::schemes;

/// What is open at once: a descriptor a secret, and some dozens.
const MAX_DESCRIPTORS: u64 = 4096;

/// Version of a value whose place does not count versions.
const ONLY_VERSION: u64 = 1;

/// A secret with its value.
pub struct Secret {
    /// All but the value.
    pub declared: Declared,
    /// The value.
    pub value: SealedValue,
    /// Which of the values of its place it is.
    pub origin: Origin,
}

impl Secret {
    /// What the monitor is told of it.
    pub fn info(&self) -> SecretInfo {
        SecretInfo {
            name: self.declared.name.to_string(),
            mode: self.declared.mode,
            uid: self.declared.uid,
            gid: self.declared.gid,
        }
    }
}

/// Resolves all secrets, seals them, and takes them out of this process's environment.
///
/// # Errors
/// Those of [`RunError`] that speak of secrets.
pub fn resolve(
    declarations: &Declarations,
    requester: &Requester,
) -> Result<Vec<Secret>, RunError> {
    raise_descriptor_limit();
    let schemes = schemes(requester);
    let resolved = declarations.resolve(&schemes)?;
    warn(&resolved);
    let folder = std::env::current_dir().map_err(system("find the working directory"))?;
    let sealed = resolved
        .into_iter()
        .map(|secret| seal(secret, &folder))
        .collect::<Result<_, _>>()?;
    scrub_environment(declarations.environment_variables(&schemes))?;
    Ok(sealed)
}

/// The declarations of an image's secrets, with what a command changes of them.
///
/// # Errors
/// [`RunError::NoSuchSecret`] for one that is dropped and is not in the image.
pub fn redeclare(
    recorded: &[Declared],
    declared: &[String],
    dropped: &[Name],
) -> Result<Declarations, RunError> {
    let dropped: BTreeSet<_> = dropped.iter().cloned().collect();
    if let Some(unknown) = dropped
        .iter()
        .find(|name| recorded.iter().all(|secret| secret.name != **name))
    {
        return Err(RunError::NoSuchSecret(unknown.clone()));
    }
    let recorded = recorded.iter().filter_map(|secret| {
        Some(Declaration {
            name: secret.name.clone(),
            // Every manifest was checked for this.
            reference: secret.reference.parse().ok()?,
            delivery: Delivery {
                mode: secret.mode,
                uid: secret.uid,
                gid: secret.gid,
                export_env: secret.export_env,
            },
        })
    });
    Ok(Declarations::parse(declared).with_recorded(recorded.collect(), &dropped))
}

/// Says what is amiss with the values themselves. That a scheme is plaintext, the user has chosen.
fn warn(secrets: &[Resolved]) {
    for secret in secrets {
        for warning in &secret.warnings {
            if let Warning::Short(_) = warning {
                eprintln!("cachot: warning: secret {}: {warning}", secret.name);
            }
        }
    }
}

fn seal(secret: Resolved, folder: &Path) -> Result<Secret, SealedError> {
    Ok(Secret {
        value: secret.value.seal()?,
        declared: Declared {
            name: secret.name,
            reference: secret.reference.anchored(folder).to_string(),
            mode: secret.delivery.mode,
            uid: secret.delivery.uid,
            gid: secret.delivery.gid,
            export_env: secret.delivery.export_env,
            version: secret.origin.version.unwrap_or(ONLY_VERSION),
            policy: RestorePolicy::Reissue,
        },
        origin: secret.origin,
    })
}

/// Every secret is an open file, here and in the monitor, which inherits the limit.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = limit
        .maximum
        .map_or(MAX_DESCRIPTORS, |maximum| maximum.min(MAX_DESCRIPTORS));
    if limit.current.is_some_and(|current| current < raised) {
        let limit = Rlimit {
            current: Some(raised),
            ..limit
        };
        // If it stays too low, the call that hits it says so.
        setrlimit(Resource::Nofile, limit).ok();
    }
}
