//! What commands ask of the keeper of a running VM, over [`KEEPER_SOCKET`] in its state folder.
//!
//! The socket is a `SOCK_SEQPACKET` listener; packets are those of `cachot_vmm::protocol`: one JSON message each, with
//! descriptors attached. A command connects, sends one [`Request`], and gets [`Answer`]s. Nothing that is said here
//! holds a value of a secret.

use cachot_control::WindowSize;
use cachot_vmm::protocol::{SnapshotProgress, SnapshotReport, SnapshotRequest};
use serde::{Deserialize, Serialize};

pub use cachot_vmm::protocol::KEEPER_SOCKET;

/// What a command wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Run a further command in the guest, with these descriptors in this order: standard input if `stdin`, standard
    /// output, standard error unless there is a terminal. Answered with [`Answer::Started`], then [`Answer::Exited`], or
    /// with [`Answer::Failed`]. The command gets SIGHUP if the connection is closed before.
    Exec(Box<Exec>),
    /// Send a signal to the command of this connection.
    Signal {
        /// Linux signal number (x86-64).
        signal: i32,
    },
    /// The terminal of the command of this connection has another size.
    WindowSize {
        /// The new size.
        size: WindowSize,
    },
    /// End the VM. The connection is closed when that is done, and not otherwise.
    Stop(Stop),
    /// Write a snapshot into these descriptors, those of [`cachot_vmm::protocol::ToMonitor::Snapshot`]. Answered with
    /// [`Answer::Progress`], any number of times, then [`Answer::Written`] or [`Answer::Failed`]. A machine that is held
    /// ([`SnapshotRequest::hold`]) rests from then on until this connection asks for [`Stop::Kill`], or is closed: then
    /// it goes on.
    Snapshot {
        /// How.
        request: SnapshotRequest,
        /// Keep the workload from running before the machine is paused, so that the image has it at rest and a copy
        /// becomes one of its own before the workload goes on.
        quiesce: bool,
    },
}

/// A further command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Explicit variables.
    pub env: Vec<(String, String)>,
    /// As in [`cachot_control::Start::user`].
    pub user: Option<String>,
    /// As in [`cachot_control::Start::workdir`].
    pub workdir: Option<String>,
    /// A pseudo-terminal of this size.
    pub terminal: Option<WindowSize>,
    /// Whether standard input is connected.
    pub stdin: bool,
}

/// How a VM is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The workload gets SIGTERM; the VM is killed after so many seconds.
    Terminate(u32),
    /// At once.
    Kill,
}

/// What the keeper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The command runs.
    Started,
    /// The command has ended, and all its output is written.
    Exited {
        /// Exit code as shells report it.
        code: u8,
    },
    /// How far the snapshot is.
    Progress(SnapshotProgress),
    /// The snapshot's parts are complete.
    Written(Box<SnapshotReport>),
    /// What was asked for was not done.
    Failed {
        /// Exit code to end with: 125 to 127.
        code: u8,
        /// What failed, on what, and what to do; one line.
        message: String,
    },
}

impl Answer {
    /// The failure of cachot itself.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            code: crate::run::OWN_FAILURE,
            message: message.into(),
        }
    }
}
