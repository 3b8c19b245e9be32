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
use std::thread::JoinHandle;

use cachot_custody::UserId;
use cachot_custody::audit::{Access, Decision, Entry, Head, Log, Record};
use cachot_secrets::{Failures, Name, Origin, Refusal, Subject};

pub use error::{AuditCommandError, RecordError};
use keys::HostSigner;

use crate::args::{AuditArgs, AuditCommand, KeepingArgs};
use crate::state_dir::{Places, StateDir};
use crate::text::with_causes;
use crate::vm::error::RunError;
use crate::vm::record::Record as VmRecord;
use crate::vm::secrets::Secret;

/// Name of the folder of a log: of the host's in the state folder, of a VM's in the VM's.
pub const FOLDER: &str = "audit";

/// Reason of [`Decision::Deny`].
const DENIED: &str = "not open to this user";

/// What was written to the host's log, to be brought to the disk, and its head published, once values have been handed
/// over.
#[must_use]
pub struct Recorded {
    signer: HostSigner,
    folder: PathBuf,
    head: Head,
}

impl Recorded {
    /// Does that, while its caller goes on; a warning if it fails.
    pub fn close(self) -> Closing {
        let close = move || {
            let log = Log::new(&self.folder, None, &self.signer);
            if let Err(error) = log.close(&self.head) {
                eprintln!(
                    "cachot: warning: a loss of power now may undo what the audit log says of this start: {}",
                    with_causes(&error)
                );
            }
        };
        Closing(Some(std::thread::spawn(close)))
    }
}

/// A log that is being closed; waited for when this is dropped.
pub struct Closing(Option<JoinHandle<()>>);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // It prints, and no more: a panic of it was printed as well.
            thread.join().ok();
        }
    }
}

/// A VM that is given its secrets.
pub struct Given<'a> {
    /// What is written down of it.
    pub vm: &'a VmRecord,
    /// The secrets.
    pub secrets: &'a [Secret],
    /// Whether it is a copy of another VM.
    pub is_copy: bool,
    /// Name of the VM that it is a copy of, if that is no image.
    pub parent: Option<&'a str>,
    /// On whose behalf it has them.
    pub user: &'a UserId,
}

impl Given<'_> {
    fn records(&self) -> impl Iterator<Item = Record> {
        let vm = self.vm;
        let parent = self.parent.map(|name| format!("vm:{name}"));
        let images = vm.lineage.iter().map(|id| format!("image:{id}"));
        let lineage: Vec<_> = parent.into_iter().chain(images).collect();
        let access = match self.is_copy {
            false => Access::Materialize,
            true => Access::Rehydrate,
        };
        self.secrets.iter().map(move |secret| {
            let one = Use {
                name: Some(secret.declared.name.clone()),
                scheme: scheme_of(&secret.declared.reference),
                result: Ok(secret.origin.clone()),
            };
            Record {
                vm: Some(vm.name.clone()),
                lineage: lineage.clone(),
                ..record(self.user, access, one)
            }
        })
    }
}

/// Records that a VM is given its secrets; nothing, and no log is needed, where it has none. The records are on the disk
/// if the VM has a log of its own; else they are written, which is what a start can wait for, and
/// [`Recorded::close`] does the rest.
///
/// # Errors
/// [`RecordError`]: it must not be given them then.
pub fn start(
    root: &Path,
    state: &StateDir,
    given: &Given<'_>,
) -> Result<Option<Recorded>, RecordError> {
    if given.secrets.is_empty() {
        return Ok(None);
    }
    let vm = given.vm;
    let mut entries: Vec<_> = given.records().map(Entry::Record).collect();

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
    if vm.workload.secrets_audit {
        head.sync()?;
    }
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
    /// Which of the values of its place it is, or why there is none.
    pub result: Result<Origin, Refusal>,
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
        lineage: image.iter().map(|id| format!("image:{id}")).collect(),
        ..record(user, access, one)
    });
    write(records.collect())
}

/// The scheme of a reference.
pub fn scheme_of(reference: &str) -> Option<&str> {
    reference.split_once(':').map(|(scheme, _)| scheme)
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
        eprintln!("cachot: warning: {}", with_causes(&error));
    }
}

fn of_failures(failures: &Failures, access: Access, user: &UserId) -> impl Iterator<Item = Record> {
    failures.iter().map(move |failure| {
        let one = Use {
            name: match &failure.subject {
                Subject::Secret(name) => Some(name.clone()),
                _ => None,
            },
            scheme: failure.scheme.as_deref(),
            result: Err(failure.error.refusal()),
        };
        record(user, access, one)
    })
}

fn record(user: &UserId, access: Access, one: Use<'_>) -> Record {
    let (decision, reason, origin) = match one.result {
        Ok(origin) => (Decision::Allow, None, origin),
        Err(Refusal::Denied) => (Decision::Deny, Some(DENIED), Origin::default()),
        Err(Refusal::Failed(why)) => (Decision::Error, Some(why), Origin::default()),
    };
    Record {
        vm: None,
        user: user.to_string(),
        name: one.name,
        scope: origin.scope,
        version: origin.version,
        source: one.scheme.map(str::to_owned),
        access,
        decision,
        reason: reason.map(str::to_owned),
        lineage: Vec::new(),
    }
}
