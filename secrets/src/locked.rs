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

/// Whole pages of private memory, locked into RAM and left out of core dumps, zero at first; wiped on drop.
pub struct LockedBuffer {
    pages: Mapping,
}

impl LockedBuffer {
    /// At least `len` bytes, rounded up to whole pages; `len` is not 0.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn new(len: usize) -> Result<Self, LockError> {
        let size = len
            .checked_next_multiple_of(rustix::param::page_size())
            .ok_or_else(|| LockError::Limit {
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
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    const NEEDLE: &[u8] = b"needle-in-locked-memory-7c1d";

    thread_local! {
        static UNMAPPED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }

    /// Called between whatever an owner does to a mapping when it is dropped and its `munmap`.
    pub(super) fn observe_unmap(mapping: &Mapping) {
        // SAFETY: the mapping is still there, readable, and not borrowed any more.
        let bytes = unsafe { slice::from_raw_parts(mapping.start.as_ptr(), mapping.size) };
        UNMAPPED.with_borrow_mut(|seen| seen.push(bytes.to_vec()));
    }

    /// For tests that lock megabytes: one at a time they fit the 8 MiB that a user may usually lock.
    pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this thread's mappings held when they were unmapped since the last call.
    fn unmapped() -> Vec<Vec<u8>> {
        UNMAPPED.take()
    }

    fn holds_needle(bytes: &[u8]) -> bool {
        bytes.windows(NEEDLE.len()).any(|window| window == NEEDLE)
    }

    /// `Locked:` in KiB and `VmFlags:` of the mapping that holds an address.
    fn smaps(address: *const u8) -> (u64, Vec<String>) {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps is readable");
        let mut inside = false;
        let mut locked = None;
        for line in smaps.lines() {
            let first = line.split_whitespace().next().unwrap_or_default();
            if let Some((start, end)) = first.split_once('-') {
                let parse = |text| usize::from_str_radix(text, 16).expect("an address");
                inside = (parse(start)..parse(end)).contains(&address.addr());
            } else if inside && first == "Locked:" {
                let kib = line.split_whitespace().nth(1).expect("a number");
                locked = Some(kib.parse().expect("a number"));
            } else if inside && first == "VmFlags:" {
                let flags = line.split_whitespace().skip(1).map(str::to_owned).collect();
                return (locked.expect("Locked: stands before VmFlags:"), flags);
            }
        }
        panic!("no mapping holds {address:p}");
    }

    fn has(flags: &[String], wanted: &[&str]) -> bool {
        wanted.iter().all(|flag| flags.iter().any(|f| f == flag))
    }

    #[test]
    fn test_buffer_is_locked_and_left_out_of_dumps_and_forks() {
        let ordinary = vec![1_u8; 1 << 20];

        let buffer = LockedBuffer::new(3 * 4096 + 1).expect("memory");

        let (locked, flags) = smaps(buffer.as_ptr());
        assert!(locked >= 16, "only {locked} KiB locked");
        assert!(has(&flags, &["lo", "dd", "wf"]), "{flags:?}");
        assert!(!has(&flags, &["mg"]), "{flags:?}");
        let (locked, flags) = smaps(ordinary.as_ptr());
        assert_eq!(locked, 0);
        assert!(!has(&flags, &["lo"]) && !has(&flags, &["dd"]) && !has(&flags, &["wf"]));
    }

    #[test]
    fn test_view_is_locked_before_and_after_the_file_is_written() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&file, 5000).expect("its size");

        let view = LockedView::new(&file, 5000).expect("a view");

        let (locked, flags) = smaps(view._pages.start.as_ptr());
        assert_eq!(locked, 8);
        assert!(
            has(&flags, &["lo", "dd"]) && !has(&flags, &["wr"]),
            "{flags:?}"
        );
        rustix::io::pwrite(&file, NEEDLE, 4090).expect("written");
        // SAFETY: the mapping is readable and `view` is alive; nothing writes to the file now.
        let seen = unsafe { slice::from_raw_parts(view._pages.start.as_ptr(), 5000) };
        assert!(
            holds_needle(seen),
            "the locked pages are the ones that were written"
        );
        assert_eq!(smaps(view._pages.start.as_ptr()).0, 8);
    }

    #[test]
    fn test_buffer_dropped_is_wiped_before_it_is_unmapped() {
        let mut buffer = LockedBuffer::new(10_000).expect("memory");
        buffer[4090..4090 + NEEDLE.len()].copy_from_slice(NEEDLE);
        assert!(holds_needle(&buffer));

        drop(buffer);

        let seen = unmapped();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].len(), 12_288);
        assert!(seen[0].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn test_observer_sees_what_is_not_wiped() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::io::pwrite(&file, NEEDLE, 0).expect("written");

        drop(LockedView::new(&file, NEEDLE.len()).expect("a view"));

        assert!(holds_needle(&unmapped()[0]));
    }

    #[test]
    fn test_buffer_grown_keeps_its_bytes_and_wipes_the_old_ones() {
        let mut buffer = LockedBuffer::new(1).expect("memory");
        buffer[4000..4000 + NEEDLE.len()].copy_from_slice(NEEDLE);

        buffer.grow(4097).expect("more memory");

        assert_eq!(buffer.len(), 8192);
        assert_eq!(&buffer[4000..4000 + NEEDLE.len()], NEEDLE);
        let seen = unmapped();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].len(), 4096);
        assert!(seen[0].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn test_buffer_of_impossible_size_is_an_error() {
        assert!(matches!(
            LockedBuffer::new(usize::MAX),
            Err(LockError::Limit { .. })
        ));
        assert!(LockedBuffer::new(1 << 60).is_err());
    }

    #[test]
    fn test_buffer_is_empty_in_a_forked_child() {
        let mut buffer = LockedBuffer::new(4096).expect("memory");
        let ordinary = NEEDLE.to_vec();
        buffer[..NEEDLE.len()].copy_from_slice(NEEDLE);

        // SAFETY: the child only compares memory and ends with `_exit`, both of which are allowed
        // in a child of a process with threads.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let wiped = buffer.iter().all(|byte| *byte == 0);
            let control = ordinary == NEEDLE;
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(if wiped && control { 42 } else { 1 }) };
        }

        let mut status = 0;
        // SAFETY: `child` is a child of this process and `status` is writable.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFEXITED(status));
        assert_eq!(libc::WEXITSTATUS(status), 42);
        assert_eq!(&buffer[..NEEDLE.len()], NEEDLE);
    }

    #[test]
    fn test_limit_error_says_what_is_needed_and_what_to_do() {
        let error = LockError::Limit {
            needed: 8192,
            limit: Some(65_536),
        };
        assert_eq!(
            error.to_string(),
            "cannot lock 8 KiB more of memory for a secret: this process may lock 64 KiB: raise the limit \
             (`ulimit -l`, LimitMEMLOCK= in a systemd unit) or use fewer or shorter secrets"
        );
    }
}
