//! The monitor as the keeper sees it: a child process and a socket to it.

use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cachot_vmm::protocol::{self, ChannelError, ToKeeper, ToMonitor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};

use crate::spawn::{Inherited, spawn};
use crate::state_dir::StateDir;
use crate::tail::last_line;

/// The monitor program, if not the one beside this program.
pub const MONITOR_VARIABLE: &str = "CACHOT_VMM";

/// Failures of the monitor as a process.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// It was not started.
    #[error(
        "cannot start the monitor {path:?}, install it beside cachot or set {MONITOR_VARIABLE}"
    )]
    Start {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A system call on it failed.
    #[error("cannot {action} the monitor process")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How the monitor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "ended with exit code {code}"),
            Self::Signaled(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// A running monitor. On drop it is killed and waited for.
#[derive(Debug)]
pub struct MonitorProcess {
    process: OwnedFd,
    socket: OwnedFd,
    /// The monitor's standard error.
    log: File,
    ending: Option<Ending>,
}

/// The monitor program: `variable`, or `cachot-vmm` beside `program`.
pub fn monitor_program(variable: Option<OsString>, program: Option<&Path>) -> PathBuf {
    let beside = || match program.and_then(Path::parent) {
        Some(folder) => folder.join("cachot-vmm"),
        None => "cachot-vmm".into(),
    };
    variable
        .filter(|path| !path.is_empty())
        .map_or_else(beside, PathBuf::from)
}

impl MonitorProcess {
    /// Starts the monitor in a VM's state folder.
    ///
    /// # Errors
    /// See [`MonitorError`].
    pub fn start(program: &Path, state: &StateDir) -> Result<Self, MonitorError> {
        let started = |source: io::Error| MonitorError::Start {
            path: program.to_owned(),
            source,
        };
        // In memory: it is read only when the monitor has died, and then by this process.
        let log = memfd_create("monitor-log", MemfdFlags::CLOEXEC)
            .map_err(|errno| started(errno.into()))?;
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| started(errno.into()))?;
        // So that `ps` tells one VM from another.
        let name = CString::new(state.name()).map_err(|error| started(error.into()))?;
        let inherited = Inherited {
            folder: state.as_fd(),
            socket: theirs.as_fd(),
            log: log.as_fd(),
        };
        let pid = spawn(program, &name, &inherited).map_err(started)?;
        // The number cannot be another process's by now: only this process could have waited for it.
        let process =
            pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| started(errno.into()))?;
        Ok(Self {
            process,
            socket,
            log: log.into(),
            ending: None,
        })
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn send(&self, message: &ToMonitor, files: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        protocol::send(self.socket.as_fd(), message, files)
    }

    /// The socket, for waiting until there is a message.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Receives a message.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] once the monitor has ended.
    pub fn receive(&self) -> Result<ToKeeper, ChannelError> {
        let (message, _descriptors) = protocol::receive(self.socket.as_fd())?;
        Ok(message)
    }

    /// Waits for the monitor to end; after `patience` it is killed.
    ///
    /// # Errors
    /// [`MonitorError::System`].
    pub fn end(&mut self, patience: Duration) -> Result<Ending, MonitorError> {
        if let Some(ending) = self.ending {
            return Ok(ending);
        }
        if !self.ends_within(patience)? {
            match pidfd_send_signal(&self.process, Signal::KILL) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(system("kill")(errno)),
            }
        }
        let status = rustix::io::retry_on_intr(|| {
            waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED)
        })
        .map_err(system("wait for"))?;
        let ending = status.as_ref().map_or(Ending::Exited(0), ending_of);
        self.ending = Some(ending);
        Ok(ending)
    }

    /// The last line that the monitor wrote to its standard error.
    pub fn last_words(&self) -> Option<String> {
        last_line(&self.log, |_| true)
    }

    fn ends_within(&self, patience: Duration) -> Result<bool, MonitorError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            let mut descriptors = [PollFd::new(&self.process, PollFlags::IN)];
            match poll(&mut descriptors, left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("wait for")(errno)),
            }
        }
    }
}

impl Drop for MonitorProcess {
    fn drop(&mut self) {
        // On this way out there is an error to report already.
        self.end(Duration::ZERO).ok();
    }
}

fn system(action: &'static str) -> impl FnOnce(Errno) -> MonitorError {
    move |errno| MonitorError::System {
        action,
        source: errno.into(),
    }
}

fn ending_of(status: &WaitIdStatus) -> Ending {
    match status.terminating_signal() {
        Some(signal) => Ending::Signaled(signal),
        None => Ending::Exited(status.exit_status().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read, Seek};
    use std::os::unix::fs::PermissionsExt;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("monitor.sh");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        path
    }

    #[test]
    fn test_start_child_has_socket_folder_and_nothing_else() {
        let root = tempfile::tempdir().expect("a folder");
        let state = StateDir::create(root.path(), None).expect("created");
        // A descriptor that is not closed at exec, as a careless parent could have left one.
        let null = File::open("/dev/null").expect("open");
        let leaked = rustix::io::fcntl_dupfd_cloexec(&null, 200).expect("a copy");
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("inheritable");
        let program = script(
            root.path(),
            "#!/bin/sh\nexec >&2\npwd\ntr '\\0' ' ' </proc/$$/environ\necho $1\nreadlink /proc/$$/fd/3 | cut -c1-7\n\
             for n in $(seq 0 300); do [ -e /proc/$$/fd/$n ] && printf '%s ' $n; done\nps -o pgid= -p $$ | tr -d ' ' | grep -qx $$ && echo own group\n",
        );

        let mut monitor = MonitorProcess::start(&program, &state).expect("started");
        let ending = monitor.end(Duration::from_secs(10)).expect("ended");

        assert_eq!(ending, Ending::Exited(0));
        let mut log = String::new();
        monitor.log.rewind().expect("a file");
        monitor.log.read_to_string(&mut log).expect("text");
        let folder = state.path().to_str().expect("a plain path");
        let own = [folder, state.name(), "socket:"].join("\n");
        // The shell has its script open as descriptor 10.
        assert_eq!(log, format!("{own}\n0 1 2 3 10 own group\n"));
        assert_eq!(
            monitor.last_words().as_deref(),
            Some("0 1 2 3 10 own group")
        );
    }

    #[test]
    fn test_end_stubborn_monitor_is_killed() {
        let root = tempfile::tempdir().expect("a folder");
        let state = StateDir::create(root.path(), None).expect("created");
        let program = script(root.path(), "#!/bin/sh\nexec sleep 100\n");
        let mut monitor = MonitorProcess::start(&program, &state).expect("started");
        let ending = monitor.end(Duration::from_millis(20)).expect("ended");
        assert_eq!(ending, Ending::Signaled(9));
        assert_eq!(ending.to_string(), "was killed by signal 9");
    }

    #[test]
    fn test_start_missing_program_is_an_error_with_a_hint() {
        let root = tempfile::tempdir().expect("a folder");
        let state = StateDir::create(root.path(), None).expect("created");
        let program = monitor_program(None, Some(&root.path().join("cachot")));
        let error = MonitorProcess::start(&program, &state).expect_err("nothing there");
        assert!(
            error.to_string().contains("cachot-vmm") && error.to_string().contains("CACHOT_VMM"),
            "{error}"
        );
    }
}
