//! Why `cachot run` has no exit code of the command.

use std::io;

use cachot_secrets::{Failures, ScrubError, SealedError};
use cachot_vmm::protocol::ChannelError;

use crate::guest_files::GuestFileError;
use crate::monitor_process::{Ending, MonitorError};
use crate::session::life::SessionError;
use crate::state_dir::StateError;

/// Exit code of cachot's own failures.
pub const OWN_FAILURE: u8 = 125;

/// Why there is no exit code of the command.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some references have no value.
    #[error(transparent)]
    Secrets(#[from] Failures),
    /// A value could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealedError),
    /// Values stay in the environment.
    #[error(transparent)]
    Scrub(#[from] ScrubError),
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

pub(super) fn system(action: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { action, source }
}

impl RunError {
    /// The exit code to report it with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Session(SessionError::NotStarted { code, .. }) => *code,
            _ => OWN_FAILURE,
        }
    }
}
