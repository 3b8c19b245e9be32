//! Reads back what was written: hashes it, and searches it again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cachot_snapshot::image::{CHUNK_LEN, ChunkHasher, next_data};
use rustix::fs::SeekFrom;
use zeroize::Zeroizing;

/// Reads all of `file`, whose length is `len`, in chunks; `check` sees every one that is no hole, and `digests`,
/// if given, gets the digest of each. Returns the number of bytes that were read.
///
/// # Errors
/// What reading or writing said.
pub fn read_back(
    file: &File,
    len: u64,
    digests: Option<&File>,
    mut check: impl FnMut(u64, &[u8]),
) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_LEN];
    let mut hasher = digests.map(|digests| ChunkHasher::new(digests, 0));
    let (mut at, mut read) = (0, 0);
    while at < len {
        // Whole chunks only, so that each is read and hashed in one piece.
        let data = next_data(file, at, len)?;
        let chunk = (data - data % CHUNK_LEN as u64).max(at);
        let hole = if data == len { len } else { chunk };
        if let Some(hasher) = &mut hasher {
            hasher.zeros(hole - at)?;
        }
        at = hole;
        let now = usize::try_from(len - at).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
        if now == 0 {
            break;
        }
        file.read_exact_at(&mut buffer[..now], at)?;
        if let Some(hasher) = &mut hasher {
            hasher.update(&buffer[..now])?;
        }
        check(at, &buffer[..now]);
        read += now as u64;
        at += now as u64;
    }
    hasher.map_or(Ok(()), ChunkHasher::finish)?;
    Ok(read)
}

/// All bytes of a short part.
///
/// # Errors
/// What reading said.
pub fn read_all(file: &File) -> io::Result<Zeroizing<Vec<u8>>> {
    let len = rustix::fs::seek(file, SeekFrom::End(0))?;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(vec![0; len]);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_snapshot::image::{DIGEST_LEN, Digest};
    use std::io::Read;

    #[test]
    fn test_read_back_hashes_holes_and_shows_everything_else() {
        let len = 5 * CHUNK_LEN + 4096;
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len as u64).expect("its size");
        for (offset, byte) in [(2 * CHUNK_LEN + 8192, 1), (5 * CHUNK_LEN, 2)] {
            file.write_all_at(&[byte; 4096], offset as u64)
                .expect("written");
        }
        let mut digests = tempfile::tempfile().expect("a temporary file");
        let mut seen = Vec::new();

        let read = read_back(&file, len as u64, Some(&digests), |offset, bytes| {
            seen.push((
                offset,
                bytes.len(),
                bytes.iter().map(|b| u64::from(*b)).sum(),
            ));
        })
        .expect("readable");

        let chunk = CHUNK_LEN as u64;
        let expected = [(2 * chunk, CHUNK_LEN, 4096), (5 * chunk, 4096, 8192_u64)];
        assert_eq!(seen, expected);
        assert_eq!(read, chunk + 4096);
        let mut all = vec![0; len];
        file.read_exact_at(&mut all, 0).expect("readable");
        let naive: Vec<u8> = all
            .chunks(CHUNK_LEN)
            .flat_map(|chunk| *Digest::of(chunk).as_bytes())
            .collect();
        let mut written = Vec::new();
        digests.read_to_end(&mut written).expect("readable");
        assert_eq!(written.len(), 6 * DIGEST_LEN);
        assert_eq!(written, naive);
    }
}
