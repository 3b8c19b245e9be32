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
        let (buffer, len) = read_to_end(reader, MAX_VALUE_LEN)?;
        Self::of_filled(buffer, len)
    }

    /// As [`SecretValue::read_from`], for what a program prints: one line feed at the end, if there is one,
    /// is not part of the value. A carriage return in front of it is.
    ///
    /// # Errors
    /// See [`ValueError`].
    pub fn read_line_from(reader: &mut impl Read) -> Result<Self, ValueError> {
        let (mut buffer, mut len) = read_to_end(reader, MAX_VALUE_LEN + 1)?;
        if buffer[..len].ends_with(b"\n") {
            len -= 1;
            buffer[len] = 0;
        }
        Self::of_filled(buffer, len)
    }

    fn of_filled(buffer: LockedBuffer, len: usize) -> Result<Self, ValueError> {
        match len {
            0 => Err(ValueError::Empty),
            len if len > MAX_VALUE_LEN => Err(ValueError::TooLong),
            len => Ok(Self { buffer, len }),
        }
    }

    /// Copies a value. The caller wipes `bytes`.
    ///
    /// # Errors
    /// See [`ValueError`].
    pub fn copy_of(bytes: &[u8]) -> Result<Self, ValueError> {
        Self::filled_by(bytes.len(), |buffer| {
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// A value of `len` bytes that `fill` writes into locked memory, which is zero at first.
    ///
    /// # Errors
    /// See [`ValueError`]; what `fill` says is [`ValueError::Read`].
    pub fn filled_by(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> Result<Self, ValueError> {
        match len {
            0 => return Err(ValueError::Empty),
            len if len > MAX_VALUE_LEN => return Err(ValueError::TooLong),
            _ => {}
        }
        let mut buffer = LockedBuffer::new(len)?;
        fill(&mut buffer[..len]).map_err(ValueError::Read)?;
        Ok(Self { buffer, len })
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

/// Everything up to the end of `reader`, at most `limit` bytes, and how many they are.
fn read_to_end(reader: &mut impl Read, limit: usize) -> Result<(LockedBuffer, usize), ValueError> {
    let mut buffer = LockedBuffer::new(1)?;
    let mut len = 0;
    loop {
        if len > limit {
            return Err(ValueError::TooLong);
        }
        if len == buffer.len() {
            // One byte over the limit is enough to know that it is exceeded.
            let larger = (2 * len).min(limit + 1).max(len + 1);
            buffer.grow(larger)?;
        }
        match reader.read(&mut buffer[len..]) {
            Ok(0) => return Ok((buffer, len)),
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ValueError::Read(error)),
        }
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretValue({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locked::tests::one_at_a_time;

    /// Does not compile if the type implements the trait: two implementations would apply.
    macro_rules! assert_not_impl {
        ($type:ty: $($trait:path),+) => {$({
            trait Absent<Marker> {
                fn check() {}
            }
            impl<T: ?Sized> Absent<()> for T {}
            struct Present;
            impl<T: ?Sized + $trait> Absent<Present> for T {}
            <$type as Absent<_>>::check();
        })+};
    }

    #[test]
    fn test_value_lacks_every_trait_that_would_spread_it() {
        assert_not_impl!(
            SecretValue: Clone,
            fmt::Display,
            serde::Serialize,
            std::ops::Deref,
            AsRef<[u8]>,
            PartialEq
        );
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..251).cycle().take(len).collect()
    }

    /// Gives at most `step` bytes a call, with an interruption before each.
    struct Slow<'a> {
        bytes: &'a [u8],
        step: usize,
        interrupted: bool,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = into.len().min(self.step).min(self.bytes.len());
            into[..len].copy_from_slice(&self.bytes[..len]);
            self.bytes = &self.bytes[len..];
            Ok(len)
        }
    }

    #[test]
    fn test_value_round_trip_at_every_boundary() {
        let _turn = one_at_a_time();
        for len in [
            1,
            2,
            4095,
            4096,
            4097,
            8192,
            65_537,
            MAX_VALUE_LEN - 1,
            MAX_VALUE_LEN,
        ] {
            let bytes = pattern(len);

            let copied = SecretValue::copy_of(&bytes).expect("a value");
            let read = SecretValue::read_from(&mut bytes.as_slice()).expect("a value");

            for value in [copied, read] {
                assert_eq!(value.len(), len);
                assert!(value.expose() == bytes, "differs at length {len}");
            }
        }
    }

    #[test]
    fn test_read_line_from_leaves_out_one_line_feed_only() {
        let read = |bytes: &[u8]| {
            let value = SecretValue::read_line_from(&mut { bytes });
            value.map(|value| value.expose().to_vec())
        };
        for (printed, expected) in [
            (&b"value"[..], &b"value"[..]),
            (b"value\n", b"value"),
            (b"value\n\n", b"value\n"),
            (b"value\r\n", b"value\r"),
            (b"\nvalue", b"\nvalue"),
        ] {
            assert_eq!(read(printed).expect("a value"), expected);
        }
        for nothing in [&b""[..], b"\n"] {
            assert!(matches!(read(nothing), Err(ValueError::Empty)));
        }
    }

    #[test]
    fn test_read_line_from_at_and_over_the_limit() {
        let _turn = one_at_a_time();
        let mut printed = vec![b'v'; MAX_VALUE_LEN];
        printed.push(b'\n');
        let value = SecretValue::read_line_from(&mut printed.as_slice());
        assert_eq!(value.expect("a value").len(), MAX_VALUE_LEN);
        printed.push(b'\n');
        let long = SecretValue::read_line_from(&mut printed.as_slice());
        assert!(matches!(long, Err(ValueError::TooLong)));
        printed.truncate(MAX_VALUE_LEN);
        printed.push(b'v');
        let long = SecretValue::read_line_from(&mut printed.as_slice());
        assert!(matches!(long, Err(ValueError::TooLong)));
    }

    #[test]
    fn test_read_from_slow_reader_returns_all_bytes() {
        let bytes = pattern(9000);
        let mut reader = Slow {
            bytes: &bytes,
            step: 7,
            interrupted: false,
        };
        let value = SecretValue::read_from(&mut reader).expect("a value");
        assert!(value.expose() == bytes);
    }

    #[test]
    fn test_empty_value_is_refused() {
        assert!(matches!(SecretValue::copy_of(b""), Err(ValueError::Empty)));
        assert!(matches!(
            SecretValue::read_from(&mut io::empty()),
            Err(ValueError::Empty)
        ));
    }

    #[test]
    fn test_value_over_the_limit_is_refused() {
        let _turn = one_at_a_time();
        let bytes = pattern(MAX_VALUE_LEN + 1);
        assert!(matches!(
            SecretValue::copy_of(&bytes),
            Err(ValueError::TooLong)
        ));
        assert!(matches!(
            SecretValue::read_from(&mut bytes.as_slice()),
            Err(ValueError::TooLong)
        ));
    }

    #[test]
    fn test_read_from_endless_source_stops_soon() {
        let _turn = one_at_a_time();
        struct Endless(usize);
        impl Read for Endless {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                self.0 += into.len();
                Ok(into.len())
            }
        }
        let mut source = Endless(0);
        let read = SecretValue::read_from(&mut source);
        assert!(matches!(read, Err(ValueError::TooLong)));
        assert!(source.0 <= MAX_VALUE_LEN + 4096, "{} bytes read", source.0);
    }

    #[test]
    fn test_read_from_failing_source_is_a_read_error() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        assert!(matches!(
            SecretValue::read_from(&mut Failing),
            Err(ValueError::Read(error)) if error.kind() == io::ErrorKind::ConnectionReset
        ));
    }

    #[test]
    fn test_debug_shows_the_length_only() {
        let value = SecretValue::copy_of(b"sk-very-secret").expect("a value");
        assert_eq!(format!("{value:?}"), "SecretValue(14 bytes)");
        assert_eq!(format!("{value:#?}"), "SecretValue(14 bytes)");
    }
}
