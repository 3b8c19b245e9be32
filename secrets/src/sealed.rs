//! The bytes of a secret on their way to another process: a sealed file in memory.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::locked::{LockError, LockedView};
use crate::value::{MAX_VALUE_LEN, SecretValue};

/// Seals that a value carries: neither length nor content can change any more, for anyone.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// Why a value could not be sealed, or a file descriptor is not a sealed value.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// The file in memory could not be made.
    #[error("cannot make a sealed file for a secret: {call} failed")]
    Create {
        /// Name of the system call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its pages could not be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The descriptor is not of a file in memory.
    #[error("the descriptor handed over for a secret is not a memfd")]
    NotMemfd(#[source] io::Error),
    /// The file could still change.
    #[error("the memfd handed over for a secret is not sealed against writing and resizing")]
    NotSealed,
    /// The file is empty or over [`MAX_VALUE_LEN`].
    #[error(
        "the memfd handed over for a secret has {0} bytes: a value has 1 to {MAX_VALUE_LEN} bytes"
    )]
    Length(i64),
}

/// A secret's bytes in a sealed memfd: immutable, of a known length, sent between processes as a
/// file descriptor (`SCM_RIGHTS`).
///
/// | made by | side | pages |
/// |---|---|---|
/// | [`SecretValue::seal`] | keeper | locked into RAM as long as this object lives |
/// | `SealedValue::try_from(fd)` | monitor | no mapping: read with `pread` straight to where they are needed |
///
/// So the keeper keeps its object for as long as the monitor may need the value. A sealed file
/// cannot be wiped: the kernel frees its pages when the last descriptor is closed, and clears
/// them before another process gets them.
pub struct SealedValue {
    fd: OwnedFd,
    len: usize,
    _resident: Option<LockedView>,
}

impl SecretValue {
    /// Copies the bytes into a sealed memfd.
    ///
    /// # Errors
    /// [`SealedError::Create`] or [`SealedError::Lock`].
    pub fn seal(&self) -> Result<SealedValue, SealedError> {
        let create = |call| move |source: io::Error| SealedError::Create { call, source };
        let errno = |call| move |errno: Errno| create(call)(errno.into());

        let fd = new_memfd().map_err(errno("memfd_create"))?;
        // A usize fits a u64 on every target of Rust.
        rustix::fs::ftruncate(&fd, self.len() as u64).map_err(errno("ftruncate"))?;
        // Before the bytes are there: the file's pages are allocated and locked by this.
        let resident = LockedView::new(&fd, self.len())?;
        let mut written = 0;
        while written < self.len() {
            match rustix::io::pwrite(&fd, &self.expose()[written..], written as u64) {
                Ok(0) => return Err(create("pwrite")(io::ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(error) => return Err(errno("pwrite")(error)),
            }
        }
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(errno("fcntl(F_ADD_SEALS)"))?;
        Ok(SealedValue {
            fd,
            len: self.len(),
            _resident: Some(resident),
        })
    }
}

/// A memfd that can be sealed and, where the kernel knows how (Linux 6.3), never executed.
fn new_memfd() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create("cachot-secret", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("cachot-secret", flags),
        other => other,
    }
}

impl SealedValue {
    /// Length in bytes; 1 to [`MAX_VALUE_LEN`].
    #[expect(clippy::len_without_is_empty, reason = "a value is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads exactly `into.len()` bytes from `offset` on, with `pread`: no copy is made on the way
    /// and no file position is shared with other readers.
    ///
    /// # Errors
    /// `UnexpectedEof` where the range ends after the value, or what `pread` said.
    pub fn pread_into(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len());
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < into.len() {
            match rustix::io::pread(&self.fd, &mut into[done..], (offset + done) as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl TryFrom<OwnedFd> for SealedValue {
    type Error = SealedError;

    /// Takes a descriptor from another process, which is not trusted to have made it well.
    ///
    /// # Errors
    /// [`SealedError::NotMemfd`], [`SealedError::NotSealed`] or [`SealedError::Length`].
    fn try_from(fd: OwnedFd) -> Result<Self, SealedError> {
        let seals = rustix::fs::fcntl_get_seals(&fd)
            .map_err(|errno| SealedError::NotMemfd(errno.into()))?;
        if !seals.contains(SEALS) {
            return Err(SealedError::NotSealed);
        }
        // Read after the seals: from here on it cannot change.
        let size = rustix::fs::fstat(&fd)
            .map_err(|errno| SealedError::NotMemfd(errno.into()))?
            .st_size;
        let len = usize::try_from(size)
            .ok()
            .filter(|len| (1..=MAX_VALUE_LEN).contains(len))
            .ok_or(SealedError::Length(size))?;
        Ok(Self {
            fd,
            len,
            _resident: None,
        })
    }
}

impl AsFd for SealedValue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for SealedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedValue({} bytes)", self.len)
    }
}
