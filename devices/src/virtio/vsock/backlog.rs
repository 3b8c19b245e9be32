//! Bytes on their way from the guest to a host socket that cannot take them yet.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use zeroize::Zeroize;

/// Bytes a connection buffers at most, and the credit the guest gets: twice the largest packet Linux
/// sends, so that one can arrive while another drains.
pub(super) const CAPACITY: u32 = 128 << 10;

const CAPACITY_BYTES: usize = CAPACITY as usize;

/// A first-in first-out buffer of at most [`CAPACITY`] bytes. It has memory only while it holds
/// something, and wipes it: workloads pipe secrets through their standard streams.
#[derive(Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends `slice`; the caller's credit check keeps the total within [`CAPACITY`].
    pub(super) fn push<B: BitmapSlice>(&mut self, slice: &VolatileSlice<'_, B>) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(CAPACITY_BYTES);
        }
        if self.bytes.len() + slice.len() > CAPACITY_BYTES {
            self.bytes.copy_within(self.start.., 0);
            self.bytes.truncate(self.bytes.len() - self.start);
            self.start = 0;
        }
        let end = self.bytes.len();
        debug_assert!(
            end + slice.len() <= CAPACITY_BYTES,
            "the credit check failed"
        );
        self.bytes.resize(end + slice.len(), 0);
        slice.copy_to(&mut self.bytes[end..]);
    }

    /// Writes as much as `stream` takes without blocking; answers how many bytes that was.
    pub(super) fn flush_to(&mut self, mut stream: &UnixStream) -> io::Result<usize> {
        let before = self.start;
        while self.start < self.bytes.len() {
            match stream.write(&self.bytes[self.start..]) {
                Ok(written) => self.start += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(self.start - before);
                }
                Err(error) => return Err(error),
            }
        }
        let flushed = self.start - before;
        self.clear();
        Ok(flushed)
    }

    /// Wipes and frees the buffer.
    pub(super) fn clear(&mut self) {
        self.bytes.zeroize();
        self.bytes = Vec::new();
        self.start = 0;
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn push(backlog: &mut Backlog, bytes: &mut [u8]) {
        backlog.push(&VolatileSlice::from(bytes));
    }

    #[test]
    fn test_backlog_keeps_order_and_frees_when_empty() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("settable");
        let mut backlog = Backlog::default();
        let mut sent = Vec::new();
        let mut received = Vec::new();
        let mut part = vec![0; 30_000];

        for round in 0..200_u8 {
            while backlog.bytes.len() - backlog.start + part.len() <= CAPACITY_BYTES {
                part.fill(round);
                sent.extend_from_slice(&part);
                push(&mut backlog, &mut part);
            }
            assert_eq!(
                backlog.bytes.capacity(),
                CAPACITY_BYTES,
                "never reallocated"
            );
            backlog.flush_to(&near).expect("the far end is open");
            let mut chunk = vec![0; 70_000];
            let count = far.read(&mut chunk).expect("something was flushed");
            received.extend_from_slice(&chunk[..count]);
        }
        while !backlog.is_empty() {
            backlog.flush_to(&near).expect("the far end is open");
            let mut chunk = vec![0; 70_000];
            let count = far.read(&mut chunk).expect("something was flushed");
            received.extend_from_slice(&chunk[..count]);
        }
        drop(near);
        far.read_to_end(&mut received).expect("readable");

        assert!(received == sent, "byte-exact");
        assert_eq!(backlog.bytes.capacity(), 0, "freed");
    }

    #[test]
    fn test_backlog_flush_to_closed_socket_is_an_error() {
        let (near, far) = UnixStream::pair().expect("a pair");
        drop(far);
        let mut backlog = Backlog::default();
        push(&mut backlog, &mut [1]);
        assert!(backlog.flush_to(&near).is_err());
    }
}
