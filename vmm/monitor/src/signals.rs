//! Signals from outside as readable events.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::signal::create_sigset;

/// Signals that ask the monitor to end.
const WATCHED: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// A descriptor that becomes readable when a watched signal arrives.
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Blocks `SIGTERM` and `SIGINT` in this thread and those that it starts, and watches them. `SIGXFSZ` is ignored from
    /// now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch() -> io::Result<Self> {
        let set = create_sigset(&WATCHED)?;
        // SAFETY: the set is initialised, and the old mask is not asked for.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // A write over the limit of files' lengths is to fail, like one to a full disk, and not to end the guest.
        // SAFETY: no handler is installed.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Takes one signal that has arrived; says whether there was one.
    pub fn take(&mut self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        matches!(self.0.read(&mut info), Ok(len) if len == info.len())
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
