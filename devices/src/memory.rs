//! Guest RAM: private anonymous memory with a hole below 4 GiB, kept out of swap and core dumps.
//!
//! Private rather than shared memory, because the kernel gives transparent huge pages to shared memory
//! only where the administrator asked for them; aligned to 2 MiB on both sides, because only
//! then can a huge page of the host map a huge page of the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MlockFlags, ProtFlags};
use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// Where RAM below 4 GiB ends at the latest: device registers, the interrupt controllers and the
/// firmware's addresses follow.
pub const HOLE_START: u64 = 0xc000_0000;

/// Where RAM goes on after the hole.
pub const HOLE_END: u64 = 1 << 32;

/// Sizes of RAM are multiples of this, and mappings are aligned to it: a huge page, in bytes.
pub const GRANULE: u64 = 2 << 20;

/// A page of the host and of the guest, in bytes.
const PAGE: usize = 4096;

/// Least RAM, in bytes: the kernel's own text and a small initial RAM disk fit.
pub const MIN_SIZE: u64 = 16 << 20;

/// Most RAM, in bytes: with the hole, every address still fits the 40 physical address bits that the
/// smallest hosts have.
pub const MAX_SIZE: u64 = 512 << 30;

/// Whether RAM is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The host may swap: every page is locked as soon as it is touched.
    Locked,
    /// The host cannot swap ([`host_may_swap`]), or the user accepts that it does.
    Ignored,
}

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// Under [`MIN_SIZE`] or over [`MAX_SIZE`].
    #[error(
        "guest memory of {0} bytes is not possible: give from {min} MiB to {max} GiB",
        min = MIN_SIZE >> 20,
        max = MAX_SIZE >> 30
    )]
    Size(u64),
    /// Not a multiple of [`GRANULE`].
    #[error("guest memory of {0} bytes is not possible: give a multiple of 2 MiB")]
    Unaligned(u64),
    /// The host has no address space, or may not promise so much.
    #[error("cannot map {} MiB of guest memory: give the guest less (--memory)", .size >> 20)]
    Map {
        /// Bytes that were to be mapped.
        size: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The host has swap and the memory cannot be locked.
    #[error(
        "cannot keep {} MiB of guest memory out of the host's swap: raise the limit of locked memory (`ulimit -l`), \
         turn swap off (`swapoff -a`), run in a cgroup with memory.swap.max=0, or accept that secrets may \
         reach the swap device (--dangerously-allow-swap)",
        .size >> 20
    )]
    Lock {
        /// Bytes that were to be locked.
        size: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an advice that keeps memory out of core dumps.
    #[error("cannot keep guest memory out of core dumps: madvise failed")]
    Advise(#[source] io::Error),
    /// An image of another length.
    #[error("the image's memory has {found} bytes, not the {expected} of its machine")]
    ImageSize {
        /// Bytes of the file.
        found: u64,
        /// Bytes of RAM.
        expected: u64,
    },
    /// The file behind the memory does not answer.
    #[error("cannot tell which pages of guest memory hold data")]
    Pages(#[source] io::Error),
}

/// A run of guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first address.
    pub start: GuestAddress,
    /// Bytes, a multiple of the page size.
    pub len: u64,
}

/// Whether the host may swap out anonymous memory of this process.
///
/// `proc_swaps` is the text of `/proc/swaps`: a heading, then a line for each swap area in use.
/// `memory_swap_max` is the text of `memory.swap.max` of the process's cgroup or of one above it, where
/// there is one: `0` forbids swapping whatever the host has.
#[must_use]
pub fn host_may_swap(proc_swaps: &str, memory_swap_max: Option<&str>) -> bool {
    let swap_areas = proc_swaps
        .lines()
        .skip(1)
        .any(|line| !line.trim().is_empty());
    swap_areas && memory_swap_max.is_none_or(|limit| limit.trim() != "0")
}

/// The guest's RAM: one region, or two around the hole. Clones share the memory.
#[derive(Debug, Clone)]
pub struct GuestRam {
    regions: GuestRegionCollection<RamRegion>,
}

impl GuestRam {
    /// Maps `size` bytes of RAM, all zero. No page is allocated before it is touched.
    ///
    /// # Errors
    /// See [`RamError`].
    ///
    /// # Panics
    /// Never: the regions are sorted and apart.
    pub fn new(size: u64, swap: Swap) -> Result<Self, RamError> {
        let ram = Self::build(size, |start, len, _| RamRegion::new(start, len, None, swap))?;
        if let Some(first) = ram.iter().next() {
            first.split_first_granule()?;
        }
        Ok(ram)
    }

    /// Maps an image of RAM, copy on write: what the guest writes stays out of the file. The regions lie in
    /// the file one after the other. The file must not change or shrink any more; a sealed memfd cannot.
    ///
    /// # Errors
    /// See [`RamError`].
    pub fn map(image: OwnedFd, size: u64, swap: Swap) -> Result<Self, RamError> {
        let found = rustix::fs::fstat(&image).map_err(|errno| RamError::Pages(errno.into()))?;
        let found = u64::try_from(found.st_size).unwrap_or(0);
        if found != size {
            return Err(RamError::ImageSize {
                found,
                expected: size,
            });
        }
        let file = Arc::new(image);
        Self::build(size, |start, len, offset| {
            let file = Arc::clone(&file);
            RamRegion::new(start, len, Some(Image { file, offset }), swap)
        })
    }

    /// Makes the regions of `size` bytes of RAM; `region` is given a start, a length and the number of bytes
    /// before it.
    fn build(
        size: u64,
        region: impl Fn(GuestAddress, u64, u64) -> Result<RamRegion, RamError>,
    ) -> Result<Self, RamError> {
        if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(RamError::Size(size));
        }
        if !size.is_multiple_of(GRANULE) {
            return Err(RamError::Unaligned(size));
        }
        let low = size.min(HOLE_START);
        let mut regions = vec![region(GuestAddress(0), low, 0)?];
        if size > low {
            regions.push(region(GuestAddress(HOLE_END), size - low, low)?);
        }
        let regions = GuestRegionCollection::from_regions(regions)
            .expect("the second region begins after the hole, behind the first");
        Ok(Self { regions })
    }

    /// The bytes of an extent, or none if not all of it is RAM of one region.
    ///
    /// # Safety
    /// Nobody writes to this memory while the slice lives: vCPUs rest, and so do devices.
    #[must_use]
    pub unsafe fn quiet(&self, extent: Extent) -> Option<&[u8]> {
        let region = self.find_region(extent.start)?;
        let len = usize::try_from(extent.len).ok()?;
        let offset = MemoryRegionAddress(extent.start.0 - region.start.0);
        let start = region.get_slice(offset, len).ok()?;
        // SAFETY: the range was just found to lie in the mapping, which lives as long as `self`; the caller
        // vouches for the rest.
        Some(unsafe { std::slice::from_raw_parts(start.ptr_guard().as_ptr(), len) })
    }

    /// The pages that may hold something else than zero bytes, in order: those that were ever touched, and
    /// those that an image brought. Nothing is touched by asking.
    ///
    /// Pages on a swap device are not among them: on a host that may swap this must not be used.
    ///
    /// # Errors
    /// [`RamError::Pages`].
    pub fn data(&self) -> Result<Vec<Extent>, RamError> {
        let mut extents = Vec::new();
        for region in self.regions.iter() {
            region.data(&mut extents).map_err(RamError::Pages)?;
        }
        Ok(extents)
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.regions.iter().map(GuestMemoryRegion::len).sum()
    }

    /// Whether all of `len` bytes from `start` on are RAM; an empty range is not.
    #[must_use]
    pub fn is_ram(&self, start: GuestAddress, len: u64) -> bool {
        // Nothing lies next to a region, so a range in RAM is in one of them.
        self.find_region(start).is_some_and(|region| {
            let offset = start.0 - region.start.0;
            len > 0 && len <= region.len() - offset
        })
    }
}

impl GuestMemoryBackend for GuestRam {
    type R = RamRegion;

    fn num_regions(&self) -> usize {
        self.regions.num_regions()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&RamRegion> {
        self.regions.find_region(addr)
    }

    fn iter(&self) -> impl Iterator<Item = &RamRegion> {
        self.regions.iter()
    }
}

/// The file behind a region.
#[derive(Debug)]
struct Image {
    file: Arc<OwnedFd>,
    /// Where the region begins in it.
    offset: u64,
}

/// A run of guest-physical addresses behind which there is one mapping; unmapped on drop.
#[derive(Debug)]
pub struct RamRegion {
    start: GuestAddress,
    host: NonNull<u8>,
    len: usize,
    image: Option<Image>,
}

// SAFETY: the mapping belongs to no thread, and all access to its bytes is volatile.
unsafe impl Send for RamRegion {}
// SAFETY: as above.
unsafe impl Sync for RamRegion {}

impl RamRegion {
    fn new(
        start: GuestAddress,
        size: u64,
        image: Option<Image>,
        swap: Swap,
    ) -> Result<Self, RamError> {
        let map_error = |errno: Errno| RamError::Map {
            size,
            source: errno.into(),
        };
        let len = usize::try_from(size).map_err(|_| map_error(Errno::NOMEM))?;
        let host = map_aligned(len).map_err(map_error)?;
        let region = Self {
            start,
            host,
            len,
            image,
        };
        region.map_image().map_err(map_error)?;
        region
            .advise(Advice::LinuxDontDump)
            .map_err(|errno| RamError::Advise(errno.into()))?;
        // A kernel built without one of these refuses it and does the like of it anyway: no huge pages,
        // no merging of equal pages.
        for optional in [Advice::LinuxHugepage, Advice::LinuxUnmergeable] {
            match region.advise(optional) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(RamError::Advise(errno.into())),
            }
        }
        if swap == Swap::Locked {
            region.lock().map_err(|errno| RamError::Lock {
                size,
                source: errno.into(),
            })?;
        }
        Ok(region)
    }

    /// Address of the region's first byte in this process, for `KVM_SET_USER_MEMORY_REGION`.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.host.as_ptr().addr() as u64
    }

    /// Small pages for the first granule: boot data touches a dozen of them, and clearing a huge page takes longer
    /// than all else that is done before the guest's first instruction.
    fn split_first_granule(&self) -> Result<(), RamError> {
        const LEN: usize = 2 << 20;
        // SAFETY: no region is shorter than a granule, and the advice changes no contents.
        match unsafe { mm::madvise(self.host.as_ptr().cast(), LEN, Advice::LinuxNoHugepage) } {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(RamError::Advise(errno.into())),
        }
    }

    /// Puts the image in the place of the anonymous memory.
    fn map_image(&self) -> rustix::io::Result<()> {
        let Some(image) = &self.image else {
            return Ok(());
        };
        // SAFETY: the range is this object's mapping, which nobody else knows of yet.
        unsafe {
            mm::mmap(
                self.host.as_ptr().cast(),
                self.len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
                &image.file,
                image.offset,
            )
        }
        .map(drop)
    }

    /// Appends the extents that may hold data.
    fn data(&self, extents: &mut Vec<Extent>) -> io::Result<()> {
        /// Pages that are asked for at a time: as many bytes of answer.
        const PAGES: usize = 32 << 10;
        let mut answer = vec![0_u8; PAGES.min(self.len / PAGE)];
        let first = extents.len();
        for offset in (0..self.len).step_by(answer.len() * PAGE) {
            let len = (answer.len() * PAGE).min(self.len - offset);
            // SAFETY: the range lies in this object's mapping, and the answer has a byte for each of its pages.
            let asked = unsafe {
                let start = self.host.as_ptr().add(offset).cast();
                libc::mincore(start, len, answer.as_mut_ptr())
            };
            if asked != 0 {
                return Err(io::Error::last_os_error());
            }
            for (index, resident) in answer[..len / PAGE].iter().enumerate() {
                if resident & 1 != 0 {
                    self.push_page(extents, first, offset + index * PAGE);
                }
            }
        }
        self.image_data(extents, first)
    }

    /// Adds a page behind all that were added before.
    fn push_page(&self, extents: &mut Vec<Extent>, first: usize, offset: usize) {
        let start = self.start.0 + offset as u64;
        match extents[first..].last_mut() {
            Some(last) if last.start.0 + last.len == start => last.len += PAGE as u64,
            _ => extents.push(Extent {
                start: GuestAddress(start),
                len: PAGE as u64,
            }),
        }
    }

    /// Adds what the image has to the extents from `first` on, which stay in order and apart.
    fn image_data(&self, extents: &mut Vec<Extent>, first: usize) -> io::Result<()> {
        let Some(image) = &self.image else {
            return Ok(());
        };
        let end = image.offset + self.len as u64;
        let mut at = image.offset;
        loop {
            let start = match rustix::fs::seek(&image.file, SeekFrom::Data(at)) {
                Ok(start) if start < end => start / PAGE as u64 * PAGE as u64,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let hole = rustix::fs::seek(&image.file, SeekFrom::Hole(start.max(at)))?;
            let stop = hole.next_multiple_of(PAGE as u64).min(end);
            extents.push(Extent {
                start: GuestAddress(self.start.0 + (start - image.offset)),
                len: stop - start,
            });
            at = stop;
        }
        merge(extents, first);
        Ok(())
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the range is this object's mapping, and none of the advices used drops its contents.
        unsafe { mm::madvise(self.host.as_ptr().cast(), self.len, advice) }
    }

    fn lock(&self) -> rustix::io::Result<()> {
        // SAFETY: the range is this object's mapping; locking changes no contents.
        unsafe { mm::mlock_with(self.host.as_ptr().cast(), self.len, MlockFlags::ONFAULT) }
    }
}

impl Drop for RamRegion {
    fn drop(&mut self) {
        // SAFETY: the range is this object's mapping, and slices of it do not outlive the object.
        let unmapped = unsafe { mm::munmap(self.host.as_ptr().cast(), self.len) };
        debug_assert!(
            unmapped.is_ok(),
            "munmap of an existing mapping fails only for want of memory"
        );
    }
}

/// Sorts the extents from `first` on and joins those that touch or overlap.
fn merge(extents: &mut Vec<Extent>, first: usize) {
    let mut sorted = extents.split_off(first);
    sorted.sort_unstable_by_key(|extent| extent.start.0);
    for extent in sorted {
        match extents[first..].last_mut() {
            Some(last) if last.start.0 + last.len >= extent.start.0 => {
                let end = (extent.start.0 + extent.len).max(last.start.0 + last.len);
                last.len = end - last.start.0;
            }
            _ => extents.push(extent),
        }
    }
}

/// Maps `len` bytes, a multiple of [`GRANULE`], at an address that is one too.
fn map_aligned(len: usize) -> rustix::io::Result<NonNull<u8>> {
    const ALIGN: usize = 2 << 20;
    let padded = len.checked_add(ALIGN).ok_or(Errno::NOMEM)?;
    // SAFETY: the kernel chooses the address, so no existing mapping is touched.
    let base = unsafe {
        mm::mmap_anonymous(
            ptr::null_mut(),
            padded,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )?
    };
    let head = base.align_offset(ALIGN);
    // SAFETY: `head` is under ALIGN, so the aligned part and the rest behind it lie in the mapping, whose
    // other parts nobody knows of. A length of 0 is not passed on.
    unsafe {
        let aligned = base.byte_add(head);
        if head > 0 {
            mm::munmap(base, head)?;
        }
        if head < ALIGN {
            mm::munmap(aligned.byte_add(len), ALIGN - head)?;
        }
        NonNull::new(aligned.cast()).ok_or(Errno::NOMEM)
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        Ok(self.get_slice(addr, 1)?.ptr_guard_mut().as_ptr())
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        let offset =
            usize::try_from(offset.0).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        let end = offset.checked_add(count);
        if end.is_none_or(|end| end > self.len) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        // SAFETY: the range was just found to lie in the mapping, which the slice's lifetime keeps.
        Ok(unsafe { VolatileSlice::with_bitmap(self.host.as_ptr().add(offset), count, (), None) })
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemory, Permissions};

    const MIB: u64 = 1 << 20;

    fn ram(size: u64) -> GuestRam {
        GuestRam::new(size, Swap::Ignored).expect("unreserved memory can be mapped")
    }

    fn layout(ram: &GuestRam) -> Vec<(u64, u64)> {
        ram.iter().map(|r| (r.start_addr().0, r.len())).collect()
    }

    #[test]
    fn test_new_layout_leaves_the_hole() {
        for (size, expected) in [
            (128 * MIB, vec![(0, 128 * MIB)]),
            (HOLE_START, vec![(0, HOLE_START)]),
            (
                HOLE_START + GRANULE,
                vec![(0, HOLE_START), (HOLE_END, GRANULE)],
            ),
            (4096 * MIB, vec![(0, HOLE_START), (HOLE_END, 1024 * MIB)]),
            (
                MAX_SIZE,
                vec![(0, HOLE_START), (HOLE_END, MAX_SIZE - HOLE_START)],
            ),
        ] {
            let ram = ram(size);
            assert_eq!(layout(&ram), expected);
            assert_eq!(ram.size(), size);
            assert!(ram.iter().all(|r| r.host_address().is_multiple_of(GRANULE)));
        }
    }

    #[test]
    fn test_new_invalid_size_returns_error_with_hint() {
        for size in [0, MIB, MIN_SIZE - GRANULE, MAX_SIZE + GRANULE, u64::MAX] {
            let error = GuestRam::new(size, Swap::Ignored).expect_err("out of bounds");
            assert!(matches!(error, RamError::Size(s) if s == size));
            assert!(error.to_string().ends_with("give from 16 MiB to 512 GiB"));
        }
        let error = GuestRam::new(128 * MIB + 4096, Swap::Ignored).expect_err("not a multiple");
        assert!(matches!(error, RamError::Unaligned(_)));
    }

    #[test]
    fn test_is_ram_is_exact() {
        let ram = ram(HOLE_START + 4 * MIB);
        let end = HOLE_END + 4 * MIB;
        for (start, len, expected) in [
            (0, 1, true),
            (0, 0, false),
            (0, HOLE_START, true),
            (0, HOLE_START + 1, false),
            (HOLE_START - 1, 1, true),
            (HOLE_START - 1, 2, false),
            (HOLE_START, 1, false),
            (HOLE_START - 4096, HOLE_END - HOLE_START + 8192, false),
            (HOLE_END - 1, 2, false),
            (HOLE_END, 4 * MIB, true),
            (end - 1, 1, true),
            (end - 1, 2, false),
            (end, 1, false),
            (1, u64::MAX, false),
            (u64::MAX, 1, false),
        ] {
            let start = GuestAddress(start);
            assert_eq!(ram.is_ram(start, len), expected, "{start:?} + {len:#x}");
            let known = usize::try_from(len).expect("64-bit host");
            let by_library = GuestMemory::check_range(&ram, start, known, Permissions::Write);
            assert_eq!(by_library && len > 0, expected, "{start:?} + {len:#x}");
        }
    }

    #[test]
    fn test_access_reaches_both_regions_and_stops_at_their_ends() {
        let ram = ram(HOLE_START + 2 * MIB);
        let clone = ram.clone();
        for address in [0, HOLE_START - 4, HOLE_END, HOLE_END + 2 * MIB - 4] {
            ram.write_obj(0x1122_3344_u32, GuestAddress(address))
                .expect("RAM");
            let read: u32 = clone.read_obj(GuestAddress(address)).expect("RAM");
            assert_eq!(read, 0x1122_3344);
        }
        for address in [HOLE_START - 3, HOLE_END - 4, HOLE_END + 2 * MIB - 3] {
            assert!(ram.write_obj(0_u32, GuestAddress(address)).is_err());
        }
    }

    /// A field of the kernel's description of the mapping behind this guest address. (The mapping may
    /// begin before it, merged with one of another test.)
    fn smaps(ram: &GuestRam, guest: u64, field: &str) -> String {
        let address = ram.iter().next().expect("one region").host_address() + guest;
        let holds = |line: &str| {
            let range = line
                .split_once(' ')
                .and_then(|(range, _)| range.split_once('-'));
            range.is_some_and(|(from, to)| {
                let hex = |text| u64::from_str_radix(text, 16).ok();
                hex(from).is_some_and(|from| from <= address)
                    && hex(to).is_some_and(|to| address < to)
            })
        };
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("procfs is mounted");
        smaps
            .lines()
            .skip_while(|line| !holds(line))
            .find_map(|line| line.strip_prefix(field))
            .expect("the mapping is listed and has the field")
            .trim()
            .to_owned()
    }

    #[test]
    fn test_new_mapping_has_its_flags() {
        let ram = ram(64 * MIB);
        for (guest, huge_pages) in [(0, "nh"), (GRANULE, "hg")] {
            let flags = smaps(&ram, guest, "VmFlags:");
            let has = |flag| flags.split(' ').any(|f| f == flag);
            assert!(
                has("dd") && has("nr") && !has("mg") && !has("sh"),
                "{flags}"
            );
            if std::fs::exists("/sys/kernel/mm/transparent_hugepage").expect("sysfs") {
                assert!(has(huge_pages), "{flags}");
            }
        }
    }

    #[test]
    fn test_new_locked_pages_are_locked_as_they_are_touched() {
        let ram = match GuestRam::new(MIN_SIZE, Swap::Locked) {
            Ok(ram) => ram,
            // An unprivileged process with the usual limit gets the advice instead.
            Err(error) => {
                assert!(matches!(error, RamError::Lock { .. }), "{error}");
                assert!(error.to_string().contains("--dangerously-allow-swap"));
                return;
            }
        };
        ram.write_obj(1_u8, GuestAddress(0)).expect("RAM");
        assert!(
            smaps(&ram, 0, "VmFlags:")
                .split(' ')
                .any(|flag| flag == "lo")
        );
        let locked: u64 = smaps(&ram, 0, "Locked:")
            .replace(" kB", "")
            .parse()
            .expect("a number");
        assert!(
            (4..=2048).contains(&locked),
            "{locked} KiB: touched, and no more"
        );
    }

    fn image(size: u64, writes: &[(u64, &[u8])]) -> OwnedFd {
        let file = rustix::fs::memfd_create(c"image", rustix::fs::MemfdFlags::CLOEXEC);
        let file = file.expect("a memfd");
        rustix::fs::ftruncate(&file, size).expect("a sparse file");
        for (offset, bytes) in writes {
            rustix::io::pwrite(&file, bytes, *offset).expect("written");
        }
        file
    }

    #[test]
    fn test_map_is_copy_on_write() {
        let size = HOLE_START + 4 * MIB;
        let file = image(size, &[(5 * MIB, b"low"), (HOLE_START + MIB, b"high")]);
        let again = file.try_clone().expect("a descriptor");

        let ram = GuestRam::map(file, size, Swap::Ignored).expect("it fits");

        let mut low = [0; 3];
        ram.read_slice(&mut low, GuestAddress(5 * MIB))
            .expect("RAM");
        let mut high = [0; 4];
        ram.read_slice(&mut high, GuestAddress(HOLE_END + MIB))
            .expect("RAM");
        assert_eq!((&low, &high), (b"low", b"high"));
        ram.write_slice(b"new", GuestAddress(5 * MIB)).expect("RAM");
        let sibling = GuestRam::map(again, size, Swap::Ignored).expect("it fits");
        sibling
            .read_slice(&mut low, GuestAddress(5 * MIB))
            .expect("RAM");
        assert_eq!(&low, b"low");
    }

    #[test]
    fn test_map_image_of_another_length_is_refused() {
        for found in [0, 16 * MIB, 18 * MIB - 1, 18 * MIB + 1] {
            let mapped = GuestRam::map(image(found, &[]), 18 * MIB, Swap::Ignored);
            assert!(
                matches!(mapped, Err(RamError::ImageSize { found: f, expected }) if f == found && expected == 18 * MIB)
            );
        }
    }

    /// Addresses of pages in extents.
    fn pages(extents: &[Extent]) -> Vec<u64> {
        extents
            .iter()
            .flat_map(|extent| (extent.start.0..extent.start.0 + extent.len).step_by(PAGE))
            .collect()
    }

    #[test]
    fn test_data_is_what_was_touched() {
        let ram = ram(HOLE_START + 2 * MIB);
        assert_eq!(ram.data().expect("no file"), []);
        // In the first granule, where pages are small; far away, where a huge page may come.
        ram.write_obj(1_u8, GuestAddress(0x5000)).expect("RAM");
        ram.write_obj(1_u8, GuestAddress(0x6fff)).expect("RAM");
        ram.write_obj(1_u8, GuestAddress(HOLE_END + 0x1234))
            .expect("RAM");

        let data = ram.data().expect("no file");

        assert_eq!(
            data[0],
            Extent {
                start: GuestAddress(0x5000),
                len: 0x2000
            }
        );
        assert!(pages(&data).contains(&(HOLE_END + 0x1000)));
        assert!(pages(&data).len() <= 2 + 512);
    }

    #[test]
    fn test_data_of_an_image_is_what_it_has_and_what_was_touched() {
        let size = 16 * MIB;
        let file = image(size, &[(MIB, b"a"), (3 * MIB + 4096, &[7; 8192])]);
        let ram = GuestRam::map(file, size, Swap::Ignored).expect("it fits");
        ram.write_obj(1_u8, GuestAddress(MIB + 4096)).expect("RAM");
        ram.write_obj(1_u8, GuestAddress(8 * MIB)).expect("RAM");

        let data = pages(&ram.data().expect("a memfd"));

        for page in [MIB, MIB + 4096, 3 * MIB + 4096, 3 * MIB + 8192, 8 * MIB] {
            assert!(data.contains(&page), "{page:#x} of {data:x?}");
        }
        assert!(data.is_sorted());
        assert!(!data.contains(&(15 * MIB)), "{data:x?}");
    }

    #[test]
    fn test_drop_unmaps() {
        // Of the 128 TiB of address space a process has, 300 of these would take more.
        for _ in 0..300 {
            assert_eq!(ram(MAX_SIZE).size(), MAX_SIZE);
        }
    }

    #[test]
    fn test_host_may_swap() {
        let heading = "Filename\tType\tSize\tUsed\tPriority\n";
        let used = format!("{heading}/swapfile file 1048572 0 -2\n");
        for (swaps, limit, expected) in [
            ("", None, false),
            (heading, None, false),
            (heading, Some("max\n"), false),
            (used.as_str(), None, true),
            (used.as_str(), Some("max\n"), true),
            (used.as_str(), Some("1048576\n"), true),
            (used.as_str(), Some("0\n"), false),
        ] {
            assert_eq!(host_may_swap(swaps, limit), expected, "{swaps:?} {limit:?}");
        }
    }
}
