//! The bytes of a secret in this process.

use std::fmt;
use std::io::{self, Read};

use crate::locked::{LockError, LockedBuffer};

/// Largest value, in bytes: 1 MiB, the largest that the virtio-secrets device delivers.
pub const MAX_VALUE_LEN: usize = 1 << 20;

/// Why bytes did not become a value.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// There are no bytes. An empty secret is always a mistake somewhere, so it is never delivered.
    #[error("the value is empty: an empty secret is never delivered")]
    Empty,
    /// There are more than [`MAX_VALUE_LEN`] bytes.
    #[error("the value is over the limit of {MAX_VALUE_LEN} bytes")]
    TooLong,
    /// There is no locked memory for them.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The source failed.
    #[error("the value could not be read")]
    Read(#[source] io::Error),
}

/// The bytes of a secret: 1 to [`MAX_VALUE_LEN`] of them, of any content.
///
/// They live in a mapping of their own that is locked into RAM, left out of core dumps, wiped in
/// forked children and wiped on drop. The type cannot be cloned or serialised, and `Debug` shows
/// its length only. To hand the bytes to another process, [`SecretValue::seal`] them.
pub struct SecretValue {
    buffer: LockedBuffer,
    len: usize,
}

impl SecretValue {
    /// Reads a value up to the end of `reader`, straight into locked memory.
    ///
    /// Pass an unbuffered reader such as [`std::fs::File`]: a buffer in between would keep a copy.
    ///
    /// # Errors
    /// See [`ValueError`]. Of a source that is too long or endless, little more than
    /// [`MAX_VALUE_LEN`] bytes are read.
    pub fn read_from(reader: &mut impl Read) -> Result<Self, ValueError> {
        let mut buffer = LockedBuffer::new(1)?;
        let mut len = 0;
        loop {
            if len > MAX_VALUE_LEN {
                return Err(ValueError::TooLong);
            }
            if len == buffer.len() {
                // One byte over the limit is enough to know that it is exceeded.
                let larger = (2 * len).min(MAX_VALUE_LEN + 1).max(len + 1);
                buffer.grow(larger)?;
            }
            match reader.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ValueError::Read(error)),
            }
        }
        if len == 0 {
            return Err(ValueError::Empty);
        }
        Ok(Self { buffer, len })
    }

    /// Copies a value. The caller wipes `bytes`.
    ///
    /// # Errors
    /// See [`ValueError`].
    pub fn copy_of(bytes: &[u8]) -> Result<Self, ValueError> {
        match bytes.len() {
            0 => Err(ValueError::Empty),
            len if len > MAX_VALUE_LEN => Err(ValueError::TooLong),
            len => {
                let mut buffer = LockedBuffer::new(len)?;
                buffer[..len].copy_from_slice(bytes);
                Ok(Self { buffer, len })
            }
        }
    }

    /// The bytes. What is copied out of them is the caller's to wipe.
    pub fn expose(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Length in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a value is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretValue({} bytes)", self.len)
    }
}
