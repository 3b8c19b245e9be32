//! What PID 1 changes in the kernel for a guest that is a copy; tests have a kernel of their own.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::sys;

/// The kernel's state that copies of a guest must not share.
pub trait Kernel {
    /// Credits random bytes to the kernel's generator and seeds it anew from them.
    ///
    /// # Errors
    /// What the device reports.
    fn add_entropy(&self, seed: &[u8]) -> io::Result<()>;

    /// Sets the time of day, given as the time since 1970-01-01 (UTC, without leap seconds).
    ///
    /// # Errors
    /// What `clock_settime(2)` reports.
    fn set_clock(&self, since_epoch: Duration) -> io::Result<()>;

    /// Sets the name of the host.
    ///
    /// # Errors
    /// What `sethostname(2)` reports; over 64 bytes are too long.
    fn set_hostname(&self, name: &str) -> io::Result<()>;

    /// Mounts a file over another one.
    ///
    /// # Errors
    /// What `mount(2)` reports.
    fn bind_mount(&self, file: &Path, over: &Path) -> io::Result<()>;
}

/// The running kernel.
#[derive(Debug, Clone, Copy)]
pub struct Linux;

impl Kernel for Linux {
    fn add_entropy(&self, seed: &[u8]) -> io::Result<()> {
        sys::add_entropy(seed)
    }

    fn set_clock(&self, since_epoch: Duration) -> io::Result<()> {
        let tv_sec = i64::try_from(since_epoch.as_secs())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let tv_nsec = i64::from(since_epoch.subsec_nanos());
        Ok(clock_settime(
            ClockId::Realtime,
            Timespec { tv_sec, tv_nsec },
        )?)
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        Ok(rustix::system::sethostname(name.as_bytes())?)
    }

    fn bind_mount(&self, file: &Path, over: &Path) -> io::Result<()> {
        Ok(rustix::mount::mount_bind(file, over)?)
    }
}
