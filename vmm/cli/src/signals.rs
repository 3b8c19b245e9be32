//! Signals as something to poll for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Signals that the keeper handles while a VM exists.
const HANDLED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// The handled signals, blocked and queued for [`Signals::next`] until this is dropped.
///
/// A signal that was ignored when the program started (as `nohup` does with SIGHUP) stays ignored.
#[derive(Debug)]
pub struct Signals {
    queue: OwnedFd,
    previous: libc::sigset_t,
}

impl Signals {
    /// Blocks the signals for the calling thread, which must be the only one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        let mut previous = MaybeUninit::uninit();
        // SAFETY: `set` is initialised by sigemptyset before it is used, `previous` by
        // pthread_sigmask, whose success is checked, before it is read; the signal numbers are valid.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in HANDLED {
                if !is_ignored(signal)? {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
            let queue = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if queue < 0 {
                return Err(io::Error::last_os_error());
            }
            let queue = OwnedFd::from_raw_fd(queue);
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), previous.as_mut_ptr()) {
                0 => Ok(Self {
                    queue,
                    previous: previous.assume_init(),
                }),
                number => Err(io::Error::from_raw_os_error(number)),
            }
        }
    }

    /// The next signal that has arrived, if there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.queue, &mut info)) {
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
            // The number is the first field of signalfd_siginfo, a u32.
            Ok(_) => Ok(Some(i32::from_ne_bytes([
                info[0], info[1], info[2], info[3],
            ]))),
        }
    }
}

/// # Safety
/// `signal` is a valid signal number.
unsafe fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the current one, and its success is checked
    // before that is read.
    unsafe {
        match libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) {
            0 => Ok(action.assume_init().sa_sigaction == libc::SIG_IGN),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the mask is the one that pthread_sigmask gave out.
        unsafe {
            libc::pthread_sigmask(
                libc::SIG_SETMASK,
                &raw const self.previous,
                std::ptr::null_mut(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_next_gives_a_blocked_signal() {
        let signals = Signals::block().expect("blocked");
        assert_eq!(signals.next().expect("readable"), None);
        // SAFETY: raise sends the signal to this thread only, where it is blocked.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(signals.next().expect("readable"), Some(libc::SIGUSR1));
        assert_eq!(signals.next().expect("readable"), None);
    }
}
