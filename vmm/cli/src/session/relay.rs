//! One direction of a byte stream: a buffer between a descriptor to read and one to write.

use std::os::fd::AsFd;

use rustix::io::{Errno, read, write};

/// Bytes that are read at once.
const CAPACITY: usize = 64 << 10;

/// Most bytes of one write. A pipe that polls as writable takes this much without blocking
/// (`PIPE_BUF`), so the user's own descriptors need not be made non-blocking, which would change
/// them for every process that shares them.
const MAX_WRITE: usize = 4096;

/// Bytes on their way. It is read into only when it is empty: a slow reader slows the writer down.
#[derive(Debug)]
pub struct Relay {
    buffer: Vec<u8>,
    sent: usize,
    ended: bool,
}

impl Relay {
    /// With bytes that have been read already.
    pub fn new(first: &[u8]) -> Self {
        Self {
            buffer: first.to_vec(),
            sent: 0,
            ended: false,
        }
    }

    /// Whether there are bytes to write.
    pub fn pending(&self) -> bool {
        self.sent < self.buffer.len()
    }

    /// Whether it is time to read.
    pub fn hungry(&self) -> bool {
        !self.ended && !self.pending()
    }

    /// Whether everything has been read and written.
    pub fn done(&self) -> bool {
        self.ended && !self.pending()
    }

    /// Reads once, from a descriptor that polls as readable; an error or the end of file ends the
    /// stream.
    pub fn fill(&mut self, from: impl AsFd) {
        self.buffer.resize(CAPACITY, 0);
        self.sent = 0;
        let len = match read(from, &mut self.buffer) {
            Ok(0) => {
                self.ended = true;
                0
            }
            Ok(len) => len,
            Err(Errno::INTR | Errno::AGAIN) => 0,
            // The other side is gone, or never was: a terminal that hung up, a folder as input.
            Err(_) => {
                self.ended = true;
                0
            }
        };
        self.buffer.truncate(len);
    }

    /// Writes once, to a descriptor that polls as writable.
    ///
    /// # Errors
    /// What the kernel said; the caller decides with [`Relay::discard`] or by giving up.
    pub fn drain(&mut self, to: impl AsFd) -> Result<(), Errno> {
        let rest = &self.buffer[self.sent..];
        match write(to, &rest[..rest.len().min(MAX_WRITE)]) {
            Ok(len) => self.sent += len,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Forgets what has not been written.
    pub fn discard(&mut self) {
        self.buffer.clear();
        self.sent = 0;
    }

    /// Ends the stream: nothing more is read or written.
    pub fn close(&mut self) {
        self.discard();
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn test_relay_copies_everything_in_order_and_ends() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        writer.write_all(&bytes).expect("fits the pipe");
        drop(writer);
        let mut output = tempfile::tempfile().expect("a file");

        let mut relay = Relay::new(b"first:");
        while !relay.done() {
            if relay.pending() {
                relay.drain(&output).expect("written");
            } else {
                relay.fill(&reader);
            }
        }

        std::io::Seek::rewind(&mut output).expect("a file");
        let mut copied = Vec::new();
        output.read_to_end(&mut copied).expect("readable");
        assert_eq!(copied, [b"first:", bytes.as_slice()].concat());
    }

    #[test]
    fn test_drain_to_a_closed_pipe_is_an_error_and_discard_goes_on() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut relay = Relay::new(b"lost");
        assert_eq!(relay.drain(&writer), Err(Errno::PIPE));
        relay.discard();
        assert!(relay.hungry() && !relay.done());
    }

    #[test]
    fn test_fill_from_a_folder_ends_the_stream() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut relay = Relay::new(b"");
        relay.fill(File::open(folder.path()).expect("open"));
        assert!(relay.done());
    }
}
