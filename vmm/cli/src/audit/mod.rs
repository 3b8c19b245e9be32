//! The audit logs of this host: what is recorded before a value is given out, and by whom that is signed.
//!
//! The host's log is `ROOT/audit` and has every use of a secret. A VM that was started with `--secrets-audit` has a log
//! of its own as well, in its folder.

mod error;
mod keys;
mod show;
#[cfg(test)]
mod tests;
mod verify;

use std::io;
use std::path::{Path, PathBuf};

use cachot_custody::UserId;
use cachot_custody::audit::{Access, AuditError, Decision, Entry, Head, Log, Record};
use cachot_secrets::{Failures, Name, Subject};

pub use error::{AuditCommandError, RecordError};
use keys::HostSigner;

use crate::args::{AuditArgs, AuditCommand, KeepingArgs};
use crate::state_dir::{Places, StateDir};
use crate::vm::error::RunError;
use crate::vm::record::Record as VmRecord;

/// Name of the folder of a log: of the host's in the state folder, of a VM's in the VM's.
pub const FOLDER: &str = "audit";

/// Reason of a record of a reference that has no value, where no more is known.
const NO_VALUE: &str = "no value";

/// The head of the host's log, to be published once values have been handed over.
#[must_use]
pub struct Recorded {
    signer: HostSigner,
    folder: PathBuf,
    head: Head,
}

impl Recorded {
    /// Publishes it.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn close(self) -> Result<(), AuditError> {
        Log::new(&self.folder, None, &self.signer).close(&self.head)
    }
}

/// Records that a VM is given its secrets; nothing, and no log is needed, where it has none.
///
/// # Errors
/// [`RecordError`]: it must not be given them then.
pub fn start(
    root: &Path,
    state: &StateDir,
    vm: &VmRecord,
    is_copy: bool,
    parent: Option<String>,
    user: &UserId,
) -> Result<Option<Recorded>, RecordError> {
    if vm.secrets.is_empty() {
        return Ok(None);
    }
    let parent = parent.map(|name| format!("vm:{name}"));
    let images = vm.lineage.iter().map(|id| format!("image:{id}"));
    let lineage: Vec<_> = parent.into_iter().chain(images).collect();
    let record = |secret: &cachot_snapshot::image::Secret| Record {
        vm: Some(vm.name.clone()),
        version: Some(secret.version),
        source: scheme_of(&secret.reference),
        lineage: lineage.clone(),
        ..record(
            user,
            Some(secret.name.clone()),
            match is_copy {
                false => Access::Materialize,
                true => Access::Rehydrate,
            },
            Ok(()),
        )
    };
    let mut entries: Vec<_> = vm.secrets.iter().map(record).map(Entry::Record).collect();

    let signer = HostSigner::load_or_create(root)?;
    if vm.workload.secrets_audit {
        let folder = state.path().join(FOLDER);
        let log = Log::new(&folder, Some(&vm.name), &signer);
        let head = log.append(&entries)?;
        // Now: later the folder may be gone already, with the VM.
        log.close(&head)?;
        entries.push(Entry::Anchor(head.anchor(&vm.name)));
    }
    let folder = root.join(FOLDER);
    let head = Log::new(&folder, None, &signer).append(&entries)?;
    Ok(Some(Recorded {
        signer,
        folder,
        head,
    }))
}

/// Records that a VM does not start for want of values. As nothing was given out, a warning is all if that fails.
pub fn start_failed(error: &RunError, access: Access, args: &KeepingArgs) {
    let RunError::Secrets(failures) = error else {
        return;
    };
    let vm = args.name.as_ref().map(ToString::to_string);
    let user = args.owner.requester(None).user;
    let records = of_failures(failures, access, &user).map(|record| Record {
        vm: vm.clone(),
        ..record
    });
    warn(write(records.collect()));
}

/// Records that values are looked for that `failures` says there are not; a warning if that fails.
pub fn check_failed(failures: &Failures, user: &UserId) {
    warn(write(of_failures(failures, Access::Check, user).collect()));
}

/// One use of a secret by a command, for no VM.
pub struct Use<'a> {
    /// Name of the secret.
    pub name: Option<Name>,
    /// Name of the scheme, where there is such a scheme.
    pub scheme: Option<&'a str>,
    /// Version, where it has one.
    pub version: Option<u64>,
    /// Whether there is a value, or why not.
    pub result: Result<(), Option<&'static str>>,
}

/// Records that a command uses secrets, those of an image if it has the id of one.
///
/// # Errors
/// [`RecordError`]: nothing must be said of the values then.
pub fn used<'a>(
    access: Access,
    user: &UserId,
    uses: impl Iterator<Item = Use<'a>>,
    image: Option<String>,
) -> Result<(), RecordError> {
    let records = uses.map(|one| Record {
        version: one.version,
        source: one.scheme.map(str::to_owned),
        lineage: image.iter().map(|id| format!("image:{id}")).collect(),
        ..record(
            user,
            one.name,
            access,
            one.result.map_err(|why| why.unwrap_or(NO_VALUE)),
        )
    });
    write(records.collect())
}

/// The scheme of a reference.
pub fn scheme_of(reference: &str) -> Option<String> {
    let (scheme, _) = reference.split_once(':')?;
    Some(scheme.to_owned())
}

/// `cachot secret audit`; false if something is wrong with a log that is checked.
///
/// # Errors
/// See [`AuditCommandError`].
pub fn run(args: &AuditArgs, output: &mut impl io::Write) -> Result<bool, AuditCommandError> {
    match &args.command {
        Some(AuditCommand::Verify(args)) => verify::verify(args, output),
        None => show::show(args, output).map(|()| true),
    }
}

/// Writes records to the host's log.
fn write(records: Vec<Record>) -> Result<(), RecordError> {
    if records.is_empty() {
        return Ok(());
    }
    let root = Places::of_process().root()?;
    let signer = HostSigner::load_or_create(&root)?;
    let log = Log::new(&root.join(FOLDER), None, &signer);
    let entries: Vec<_> = records.into_iter().map(Entry::Record).collect();
    let head = log.append(&entries)?;
    Ok(log.close(&head)?)
}

fn warn(result: Result<(), RecordError>) {
    if let Err(error) = result {
        eprintln!("cachot: warning: {}", crate::text::with_causes(&error));
    }
}

fn of_failures(failures: &Failures, access: Access, user: &UserId) -> impl Iterator<Item = Record> {
    failures.iter().map(move |failure| Record {
        source: failure.scheme.clone(),
        ..record(
            user,
            match &failure.subject {
                Subject::Secret(name) => Some(name.clone()),
                _ => None,
            },
            access,
            Err(failure.error.kind()),
        )
    })
}

fn record(
    user: &UserId,
    name: Option<Name>,
    access: Access,
    result: Result<(), &'static str>,
) -> Record {
    Record {
        vm: None,
        user: user.to_string(),
        name,
        scope: None,
        version: None,
        source: None,
        access,
        decision: match result {
            Ok(()) => Decision::Allow,
            Err(_) => Decision::Error,
        },
        reason: result.err().map(str::to_owned),
        lineage: Vec::new(),
    }
}
