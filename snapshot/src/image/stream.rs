//! The content of parts from the beginning to the end, checked, without a copy of it anywhere.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

use super::chunk::CHUNK_LEN;
use super::error::ImageError;
use super::manifest::PartName;
use super::reader::Image;

/// Gets an offset in the part and the bytes there.
pub type Consume<'a> = &'a mut (dyn FnMut(u64, &[u8]) -> Result<(), ImageError> + Send);

impl Image {
    /// Hands what is in `range` of a part, but for its holes, to `consume`, by ascending offset; each chunk is compared
    /// with its digest before a byte of it is. What passes through memory is wiped behind it.
    ///
    /// An encrypted part is decrypted from its beginning whatever the range: ask for all of it. Of a part that is not
    /// encrypted, several threads can read a range each.
    ///
    /// # Errors
    /// Those of `consume` and of [`Self::verify_all`]; [`ImageError::NoPart`], [`ImageError::Encrypted`],
    /// [`ImageError::Decrypt`].
    pub fn stream(
        &self,
        name: PartName,
        range: Range<u64>,
        consume: Consume<'_>,
    ) -> Result<(), ImageError> {
        let part = self.checked_part(name)?;
        if self.manifest().is_encrypted() {
            let consume = Mutex::new(consume);
            return part.content(|at, bytes| {
                let mut consume = consume.lock().unwrap_or_else(PoisonError::into_inner);
                in_range(&range, at, bytes, *consume)
            });
        }
        let chunk_len = CHUNK_LEN as u64;
        let chunks = range.start / chunk_len..range.end.div_ceil(chunk_len).min(part.chunks);
        let mut buffer = Zeroizing::new(vec![0; CHUNK_LEN]);
        let consume = RefCell::new(consume);
        for chunk in chunks {
            part.read_chunk(chunk, &mut buffer, &|at, bytes: &[u8]| {
                in_range(&range, at, bytes, *consume.borrow_mut())
            })?;
        }
        Ok(())
    }
}

/// Hands on those of the bytes that are in `range`.
fn in_range(
    range: &Range<u64>,
    at: u64,
    bytes: &[u8],
    consume: Consume<'_>,
) -> Result<(), ImageError> {
    let end = at + bytes.len() as u64;
    let (from, to) = (range.start.clamp(at, end), range.end.clamp(at, end));
    if from >= to {
        return Ok(());
    }
    // Both are in the bytes, so they fit.
    let [from_byte, to_byte] =
        [from, to].map(|place| usize::try_from(place - at).unwrap_or(bytes.len()));
    consume(from, &bytes[from_byte..to_byte])
}
