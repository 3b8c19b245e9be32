//! Why a VM does not start, or has no exit code of its workload.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use cachot_custody::StoreError;
use cachot_custody::bundle::BundleError;
use cachot_secrets::{Failures, Name, ScrubError, SealedError, ValueError};
use cachot_snapshot::image::ImageError;
use cachot_snapshot::needles::NeedleError;
use cachot_vmm::kvm::KvmError;
use cachot_vmm::protocol::ChannelError;

use crate::api_client::ApiError;
use crate::audit::RecordError;
use crate::guest_files::GuestFileError;
use crate::keeper::life::SessionError;
use crate::monitor_process::{Ending, MonitorError};
use crate::state_dir::StateError;

/// Exit code of cachot's own failures.
pub const OWN_FAILURE: u8 = 125;

/// Why there is no exit code of the command.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some references have no value.
    #[error(transparent)]
    Secrets(#[from] Failures),
    /// A bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The store cannot say what it has.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealedError),
    /// Who gets secrets cannot be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Values stay in the environment.
    #[error(transparent)]
    Scrub(#[from] ScrubError),
    /// Values cannot be searched for.
    #[error("the guest's output cannot be masked (--no-mask runs it all the same)")]
    Needles(#[source] NeedleError),
    /// A sealed value cannot be read back.
    #[error("cannot read a sealed value")]
    Value(#[source] ValueError),
    /// A secret was dropped that there is not.
    #[error("the image has no secret {0}: leave out --drop-secret {0}")]
    NoSuchSecret(Name),
    /// An image cannot be made or used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image says nothing of its workload that this version understands.
    #[error("the image {0:?} was not made by `cachot snapshot create` of this version")]
    Workload(PathBuf, #[source] serde_json::Error),
    /// A read-only disk is not what it was.
    #[error("the disk {0:?} has another length than when the snapshot was taken: restore the file")]
    OtherDisk(PathBuf),
    /// The host's CPU cannot be asked.
    #[error("cannot find out what this host's CPU can do")]
    HostCpu(#[source] KvmError),
    /// The keeper of a VM did not do what it was asked for.
    #[error("{message}")]
    Refused {
        /// Exit code to end with: 125 to 127.
        code: u8,
        /// Why.
        message: String,
    },
    /// The VM's control socket.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The keeper of a VM is gone.
    #[error("the VM {0:?} has ended")]
    Gone(String),
    /// The secrets of children.
    #[error("the file {path:?} does not say what secrets each child has: {why}")]
    PerChild {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A file of the guest cannot be used.
    #[error(transparent)]
    GuestFile(#[from] GuestFileError),
    /// No virtual machines here.
    #[error("cannot open /dev/kvm, {hint}")]
    Kvm {
        /// What to do.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `-t` without a terminal.
    #[error("-t needs a terminal, and none of the standard streams is one: leave -t out")]
    NoTerminal,
    /// No place for the VM's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The monitor as a process.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The monitor did not take what it was told.
    #[error("cannot hand the VM over to the monitor")]
    HandOver(#[source] ChannelError),
    /// The monitor died.
    #[error("the monitor {ending}{}", .words.as_ref().map(|line| format!("; it said last: {line}")).unwrap_or_default())]
    MonitorDied {
        /// How.
        ending: Ending,
        /// Its last line.
        words: Option<String>,
    },
    /// The guest ended before its command had, or said nothing.
    #[error("{what}{}", .console.as_ref().map(|line| format!("; its console says: {line}")).unwrap_or_default())]
    Guest {
        /// What it did.
        what: String,
        /// The console's line that says most.
        console: Option<String>,
    },
    /// The session failed otherwise.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Signals, `poll`, the terminal.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A failure of a system call.
pub fn system(action: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { action, source }
}

impl RunError {
    /// The exit code to report it with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Session(SessionError::NotStarted { code, .. }) | Self::Refused { code, .. } => {
                *code
            }
            _ => OWN_FAILURE,
        }
    }
}

/// An error with its causes.
pub fn one_line(error: &RunError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
