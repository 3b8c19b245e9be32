//! The bytes of a secret on their way to another process: a sealed file in memory.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::locked::{LockError, LockedView};
use crate::value::{MAX_VALUE_LEN, SecretValue, ValueError};

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

    /// Copies the bytes into locked memory of this process.
    ///
    /// # Errors
    /// See [`ValueError`].
    pub fn read(&self) -> Result<SecretValue, ValueError> {
        SecretValue::filled_by(self.len, |buffer| self.pread_into(0, buffer))
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::locked::tests::one_at_a_time;

    fn value(len: usize) -> SecretValue {
        let bytes: Vec<u8> = (0..253).cycle().take(len).collect();
        SecretValue::copy_of(&bytes).expect("a value")
    }

    /// A memfd of `len` zero bytes with the given seals.
    fn memfd(len: u64, seals: SealFlags) -> OwnedFd {
        let fd = new_memfd().expect("a memfd");
        rustix::fs::ftruncate(&fd, len).expect("its size");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("its seals");
        fd
    }

    #[test]
    fn test_read_is_the_value_in_locked_memory() {
        let _turn = one_at_a_time();
        for len in [1, 4097] {
            let sealed = value(len).seal().expect("a memfd");
            assert_eq!(
                sealed.read().expect("readable").expose(),
                value(len).expose()
            );
        }
    }

    #[test]
    fn test_seal_round_trip_through_a_descriptor() {
        let _turn = one_at_a_time();
        for len in [1, 4095, 4096, 4097, MAX_VALUE_LEN] {
            let value = value(len);

            let kept = value.seal().expect("a sealed value");
            let sent = kept.as_fd().try_clone_to_owned().expect("a descriptor");
            let got = SealedValue::try_from(sent).expect("a sealed value");

            let mut bytes = vec![0; len];
            got.pread_into(0, &mut bytes).expect("all bytes");
            assert_eq!(got.len(), len);
            assert!(bytes == value.expose(), "differs at length {len}");
        }
    }

    #[test]
    fn test_sealed_value_outlives_what_it_was_made_from() {
        let kept = value(9000).seal().expect("a sealed value");
        let sent = kept.as_fd().try_clone_to_owned().expect("a descriptor");
        drop(kept);

        let got = SealedValue::try_from(sent).expect("a sealed value");

        let mut bytes = [0; 4];
        got.pread_into(8000, &mut bytes).expect("four bytes");
        assert_eq!(bytes, [157, 158, 159, 160]);
    }

    #[test]
    fn test_sealed_value_cannot_be_changed() {
        let sealed = value(100).seal().expect("a sealed value");

        assert_eq!(rustix::io::pwrite(&sealed, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&sealed, 99), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&sealed, 101), Err(Errno::PERM));
        assert_eq!(
            rustix::fs::fcntl_add_seals(&sealed, SealFlags::FUTURE_WRITE),
            Err(Errno::PERM)
        );
    }

    #[test]
    fn test_sealed_value_is_not_executable_where_the_kernel_knows_how() {
        let known = rustix::fs::memfd_create("x", MemfdFlags::NOEXEC_SEAL).is_ok();
        let sealed = value(1).seal().expect("a sealed value");
        let mode = rustix::fs::fstat(&sealed).expect("its mode").st_mode;
        assert_eq!(mode & 0o111 == 0, known);
    }

    #[test]
    fn test_sealed_value_is_closed_at_exec() {
        let sealed = value(1).seal().expect("a sealed value");
        let flags = rustix::io::fcntl_getfd(&sealed).expect("its flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn test_try_from_what_is_not_a_memfd_is_refused() {
        let mut regular = tempfile::tempfile().expect("a file");
        regular.write_all(b"value").expect("written");
        let (pipe, _writer) = rustix::pipe::pipe().expect("a pipe");
        let device = File::open("/dev/zero").expect("a device");
        for fd in [regular.into(), pipe, device.into()] {
            let refused = SealedValue::try_from(fd);
            // Some file systems in memory answer for their files, as unsealed.
            assert!(
                matches!(
                    refused,
                    Err(SealedError::NotMemfd(_) | SealedError::NotSealed)
                ),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn test_try_from_without_one_of_the_seals_is_refused() {
        assert!(SealedValue::try_from(memfd(5, SEALS)).is_ok());
        for missing in SEALS.iter() {
            let refused = SealedValue::try_from(memfd(5, SEALS - missing));
            assert!(
                matches!(refused, Err(SealedError::NotSealed)),
                "{missing:?}: {refused:?}"
            );
        }
        // This seal still lets an earlier mapping write.
        let almost = (SEALS - SealFlags::WRITE) | SealFlags::FUTURE_WRITE;
        let refused = SealedValue::try_from(memfd(5, almost));
        assert!(matches!(refused, Err(SealedError::NotSealed)));
    }

    #[test]
    fn test_try_from_with_a_length_out_of_bounds_is_refused() {
        let largest = MAX_VALUE_LEN as u64;
        assert!(SealedValue::try_from(memfd(largest, SEALS)).is_ok());
        for len in [0, largest + 1, 1 << 40, i64::MAX as u64] {
            let refused = SealedValue::try_from(memfd(len, SEALS));
            assert!(
                matches!(refused, Err(SealedError::Length(n)) if n as u64 == len),
                "{len}: {refused:?}"
            );
        }
    }

    #[test]
    fn test_pread_into_outside_the_value_is_an_error() {
        let sealed = value(100).seal().expect("a sealed value");
        let mut ten = [0; 10];
        assert!(sealed.pread_into(90, &mut ten).is_ok());
        assert!(sealed.pread_into(100, &mut []).is_ok());
        for offset in [91, 100, 101, usize::MAX] {
            let error = sealed
                .pread_into(offset, &mut ten)
                .expect_err("out of bounds");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn test_debug_shows_the_length_only() {
        let sealed = value(7).seal().expect("a sealed value");
        assert_eq!(format!("{sealed:?}"), "SealedValue(7 bytes)");
    }
}
