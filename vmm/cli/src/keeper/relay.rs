//! One direction of a byte stream: a buffer between a descriptor to read and one to write, and what must not
//! pass masked on the way.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cachot_snapshot::mask::Mask;
use rustix::io::{Errno, read, write};
use zeroize::Zeroizing;

/// Bytes that are read at once, by way of the stack.
const CAPACITY: usize = 32 << 10;

/// Most bytes of one write. A pipe that polls as writable takes this much without blocking
/// (`PIPE_BUF`), so the user's own descriptors need not be made non-blocking, which would change
/// them for every process that shares them.
const MAX_WRITE: usize = 4096;

/// How long bytes that may be the beginning of a value are held back when nothing follows them.
const SILENCE: Duration = Duration::from_millis(50);

/// Bytes on their way. It is read into only when it is empty: a slow reader slows the writer down.
#[derive(Debug, Default)]
pub struct Relay {
    buffer: Vec<u8>,
    sent: usize,
    ended: bool,
    mask: Option<Mask>,
    /// When bytes that the mask holds back are passed on.
    release: Option<Instant>,
}

impl Relay {
    /// Masks what passes from now on.
    pub fn set_mask(&mut self, mask: Mask) {
        self.mask = Some(mask);
    }

    /// Takes bytes that have been read already.
    pub fn take(&mut self, bytes: &[u8]) {
        match &mut self.mask {
            None => self.buffer.extend_from_slice(bytes),
            Some(mask) => {
                mask.feed(bytes, &mut self.buffer);
                self.release = mask.pending().then(|| Instant::now() + SILENCE);
            }
        }
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.release
    }

    /// Passes on what was held back for too long.
    pub fn expire(&mut self, now: Instant) {
        if self.release.is_some_and(|release| release <= now) {
            self.release();
        }
    }

    fn release(&mut self) {
        self.release = None;
        if let Some(mask) = &mut self.mask {
            mask.flush(&mut self.buffer);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.release();
    }

    /// Whether there are bytes to write.
    pub fn pending(&self) -> bool {
        self.sent < self.buffer.len()
    }

    /// Whether the stream has ended.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Takes all that is to be written.
    pub fn pass(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.drain(..std::mem::take(&mut self.sent));
        bytes
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
    /// stream. Returns the number of bytes.
    pub fn fill(&mut self, from: impl AsFd) -> usize {
        self.buffer.clear();
        self.sent = 0;
        let mut bytes = Zeroizing::new([0; CAPACITY]);
        let read = read_once(from, &mut *bytes);
        match read {
            Some(len) => self.take(&bytes[..len]),
            None => self.end(),
        }
        read.unwrap_or(0)
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
        self.release = None;
    }

    /// Ends the stream: nothing more is read or written.
    pub fn close(&mut self) {
        self.discard();
        self.ended = true;
    }
}

/// How many bytes were read, none at the end.
fn read_once(from: impl AsFd, into: &mut [u8]) -> Option<usize> {
    match read(from, into) {
        Ok(0) => None,
        Ok(len) => Some(len),
        Err(Errno::INTR | Errno::AGAIN) => Some(0),
        // The other side is gone, or never was: a terminal that hung up, a folder as input.
        Err(_) => None,
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

        let mut relay = Relay::default();
        relay.take(b"first:");
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
        let mut relay = Relay::default();
        relay.take(b"lost");
        assert_eq!(relay.drain(&writer), Err(Errno::PIPE));
        relay.discard();
        assert!(relay.hungry() && !relay.done());
    }

    #[test]
    fn test_fill_from_a_folder_ends_the_stream() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut relay = Relay::default();
        relay.fill(File::open(folder.path()).expect("open"));
        assert!(relay.done());
    }
}
