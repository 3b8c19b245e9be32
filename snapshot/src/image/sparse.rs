//! Reads and copies files without their holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::chunk::CHUNK_LEN;

/// What is looked at together to find zeros, in bytes.
const PAGE: usize = 4096;

/// The first offset from `at` on that may hold data; `len` if only a hole follows.
///
/// # Errors
/// What the kernel said.
pub fn next_data(file: &File, at: u64, len: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data.clamp(at, len)),
        Err(Errno::NXIO) => Ok(len),
        // A file system without holes, or a device.
        Err(Errno::INVAL) => Ok(at),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads `len` bytes in order, holes included.
pub(super) fn read_all(
    file: &File,
    len: u64,
    buffer: &mut [u8],
    mut consume: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let now = usize::try_from(len - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        file.read_exact_at(&mut buffer[..now], at)?;
        consume(&buffer[..now])?;
        at += now as u64;
    }
    Ok(())
}

/// Copies a disk, which nobody may write to meanwhile, into an empty file: by reference where the file system can,
/// else byte by byte, and then holes and zero pages become holes. `from` is a file or a block device.
///
/// # Errors
/// What the kernel said.
pub fn copy_disk(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    copy(from, to)
}

fn copy(from: &File, to: &File) -> io::Result<()> {
    let len = rustix::fs::seek(from, SeekFrom::End(0))?;
    to.set_len(len)?;
    let mut buffer = vec![0; CHUNK_LEN];
    let mut at = 0;
    while at < len {
        at = next_data(from, at, len)?;
        let now = usize::try_from(len - at).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
        from.read_exact_at(&mut buffer[..now], at)?;
        write_data(to, &buffer[..now], at)?;
        at += now as u64;
    }
    Ok(())
}

/// Writes what is not zero of `bytes`, in runs of the file's pages.
///
/// # Errors
/// What the kernel said.
pub fn write_data(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    // What is written with one call: pages that follow one another.
    let mut run = 0..0;
    while run.end < bytes.len() {
        let from = run.end;
        let in_page = usize::try_from((at + from as u64) % PAGE as u64).unwrap_or(0);
        let end = bytes.len().min(from + PAGE - in_page);
        if is_zero(&bytes[from..end]) {
            to.write_all_at(&bytes[run.clone()], at + run.start as u64)?;
            run = end..end;
        } else {
            run.end = end;
        }
    }
    to.write_all_at(&bytes[run.clone()], at + run.start as u64)
}

fn is_zero(page: &[u8]) -> bool {
    // A loop without a way out in the middle is compiled to vector instructions.
    page.chunks(512)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = Vec::new();
        let len = file.metadata().expect("there").len();
        read_all(file, len, &mut [0; 1000], |more| {
            bytes.extend_from_slice(more);
            Ok(())
        })
        .expect("read");
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn test_files_are_written_and_copied_as_they_are_without_zero_pages(
            runs in prop::collection::vec((1..20_000usize, prop::option::of(1..=255u8)), 0..30),
        ) {
            let mut bytes = Vec::new();
            for (len, byte) in runs {
                bytes.resize(bytes.len() + len, byte.unwrap_or(0));
            }
            let (written, copied) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
            written.set_len(bytes.len() as u64).expect("a length");
            write_data(&written, &bytes, 0).expect("written");
            copy(&written, &copied).expect("copied");
            prop_assert!(content(&written) == bytes);
            prop_assert!(content(&copied) == bytes);
            let pages = bytes.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0)).count();
            for file in [written, copied] {
                prop_assert!(file.metadata().expect("there").blocks() * 512 <= (pages * PAGE) as u64);
            }
        }
    }
}
