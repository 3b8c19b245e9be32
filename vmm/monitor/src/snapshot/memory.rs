//! RAM of a resting machine into the `memory` part of an image: region after region, holes for zero pages.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use cachot_devices::memory::{Extent, GuestRam};
use cachot_snapshot::image::write_data;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Where a guest-physical address is in the part; none where it is not RAM.
pub fn file_offset(ram: &GuestRam, address: GuestAddress) -> Option<u64> {
    let mut before = 0;
    for region in ram.iter() {
        if let Some(offset) = address.0.checked_sub(region.start_addr().0)
            && offset < region.len()
        {
            return Some(before + offset);
        }
        before += region.len();
    }
    None
}

/// The extents that have to be looked at: those with data or, where the host may have swapped some out, all. RAM may
/// be on a swap device only if it is not `locked` and the host has one: what was swapped out keeps it from going.
pub fn extents(ram: &GuestRam, locked: bool) -> io::Result<Vec<Extent>> {
    if !locked && rustix::system::sysinfo().totalswap > 0 {
        return Ok(ram
            .iter()
            .map(|region| Extent {
                start: region.start_addr(),
                len: region.len(),
            })
            .collect());
    }
    ram.data().map_err(io::Error::other)
}

/// Writes one extent, whose bytes these are, but for its zero pages and the addresses in `left_out`, which are
/// sorted and apart. The file is new there, so what is not written reads as zero; nothing of it is ever copied.
pub fn write_extent(
    file: &File,
    offset: u64,
    start: u64,
    bytes: &[u8],
    left_out: &[Range<u64>],
) -> io::Result<()> {
    let end = start + bytes.len() as u64;
    let mut at = start;
    let first = left_out.partition_point(|range| range.end <= start);
    for range in left_out[first..]
        .iter()
        .take_while(|range| range.start < end)
    {
        let stop = range.start.max(at);
        write_data(file, part(bytes, start, at..stop), offset + (at - start))?;
        at = range.end.min(end);
    }
    write_data(file, part(bytes, start, at..end), offset + (at - start))
}

/// Lets the kernel begin to bring the file to its disk, while it is searched again.
pub fn begin_writing_out(file: &File) {
    // SAFETY: the call takes numbers only. What comes of it shows when the keeper syncs the file.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The bytes at these addresses, which lie in `bytes` from `start` on.
fn part(bytes: &[u8], start: u64, addresses: Range<u64>) -> &[u8] {
    let index = |address: u64| {
        usize::try_from(address - start).expect("an address in a slice is under its length away")
    };
    &bytes[index(addresses.start)..index(addresses.end)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    const PAGE: usize = 4096;

    #[test]
    fn test_write_extent_leaves_out_zero_pages_and_what_it_has_to() {
        let mut bytes = vec![0; 64 * PAGE];
        for filled in [
            3 * PAGE..4 * PAGE,
            9 * PAGE..12 * PAGE,
            63 * PAGE..64 * PAGE,
        ] {
            bytes[filled].fill(7);
        }
        let start = 0x10_0000_u64;
        // Before the extent, at its edges, across a page's edge, a whole page, and behind the extent.
        let left_out = [
            0..10,
            start - 10..start + 10,
            start + 10 * PAGE as u64 - 10..start + 10 * PAGE as u64 + 10,
            start + 11 * PAGE as u64..start + 12 * PAGE as u64,
            start + 64 * PAGE as u64 - 1..start + 64 * PAGE as u64 + 10,
            u64::MAX - 1..u64::MAX,
        ];
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.set_len(1 << 20).expect("its size");

        write_extent(&file, 8192, start, &bytes, &left_out).expect("written");

        let mut written = Vec::new();
        file.read_to_end(&mut written).expect("readable");
        for (address, byte) in (start..).zip(&mut bytes) {
            if left_out.iter().any(|range| range.contains(&address)) {
                *byte = 0;
            }
        }
        assert!(written[8192..8192 + bytes.len()] == bytes);
        let elsewhere = [&written[..8192], &written[8192 + bytes.len()..]].concat();
        assert!(elsewhere.iter().all(|byte| *byte == 0));
        let stored = file.metadata().expect("a file").blocks() * 512;
        assert_eq!(stored, 4 * PAGE as u64);
    }
}
