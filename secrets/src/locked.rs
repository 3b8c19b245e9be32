//! Memory for values: locked into RAM, left out of core dumps and forks, wiped before it is given back.
//!
//! This is the only module that maps memory. Both kinds of mapping are locked before a value can
//! be in them, so no page with a value was ever one that the kernel could swap out.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::slice;

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};
use zeroize::Zeroize;

/// Why memory for a value could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The process may not lock so much memory.
    #[error(
        "cannot lock {} KiB more of memory for a secret: this process may lock {}: raise the limit (`ulimit -l`, \
         LimitMEMLOCK= in a systemd unit) or use fewer or shorter secrets",
        .needed / 1024,
        limit_text(.limit)
    )]
    Limit {
        /// Bytes that were to be locked on top of those locked already.
        needed: usize,
        /// The process's soft limit in bytes (`RLIMIT_MEMLOCK`); `None` is unlimited, in which
        /// case the machine itself is short of memory.
        limit: Option<u64>,
    },
    /// A system call on the memory failed.
    #[error("cannot prepare memory for a secret: {call} failed")]
    System {
        /// Name of the call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn limit_text(limit: &Option<u64>) -> String {
    match limit {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "any amount, but the machine has no more".to_owned(),
    }
}

impl LockError {
    fn system(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System {
            call,
            source: errno.into(),
        }
    }
}

/// Whole pages of private memory, readable and writable, zero at first; wiped on drop.
pub(crate) struct LockedBuffer {
    pages: Mapping,
}

impl LockedBuffer {
    /// At least `len` bytes, rounded up to whole pages; `len` is not 0.
    pub(crate) fn new(len: usize) -> Result<Self, LockError> {
        let size = len
            .checked_next_multiple_of(rustix::param::page_size())
            .ok_or(LockError::Limit {
                needed: len,
                limit: getrlimit(Resource::Memlock).current,
            })?;
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let start = unsafe {
            mm::mmap_anonymous(
                ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let pages = Mapping::adopt(start, size)?;
        // Wiped rather than left out: a forked child that drops its copy of the value writes to
        // these addresses, and must not find some other mapping there.
        pages.advise(Advice::LinuxWipeOnFork, "madvise(MADV_WIPEONFORK)")?;
        match pages.advise(Advice::LinuxUnmergeable, "madvise(MADV_UNMERGEABLE)") {
            // A kernel without same-page merging refuses the advice, and has no use for it.
            Err(LockError::System { source, .. })
                if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            other => other?,
        }
        pages.lock()?;
        Ok(Self { pages })
    }

    /// Moves the contents to a buffer of at least `len` bytes and wipes the old one.
    pub(crate) fn grow(&mut self, len: usize) -> Result<(), LockError> {
        let mut larger = Self::new(len.max(self.len()))?;
        larger[..self.len()].copy_from_slice(self);
        *self = larger;
        Ok(())
    }
}

impl Deref for LockedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is readable for `size` bytes, initialised by the kernel, and lives
        // as long as `self`; only `deref_mut`, which needs `&mut self`, gives out a writable view.
        unsafe { slice::from_raw_parts(self.pages.start.as_ptr(), self.pages.size) }
    }
}

impl DerefMut for LockedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, writable as well, and `&mut self` makes the view the only one.
        unsafe { slice::from_raw_parts_mut(self.pages.start.as_ptr(), self.pages.size) }
    }
}

impl Drop for LockedBuffer {
    fn drop(&mut self) {
        // The field `pages` is unmapped after this.
        self.zeroize();
    }
}

/// A locked, read-only mapping of a file in memory: while it lives the file's pages are not swapped.
pub(crate) struct LockedView {
    _pages: Mapping,
}

impl LockedView {
    /// Maps and locks the first `len` bytes of a memfd whose size is at least that; `len` is not 0.
    ///
    /// Locking reads every page, which makes the kernel allocate it: what is written to the file
    /// later lands in pages that are locked already.
    pub(crate) fn new(memfd: impl AsFd, len: usize) -> Result<Self, LockError> {
        // SAFETY: the kernel chooses the address, so no existing mapping is touched. The mapping
        // is private because a shared one of a write-sealed file is refused before Linux 6.7.
        let start = unsafe {
            mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                memfd,
                0,
            )
        };
        let pages = Mapping::adopt(start, len)?;
        pages.lock()?;
        Ok(Self { _pages: pages })
    }
}

/// A mapping that this process made and that nothing else refers to; unmapped on drop.
struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory belongs to no thread, and this module gives out references to it only under
// the borrow of its owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared borrow gives only shared references.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Takes over what `mmap` returned and keeps it out of core dumps.
    fn adopt(
        start: rustix::io::Result<*mut core::ffi::c_void>,
        size: usize,
    ) -> Result<Self, LockError> {
        let start = start.map_err(LockError::system("mmap"))?;
        let start = NonNull::new(start.cast())
            .expect("mmap without a fixed address never returns page zero");
        let mapping = Self { start, size };
        mapping.advise(Advice::LinuxDontDump, "madvise(MADV_DONTDUMP)")?;
        Ok(mapping)
    }

    fn advise(&self, advice: Advice, call: &'static str) -> Result<(), LockError> {
        // SAFETY: the range is this mapping's, and no advice used in this module alters its
        // contents in this process.
        unsafe { mm::madvise(self.start.as_ptr().cast(), self.size, advice) }
            .map_err(LockError::system(call))
    }

    fn lock(&self) -> Result<(), LockError> {
        // SAFETY: the range is this mapping's; locking does not alter contents.
        match unsafe { mm::mlock(self.start.as_ptr().cast(), self.size) } {
            Ok(()) => Ok(()),
            Err(Errno::NOMEM | Errno::PERM | Errno::AGAIN) => Err(LockError::Limit {
                needed: self.size.next_multiple_of(rustix::param::page_size()),
                limit: getrlimit(Resource::Memlock).current,
            }),
            Err(errno) => Err(LockError::system("mlock")(errno)),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(test)]
        tests::observe_unmap(self);
        // SAFETY: the range is this mapping's, and its owner's borrows have ended.
        let unmapped = unsafe { mm::munmap(self.start.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok(), "a whole mapping of our own unmaps");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static UNMAPPED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }

    /// Called between whatever an owner does to a mapping when it is dropped and its `munmap`.
    pub(super) fn observe_unmap(mapping: &Mapping) {
        // SAFETY: the mapping is still there, readable, and not borrowed any more.
        let bytes = unsafe { slice::from_raw_parts(mapping.start.as_ptr(), mapping.size) };
        UNMAPPED.with_borrow_mut(|seen| seen.push(bytes.to_vec()));
    }
}
