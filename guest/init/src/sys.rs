//! The system calls that have no safe wrapper in `rustix`; all of this crate's `unsafe` is here.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::process::Pid;
use zeroize::Zeroize;

/// Highest signal number of Linux on x86-64.
const LAST_SIGNAL: c_int = 64;

/// Adds to the kernel's random pool and credits it (linux/random.h, `_IOW('R', 3, int [2])`).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// Seeds the kernel's generator anew from its pool (linux/random.h, `_IO('R', 7)`).
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Largest seed for [`add_entropy`], in bytes: two of the generator's own size.
const MAX_SEED: usize = 64;

/// Size of `struct signalfd_siginfo`, in bytes; its first field is the signal's number, a `u32`.
const SIGINFO_SIZE: usize = 128;

/// Duplicates the calling process; `None` in the child.
///
/// # Errors
/// What `fork(2)` reports: no memory or no process slot.
///
/// # Safety
/// The process must have a single thread, or the child must call nothing that takes a lock that
/// another thread could have held (glibc makes its allocator safe to use).
pub unsafe fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the caller vouches for the state of the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Ends the process at once: no destructors, no exit handlers.
pub fn exit(code: c_int) -> ! {
    // SAFETY: _exit takes any code and has no memory to misuse.
    unsafe { libc::_exit(code) }
}

/// Replaces the program of this process; returns only if that failed.
#[must_use]
pub fn execve(path: &CStr, argv: &[&CStr], envp: &[&CStr]) -> io::Error {
    let pointers = |strings: &[&CStr]| -> Vec<*const c_char> {
        let ends = [ptr::null()];
        strings.iter().map(|s| s.as_ptr()).chain(ends).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: both arrays end with a null pointer; they and the strings they point to outlive the
    // call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Blocks `signals` and returns a non-blocking descriptor that reports them.
///
/// # Errors
/// What `sigprocmask(2)` and `signalfd(2)` report.
pub fn signal_descriptor(signals: &[c_int]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid value, and sigemptyset sets it up anyway.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: `set` has been initialised; a bad number is reported, not undefined.
        if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: `set` is initialised and the old mask is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd returned a descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The numbers of the signals that have arrived at a descriptor of [`signal_descriptor`].
///
/// # Errors
/// What `read(2)` reports, but for "nothing there".
pub fn take_signals(descriptor: &OwnedFd) -> io::Result<Vec<c_int>> {
    let mut taken = Vec::new();
    let mut info = [0; SIGINFO_SIZE];
    loop {
        match rustix::io::read(descriptor, &mut info) {
            Ok(SIGINFO_SIZE) => {
                taken.push(c_int::from_ne_bytes([info[0], info[1], info[2], info[3]]));
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN) => return Ok(taken),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives every signal its default disposition and unblocks all of them, as a new program expects.
pub fn reset_signals() {
    // The C library refuses to touch its own two signals, which may be inherited as ignored too.
    // The kernel's structure has four words: handler, flags, restorer, mask; SIG_DFL is 0.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the kernel reads one structure, whose mask has 8 bytes, and writes nothing.
        // SIGKILL and SIGSTOP refuse, and are always as they should be.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: an all-zero sigset_t is a valid value, and sigemptyset sets it up anyway.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a live sigset_t, initialised by the first call; SIG_SETMASK with it cannot
    // fail.
    unsafe {
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Brings the loopback interface up; the kernel then gives it 127.0.0.1 and ::1 by itself.
///
/// # Errors
/// What `ioctl(SIOCSIFFLAGS)` on `lo` reports.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is a valid value: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = c_char::from_ne_bytes([*from]);
    }
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).expect("both flags are below 2^15");
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is live and initialised.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `struct rand_pool_info` (linux/random.h) with the largest seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: c_int,
    length: c_int,
    seed: [u8; MAX_SEED],
}

impl Drop for PoolInfo {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

/// Credits all bits of `seed` to the kernel's random pool and seeds its generator from it.
///
/// # Errors
/// What `/dev/random` reports, and [`io::ErrorKind::InvalidInput`] for more than 64 bytes.
pub fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let mut info = PoolInfo {
        entropy_bits: 0,
        length: 0,
        seed: [0; MAX_SEED],
    };
    let room = info.seed.get_mut(..seed.len());
    room.ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(seed);
    info.length = c_int::try_from(seed.len()).expect("it is at most 64");
    info.entropy_bits = info.length * 8;
    let device = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/random")?;
    // SAFETY: RNDADDENTROPY reads one rand_pool_info, whose length is that of the seed in it.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An address of the `AF_VSOCK` family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VsockAddress {
    /// Context id: which machine.
    pub cid: u32,
    /// Port on it.
    pub port: u32,
}

// SAFETY: the closure gets a pointer to a whole, initialised sockaddr_vm that outlives the call.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        // SAFETY: an all-zero sockaddr_vm is a valid value.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).expect("AF_VSOCK is 40");
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        let length = SocketAddrLen::try_from(size_of_val(&address)).expect("it has 16 bytes");
        f((&raw const address).cast(), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_vsock_address_has_the_layout_of_sockaddr_vm() {
        let address = VsockAddress { cid: 2, port: 1024 };

        // SAFETY: the closure reads only the bytes that it is told are there.
        let bytes = unsafe {
            address.with_sockaddr(|at, length| {
                std::slice::from_raw_parts(at.cast::<u8>(), length as usize).to_vec()
            })
        };

        assert_eq!(bytes.len(), 16);
        assert_eq!(bytes[..4], [40, 0, 0, 0]);
        assert_eq!(bytes[4..8], 1024_u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 2_u32.to_ne_bytes());
    }

    #[test]
    fn test_add_entropy_longer_than_the_limit_is_refused() {
        let error = add_entropy(&[1; MAX_SEED + 1]).expect_err("it is too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn test_execve_missing_file_returns_the_error() {
        let error = execve(c"/nonexistent/program", &[c"program"], &[]);
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
