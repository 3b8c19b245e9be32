//! Frames of the control channel over sockets that are not waited for.

use std::os::fd::AsFd;

use cachot_control::{FrameError, MAX_FRAME, read_frame, write_frame};
use rustix::io::{Errno, read, write};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that have arrived and are not a whole frame yet.
#[derive(Debug)]
pub struct Incoming {
    bytes: Vec<u8>,
    max: usize,
}

/// Length of a frame's prefix, in bytes.
const PREFIX: usize = 4;

impl Incoming {
    /// For frames of at most `max` bytes, and never more than [`MAX_FRAME`].
    pub fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            max: max.min(MAX_FRAME),
        }
    }

    /// Reads once; `false` at the end of the stream or if it failed.
    pub fn fill(&mut self, from: impl AsFd) -> bool {
        let mut chunk = [0; 4096];
        match read(from, &mut chunk) {
            Ok(0) => false,
            Ok(len) => {
                self.bytes.extend_from_slice(&chunk[..len]);
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as the prefix has arrived, or [`FrameError::Malformed`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the caller chooses the message's type, and errors end it"
    )]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(prefix) = self.bytes.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > self.max {
            return Err(FrameError::TooLong(length));
        }
        let end = PREFIX + length;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let message = read_frame(&mut &self.bytes[..end])?;
        self.bytes.drain(..end);
        Ok(Some(message))
    }

    /// What arrived behind the last frame.
    pub fn rest(&self) -> &[u8] {
        &self.bytes
    }
}

/// Frames that are not sent yet.
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
}

impl Outgoing {
    /// Adds a frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn push(&mut self, message: &impl Serialize) -> Result<(), FrameError> {
        write_frame(&mut self.bytes, message)
    }

    /// Whether there is something to send.
    pub fn pending(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Sends once. If the other side is gone, which shows when it is read from, all is dropped.
    pub fn flush(&mut self, to: impl AsFd) {
        match write(to, &self.bytes) {
            Ok(len) => {
                self.bytes.drain(..len);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.bytes.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_control::{ToHost, write_frame};
    use std::io::Write;

    #[test]
    fn test_next_frames_arriving_byte_by_byte() {
        let messages = [
            ToHost::Hello {
                version: 1,
                uptime_us: 5,
            },
            ToHost::Exited {
                session: 1,
                code: 3,
            },
        ];
        let mut wire = Vec::new();
        for message in &messages {
            write_frame(&mut wire, message).expect("written");
        }
        wire.extend(b"raw");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");

        let mut incoming = Incoming::new(MAX_FRAME);
        let mut received = Vec::new();
        for byte in wire {
            writer.write_all(&[byte]).expect("written");
            assert!(incoming.fill(&reader));
            if received.len() < messages.len() {
                received.extend(incoming.next::<ToHost>().expect("no error"));
            }
        }
        drop(writer);

        assert_eq!(received, messages);
        assert_eq!(incoming.rest(), b"raw");
        assert!(!incoming.fill(&reader));
    }

    #[test]
    fn test_next_frame_over_the_limit_is_refused_at_once() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(&100_u32.to_le_bytes()).expect("written");
        let mut incoming = Incoming::new(99);
        incoming.fill(&reader);
        let next = incoming.next::<ToHost>();
        assert!(matches!(next, Err(FrameError::TooLong(100))), "{next:?}");
    }
}
