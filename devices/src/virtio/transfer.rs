//! Bytes between the host's files and guest memory, without a copy in this process.
//!
//! Guest memory changes under the device at any time, so no reference to it may exist; the kernel
//! reads and writes it by address here, and `vm-memory` drives these ends page run by page run
//! (`Bytes::read_exact_volatile_from`, `Bytes::write_all_volatile_to`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

/// A file from some position on, by `pread` and `pwrite`: the descriptor's own position, which it may
/// share with other processes, stays out of it.
#[derive(Debug)]
pub struct FileAt<'a> {
    file: BorrowedFd<'a>,
    position: u64,
}

impl<'a> FileAt<'a> {
    /// `file` from byte `position` on.
    #[must_use]
    pub fn new(file: BorrowedFd<'a>, position: u64) -> Self {
        Self { file, position }
    }

    /// Calls `transfer(offset in the buffer, position in the file)` until it has moved `len` bytes or
    /// answers 0; both go on by what it answers.
    fn repeat(
        &mut self,
        len: usize,
        transfer: impl Fn(usize, libc::off_t) -> libc::ssize_t,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < len {
            let position = libc::off_t::try_from(self.position)
                .map_err(|_| VolatileMemoryError::IOError(io::ErrorKind::InvalidInput.into()))?;
            match usize::try_from(transfer(done, position)) {
                Ok(0) => break,
                Ok(moved) => {
                    done += moved;
                    self.position += moved as u64;
                }
                Err(_) => retry_interrupted()?,
            }
        }
        Ok(done)
    }
}

impl ReadVolatile for FileAt<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let fd = self.file.as_raw_fd();
        let guard = buf.ptr_guard_mut();
        let len = buf.len();
        let read = self.repeat(len, |offset, position| {
            // SAFETY: `repeat` keeps `offset` under `len`, so the range lies in the slice, which the
            // guard keeps mapped.
            unsafe {
                libc::pread(
                    fd,
                    guard.as_ptr().add(offset).cast(),
                    len - offset,
                    position,
                )
            }
        });
        buf.bitmap().mark_dirty(0, len);
        read
    }
}

impl WriteVolatile for FileAt<'_> {
    fn write_volatile<B: BitmapSlice>(
        &mut self,
        buf: &VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let fd = self.file.as_raw_fd();
        let guard = buf.ptr_guard();
        let len = buf.len();
        self.repeat(len, |offset, position| {
            // SAFETY: as in `read_volatile`.
            unsafe {
                libc::pwrite(
                    fd,
                    guard.as_ptr().add(offset).cast(),
                    len - offset,
                    position,
                )
            }
        })
    }
}

/// The host kernel's random bytes.
#[derive(Debug, Clone, Copy)]
pub struct Random;

impl ReadVolatile for Random {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let guard = buf.ptr_guard_mut();
        let mut done = 0;
        while done < buf.len() {
            // SAFETY: `done` is under the slice's length, so the range lies in the slice, which the
            // guard keeps mapped.
            let read =
                unsafe { libc::getrandom(guard.as_ptr().add(done).cast(), buf.len() - done, 0) };
            match usize::try_from(read) {
                Ok(read) => done += read,
                Err(_) => retry_interrupted()?,
            }
        }
        buf.bitmap().mark_dirty(0, done);
        Ok(done)
    }
}

/// Zero bytes without end: what wipes guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Zeros;

impl ReadVolatile for Zeros {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < buf.len() {
            let step = ZEROS.len().min(buf.len() - done);
            buf.offset(done)?.copy_from(&ZEROS[..step]);
            done += step;
        }
        Ok(done)
    }
}

/// The last system call's failure, but for an interruption by a signal.
fn retry_interrupted() -> Result<(), VolatileMemoryError> {
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted {
        Ok(())
    } else {
        Err(VolatileMemoryError::IOError(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const SIZE: usize = 0x1_0000;

    fn memory(fill: u8) -> GuestMemoryMmap {
        // Two regions that touch: a transfer may run from one into the other.
        let half = SIZE / 2;
        let ranges = [(GuestAddress(0), half), (GuestAddress(half as u64), half)];
        let mem = GuestMemoryMmap::from_ranges(&ranges).expect("64 KiB can be mapped");
        mem.write_slice(&[fill; SIZE], GuestAddress(0))
            .expect("in memory");
        mem
    }

    fn contents(mem: &GuestMemoryMmap) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        mem.read_slice(&mut bytes, GuestAddress(0))
            .expect("in memory");
        bytes
    }

    #[test]
    fn test_file_at_moves_exactly_the_range() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        let data: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
        file.write_all(&data).expect("written");
        let mem = memory(1);
        let at = GuestAddress(0x3000);

        mem.read_exact_volatile_from(at, &mut FileAt::new(file.as_fd(), 7), 0x9000)
            .expect("the file is long enough");

        let mut expected = vec![1; SIZE];
        expected[0x3000..0xc000].copy_from_slice(&data[7..7 + 0x9000]);
        assert_eq!(contents(&mem), expected);

        mem.write_all_volatile_to(at, &mut FileAt::new(file.as_fd(), 39_999), 0x9000)
            .expect("a file grows");
        file.rewind().expect("a file");
        let mut written = Vec::new();
        file.read_to_end(&mut written).expect("readable");
        assert_eq!(
            written,
            [&data[..39_999], &expected[0x3000..0xc000]].concat()
        );
    }

    #[test]
    fn test_file_at_end_of_file_and_errors() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&[9; 10]).expect("written");
        let mem = memory(0);
        let mut at = FileAt::new(file.as_fd(), 5);
        assert!(
            mem.read_exact_volatile_from(GuestAddress(0), &mut at, 6)
                .is_err()
        );

        let mut at = FileAt::new(file.as_fd(), u64::MAX);
        assert!(
            mem.read_exact_volatile_from(GuestAddress(0), &mut at, 1)
                .is_err()
        );

        let read_only = std::fs::File::open("/proc/self/exe").expect("this program");
        let mut at = FileAt::new(read_only.as_fd(), 0);
        assert!(
            mem.write_all_volatile_to(GuestAddress(0), &mut at, 1)
                .is_err()
        );
    }

    #[test]
    fn test_zeros_and_random_fill_exactly_the_range() {
        let mem = memory(7);
        mem.read_exact_volatile_from(GuestAddress(0x1fff), &mut Zeros, 0x8002)
            .expect("in memory");
        let mut expected = vec![7; SIZE];
        expected[0x1fff..0xa001].fill(0);
        assert_eq!(contents(&mem), expected);

        mem.read_exact_volatile_from(GuestAddress(0x1fff), &mut Random, 0x8002)
            .expect("in memory");
        let bytes = contents(&mem);
        assert_eq!(bytes[..0x1fff], expected[..0x1fff]);
        assert_eq!(bytes[0xa001..], expected[0xa001..]);
        let zeros = bytes[0x1fff..0xa001]
            .iter()
            .filter(|byte| **byte == 0)
            .count();
        assert!(
            (20..400).contains(&zeros),
            "{zeros} of 32770 bytes: 128 are expected"
        );
    }
}
