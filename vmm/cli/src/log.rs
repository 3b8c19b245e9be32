//! Logs of a VM: files that are appended to and that take a bounded amount of disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FallocateFlags, fallocate};

/// Bytes at the end of a log that are kept.
pub const KEPT: u64 = 16 << 20;

/// How much more than that may be there before the rest is given up.
const SLACK: u64 = 1 << 20;

/// A log. What is older than its last [`KEPT`] bytes is a hole in its file, and reads as zero bytes.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// Its length when something was given up last.
    bounded_at: u64,
}

impl Log {
    /// Appends to this file, which was opened for appending.
    pub fn new(file: File) -> Self {
        Self {
            file,
            bounded_at: 0,
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Appends.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.file.write_all(text)?;
        self.bound()
    }

    /// Gives up what is too old. To be called after others have appended to the file.
    ///
    /// # Errors
    /// What the kernel said, but for a file system without holes, where the log grows.
    pub fn bound(&mut self) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if len < self.bounded_at + KEPT + SLACK {
            return Ok(());
        }
        let old = len - KEPT;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, 0, old) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.bounded_at = old;
        Ok(())
    }
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn test_append_keeps_the_end_and_a_bounded_amount_of_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .expect("created");
        let mut log = Log::new(file);
        let line = [b'x'; 64 << 10];
        for _ in 0..(3 * (KEPT + SLACK)) / line.len() as u64 {
            log.append(&line).expect("written");
        }
        log.append(b"the last line\n").expect("written");

        let metadata = std::fs::metadata(&path).expect("there");
        assert!(metadata.len() >= 3 * (KEPT + SLACK));
        assert!(metadata.blocks() * 512 <= KEPT + 2 * SLACK, "{metadata:?}");
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut text))
            .expect("readable");
        assert!(text.ends_with(b"xthe last line\n"));
    }
}
