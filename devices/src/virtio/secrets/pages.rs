//! Runs of guest pages, and values in them.

use std::io;
use std::os::fd::AsFd;

use cachot_secrets::SealedValue;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::virtio::{FileAt, Zeros};

/// Bytes of a page: the unit in which memory is attached.
pub const PAGE: u64 = 4096;

/// A run of whole pages of guest-physical memory; not empty, its end does not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRange {
    start: u64,
    end: u64,
}

impl PageRange {
    /// `None` unless both numbers are multiples of [`PAGE`], the length is not 0 and the end fits.
    pub fn new(start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        let whole = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        (whole && len > 0).then_some(Self { start, end })
    }

    /// The pages that hold any of `len` bytes from `start` on; at least one.
    pub fn around(start: u64, len: u64) -> Self {
        let last = start.saturating_add(len.saturating_sub(1));
        Self {
            start: start / PAGE * PAGE,
            end: (last / PAGE * PAGE).saturating_add(PAGE),
        }
    }

    /// First address.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Address behind the last one.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether a page is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Whether all of a range is RAM.
pub fn is_ram<M: GuestMemory>(mem: &M, range: PageRange) -> bool {
    usize::try_from(range.len())
        .is_ok_and(|len| mem.check_range(GuestAddress(range.start()), len, Permissions::Write))
}

/// Writes a value to ranges that it fits into, and zero bytes behind it. On failure the ranges hold zero
/// bytes only.
pub fn deliver<M: GuestMemory>(
    mem: &M,
    ranges: &[PageRange],
    value: &SealedValue,
) -> Result<(), GuestMemoryError> {
    fill(mem, ranges, value).or_else(|error| {
        wipe(mem, ranges)?;
        Err(error)
    })
}

fn fill<M: GuestMemory>(
    mem: &M,
    ranges: &[PageRange],
    value: &SealedValue,
) -> Result<(), GuestMemoryError> {
    let mut source = FileAt::new(value.as_fd(), 0);
    let mut left = value.len();
    for range in ranges {
        let len = range_len(*range)?;
        let filled = left.min(len);
        let start = GuestAddress(range.start());
        mem.read_exact_volatile_from(start, &mut source, filled)?;
        let behind = GuestAddress(range.start() + filled as u64);
        mem.read_exact_volatile_from(behind, &mut Zeros, len - filled)?;
        left -= filled;
    }
    Ok(())
}

/// Fills ranges with zero bytes.
pub fn wipe<M: GuestMemory>(mem: &M, ranges: &[PageRange]) -> Result<(), GuestMemoryError> {
    ranges.iter().try_for_each(|range| {
        let start = GuestAddress(range.start());
        mem.read_exact_volatile_from(start, &mut Zeros, range_len(*range)?)
    })
}

fn range_len(range: PageRange) -> Result<usize, GuestMemoryError> {
    usize::try_from(range.len())
        .map_err(|_| GuestMemoryError::IOError(io::ErrorKind::InvalidInput.into()))
}
