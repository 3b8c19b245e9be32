//! A search through all the memory of another process.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, ensure};
use memchr::memmem;

/// One place where the needle was found.
pub struct Hit {
    /// Address in the process.
    pub address: u64,
    /// The mapping's line in `/proc/PID/maps`.
    pub mapping: String,
}

/// What a search found.
pub struct Scan {
    /// Bytes that were read and searched.
    pub bytes: u64,
    /// Where the needle is.
    pub hits: Vec<Hit>,
}

/// Searches every readable mapping of process `pid` for `needle`, untouched pages aside.
pub fn scan(pid: u32, needle: &[u8]) -> anyhow::Result<Scan> {
    ensure!(!needle.is_empty(), "an empty needle is everywhere");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let finder = memmem::Finder::new(needle);
    let mut scan = Scan {
        bytes: 0,
        hits: Vec::new(),
    };
    for line in maps.lines() {
        let (start, end) = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'))
            .context("a line of maps has no range")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        // Pieces overlap by a needle, so that none is missed between two of them.
        let overlap = needle.len() as u64 - 1;
        let mut at = start;
        let mut piece = vec![0; 1 << 20];
        while at < end {
            let room = usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
            // Special mappings ([vvar]) cannot be read; they hold no memory of the process.
            let Ok(read @ 1..) = memory.read_at(&mut piece[..room], at) else {
                break;
            };
            for offset in finder.find_iter(&piece[..read]) {
                let address = at + offset as u64;
                if scan.hits.last().is_none_or(|last| last.address < address) {
                    scan.hits.push(Hit {
                        address,
                        mapping: line.to_owned(),
                    });
                }
            }
            let next = at + read as u64;
            scan.bytes += next - at;
            at = if next < end {
                (next - overlap).max(at + 1)
            } else {
                next
            };
        }
    }
    Ok(scan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_scan_finds_what_this_process_holds() {
        let needle: Vec<u8> = (0..48).map(|at: u8| at.wrapping_mul(37) ^ 0x5a).collect();
        let copy = needle.repeat(3);

        let scan = scan(std::process::id(), &needle).expect("own memory can be read");

        let first = copy.as_ptr().addr() as u64;
        for expected in [first, first + 48, first + 96] {
            assert!(scan.hits.iter().any(|hit| hit.address == expected));
        }
        assert!(scan.bytes > 1 << 20);
    }
}
