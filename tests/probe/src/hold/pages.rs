//! Copies in pages of their own: one made through a mapping of the secret, ones that lie across two page frames,
//! and one at the end of a page.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::place::Memory;
use crate::read::Mapping;

const PAGE: usize = 4096;

/// Size and alignment of the big buffer.
const BIG: usize = 1 << 20;

/// Pairs of pages that are tried until one has frames that are not neighbours.
const TRIES: usize = 64;

/// A private copy of the first `len` bytes of the secret, which no system call has seen: it is made through a
/// mapping.
pub fn private_copy(path: &Path, len: usize) -> anyhow::Result<Memory> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let secret = Mapping::new(&file, len)?;
    let copy = pages(len.div_ceil(PAGE))?;
    for at in 0..len {
        // SAFETY: the pages are ours and have as many bytes.
        unsafe { copy.add(at).write_volatile(secret.byte(at)) };
    }
    // SAFETY: the pages are never unmapped, and nobody else knows of them.
    Ok(unsafe { Memory::new(copy) })
}

/// A copy whose first `before` bytes are at the end of one page frame, and the rest at the start of another
/// one that is not its neighbour.
pub fn split(bytes: &[u8], before: usize) -> anyhow::Result<Memory> {
    ensure!(
        before <= PAGE && bytes.len() <= before + PAGE,
        "it does not fit into two pages"
    );
    let pagemap = File::open("/proc/self/pagemap").context("cannot open /proc/self/pagemap")?;
    for _ in 0..TRIES {
        let pair = pages(2)?;
        // Frames are often given out in order: a page between them, and the second one first, sets them apart. All
        // stay mapped, so that the next try gets other ones.
        let between = pages(1)?;
        for page in [pair.wrapping_add(PAGE), between, pair] {
            // SAFETY: the pages are ours.
            unsafe { page.write_volatile(1) };
        }
        let frames = [
            frame(&pagemap, pair)?,
            frame(&pagemap, pair.wrapping_add(PAGE))?,
        ];
        if frames[0].abs_diff(frames[1]) > 1 {
            // SAFETY: the pages are ours; the bytes lie in the two.
            let start = unsafe {
                pair.write_volatile(0);
                pair.add(PAGE).write_volatile(0);
                pair.add(PAGE - before)
            };
            return Ok(fill(start, bytes));
        }
    }
    bail!("all of {TRIES} pairs of pages have neighbouring frames")
}

/// A copy that ends with a page, the last one of a big buffer full of something else.
pub fn end_of_page(bytes: &[u8]) -> anyhow::Result<Memory> {
    ensure!(bytes.len() <= BIG, "it does not fit into the buffer");
    let mapping = pages(2 * BIG / PAGE)?;
    let buffer = mapping.wrapping_add(mapping.align_offset(BIG));
    // SAFETY: of two MiB one is aligned, and ours.
    let start = unsafe {
        buffer.write_bytes(b'.', BIG);
        buffer.add(BIG - bytes.len())
    };
    Ok(fill(start, bytes))
}

/// Copies to pages that are never unmapped, and have the room.
fn fill(start: *mut u8, bytes: &[u8]) -> Memory {
    // SAFETY: the callers have seen to it.
    unsafe {
        start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        Memory::new(start)
    }
}

/// Small pages of zeros, which stay for good.
fn pages(count: usize) -> anyhow::Result<*mut u8> {
    let (len, protection) = (count * PAGE, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let start = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE)
    }
    .context("cannot map memory")?;
    // SAFETY: it does not change what is in the pages. A kernel without huge pages does not know the advice, and
    // does not need it.
    match unsafe { rustix::mm::madvise(start, len, Advice::LinuxNoHugepage) } {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(start.cast()),
        Err(error) => Err(error).context("cannot ask for small pages"),
    }
}

/// The number of the frame that a page is in: bits 0 to 54 of its entry if bit 63 is set
/// (Documentation/admin-guide/mm/pagemap.rst).
fn frame(pagemap: &File, page: *const u8) -> anyhow::Result<u64> {
    let mut entry = [0; 8];
    pagemap
        .read_exact_at(&mut entry, (page.addr() / PAGE * 8) as u64)
        .context("cannot read /proc/self/pagemap")?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    ensure!(
        entry >> 63 == 1,
        "the page is not present; is memory short?"
    );
    ensure!(
        frame != 0,
        "frame numbers are hidden; run this with CAP_SYS_ADMIN"
    );
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::super::place::Place;
    use super::*;
    use crate::{pattern, process};

    fn assert_holds(mut place: Memory, value: &[u8]) {
        let mut bytes = vec![0; value.len()];
        place.look(&mut bytes).expect("readable");
        assert_eq!(bytes, value);
        let scan = process::scan(std::process::id(), value).expect("own memory can be read");
        let address = place.address();
        assert!(scan.hits.iter().any(|hit| hit.address == address));
    }

    #[test]
    fn test_private_copy_holds_the_value() {
        let value = pattern::bytes(110, 4096);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &value).expect("written");
        assert_holds(private_copy(file.path(), 4096).expect("mapped"), &value);
    }

    #[test]
    fn test_split_lies_across_frames_that_are_not_neighbours() {
        for (len, before) in [(40, 7), (40, 20), (4096, 7), (4096, 20)] {
            let value = pattern::bytes(111, len);
            let place = split(&value, before).expect("run as root");

            let first = place.address();
            let pagemap = File::open("/proc/self/pagemap").expect("there is one");
            let frame = |address: u64| {
                let address = usize::try_from(address).expect("an address");
                frame(&pagemap, std::ptr::without_provenance(address)).expect("run as root")
            };
            assert_eq!((first + before as u64) % PAGE as u64, 0);
            assert!(frame(first).abs_diff(frame(first + before as u64)) > 1);
            assert_holds(place, &value);
        }
    }

    #[test]
    fn test_end_of_page_ends_with_the_buffer() {
        let value = pattern::bytes(112, 100);
        let place = end_of_page(&value).expect("mapped");
        assert_eq!((place.address() + 100) % BIG as u64, 0);
        assert_holds(place, &value);
    }
}
