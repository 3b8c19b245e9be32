//! Digests of parts: BLAKE3 of every chunk, computed while a part is written.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// Bytes of a part that one digest covers; the last chunk of a part may be shorter.
///
/// A chunk fits a core's second-level cache, so that what is hashed and then copied is read from RAM
/// once; and BLAKE3 has long reached its full rate at this length.
pub const CHUNK_LEN: usize = 256 << 10;

/// Bytes of a digest.
pub const DIGEST_LEN: usize = 32;

/// Digests that are collected before they are written.
const BATCH: usize = 1024;

static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// The digest of a whole chunk of zeros.
static ZERO_CHUNK: LazyLock<Digest> = LazyLock::new(|| of_zeros(CHUNK_LEN));

/// A BLAKE3 digest; hexadecimal in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(#[serde(with = "hex::serde")] [u8; DIGEST_LEN]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; DIGEST_LEN] {
        &self.0
    }
}

impl From<[u8; DIGEST_LEN]> for Digest {
    fn from(bytes: [u8; DIGEST_LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Number of chunks, and so of digests, of a part of `len` bytes.
#[must_use]
pub fn chunk_count(len: u64) -> u64 {
    len.div_ceil(CHUNK_LEN as u64)
}

/// The digest of `len` zero bytes; of a whole chunk it costs nothing.
pub(super) fn zero_digest(len: usize) -> Digest {
    if len == CHUNK_LEN {
        *ZERO_CHUNK
    } else {
        of_zeros(len)
    }
}

fn of_zeros(len: usize) -> Digest {
    let mut hasher = blake3::Hasher::new();
    update_zeros(&mut hasher, len);
    Digest(*hasher.finalize().as_bytes())
}

fn update_zeros(hasher: &mut blake3::Hasher, len: usize) {
    let mut left = len;
    while left > 0 {
        let take = left.min(ZEROS.len());
        hasher.update(&ZEROS[..take]);
        left -= take;
    }
}

/// Hashes a range of a part, fed in order, and writes the digests to their places in a file.
///
/// A range begins at a multiple of [`CHUNK_LEN`] and ends at one or at the end of the part. Ranges are
/// independent: several threads may hash different ranges of a part at the same time.
pub struct ChunkHasher<'a> {
    digests: &'a File,
    /// Bytes of the chunk at hand that were fed so far.
    filled: usize,
    /// The first bytes of the chunk at hand, all zero, that the hasher has not seen.
    zeros: usize,
    hasher: blake3::Hasher,
    batch: Vec<u8>,
    /// Where in `digests` the batch belongs.
    batch_at: u64,
}

impl<'a> ChunkHasher<'a> {
    /// Begins at chunk number `chunk` of a part whose digests begin at the beginning of `digests`.
    #[must_use]
    pub fn new(digests: &'a File, chunk: u64) -> Self {
        Self {
            digests,
            filled: 0,
            zeros: 0,
            hasher: blake3::Hasher::new(),
            batch: Vec::with_capacity(BATCH * DIGEST_LEN),
            batch_at: chunk.saturating_mul(DIGEST_LEN as u64),
        }
    }

    /// The next bytes. Whole chunks are hashed at several times the rate of single pages.
    ///
    /// # Errors
    /// What writing digests said.
    pub fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.filled == 0 && rest.len() >= CHUNK_LEN {
                let (chunk, after) = rest.split_at(CHUNK_LEN);
                self.push(Digest::of(chunk))?;
                rest = after;
                continue;
            }
            update_zeros(&mut self.hasher, std::mem::take(&mut self.zeros));
            let (now, after) = rest.split_at(rest.len().min(CHUNK_LEN - self.filled));
            self.hasher.update(now);
            self.filled += now.len();
            rest = after;
            self.end_full_chunk()?;
        }
        Ok(())
    }

    /// The next `len` bytes are zero: a hole, or a page that is known to be. Costs almost nothing.
    ///
    /// # Errors
    /// What writing digests said.
    pub fn zeros(&mut self, len: u64) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            let room = CHUNK_LEN - self.filled;
            let now = usize::try_from(left).map_or(room, |left| left.min(room));
            if self.filled == self.zeros {
                self.zeros += now;
            } else {
                update_zeros(&mut self.hasher, now);
            }
            self.filled += now;
            left -= now as u64;
            self.end_full_chunk()?;
        }
        Ok(())
    }

    /// Writes what is not written yet. Without it digests are missing.
    ///
    /// # Errors
    /// What writing digests said.
    pub fn finish(mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.end_chunk()?;
        }
        self.flush()
    }

    fn end_full_chunk(&mut self) -> io::Result<()> {
        if self.filled == CHUNK_LEN {
            self.end_chunk()?;
        }
        Ok(())
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        let digest = if self.zeros == self.filled {
            zero_digest(self.filled)
        } else {
            Digest(*self.hasher.finalize().as_bytes())
        };
        self.hasher.reset();
        (self.filled, self.zeros) = (0, 0);
        self.push(digest)
    }

    fn push(&mut self, digest: Digest) -> io::Result<()> {
        self.batch.extend_from_slice(&digest.0);
        if self.batch.len() == BATCH * DIGEST_LEN {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.digests.write_all_at(&self.batch, self.batch_at)?;
        self.batch_at += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }
}

impl fmt::Debug for ChunkHasher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkHasher({} bytes of a chunk)", self.filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    /// The definition, naively.
    fn oracle(bytes: &[u8]) -> Vec<u8> {
        let digests = bytes
            .chunks(CHUNK_LEN)
            .map(|chunk| *blake3::hash(chunk).as_bytes());
        digests.flatten().collect()
    }

    fn content(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        bytes
    }

    #[derive(Debug, Clone)]
    enum Piece {
        Bytes(usize, u8),
        Zeros(usize),
    }

    fn piece() -> impl Strategy<Value = Piece> {
        let len = prop_oneof![
            1..5000usize,
            Just(4096),
            Just(CHUNK_LEN),
            CHUNK_LEN - 2..CHUNK_LEN + 2,
            Just(2 * CHUNK_LEN + 4096),
        ];
        prop_oneof![
            (len.clone(), any::<u8>()).prop_map(|(len, byte)| Piece::Bytes(len, byte)),
            len.prop_map(Piece::Zeros),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn test_digests_are_those_of_the_definition(pieces in prop::collection::vec(piece(), 0..8)) {
            let digests = tempfile::tempfile().expect("a file");
            let mut all = Vec::new();
            let mut hasher = ChunkHasher::new(&digests, 0);
            for piece in pieces {
                match piece {
                    Piece::Bytes(len, byte) => {
                        let bytes: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at.to_le_bytes()[0])).collect();
                        hasher.update(&bytes).expect("hashed");
                        all.extend(bytes);
                    }
                    Piece::Zeros(len) => {
                        hasher.zeros(len as u64).expect("hashed");
                        all.resize(all.len() + len, 0);
                    }
                }
            }
            hasher.finish().expect("written");
            prop_assert_eq!(content(digests), oracle(&all));
        }
    }

    #[test]
    fn test_ranges_hashed_by_several_threads_make_one_list() {
        let bytes: Vec<u8> = (0..5 * CHUNK_LEN + 77)
            .map(|at| at.to_le_bytes()[1])
            .collect();
        let digests = tempfile::tempfile().expect("a file");
        std::thread::scope(|scope| {
            for (number, range) in bytes.chunks(2 * CHUNK_LEN).enumerate() {
                let digests = &digests;
                scope.spawn(move || {
                    let mut hasher = ChunkHasher::new(digests, 2 * number as u64);
                    hasher.update(range).expect("hashed");
                    hasher.finish().expect("written");
                });
            }
        });
        assert_eq!(content(digests), oracle(&bytes));
    }

    #[test]
    fn test_long_holes_are_nearly_free() {
        let digests = tempfile::tempfile().expect("a file");
        let mut hasher = ChunkHasher::new(&digests, 0);
        hasher.zeros(64 << 30).expect("hashed");
        hasher.finish().expect("written");
        let len = digests.metadata().expect("there").len();
        assert_eq!(len, chunk_count(64 << 30) * DIGEST_LEN as u64);
    }
}
