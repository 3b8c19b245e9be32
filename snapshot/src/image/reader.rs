//! Opens an image, and hands out nothing of it that was not checked.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::chunk::{CHUNK_LEN, DIGEST_LEN, Digest, chunk_count, zero_digest};
use super::cipher::{self, Identities};
use super::error::ImageError;
use super::folder;
use super::key::{SIGNATURE_FILE_LEN, TrustedKeys};
use super::manifest::{
    CpuBaseline, MAX_MANIFEST_LEN, MAX_PLAN_LEN, Manifest, ManifestError, Part, PartName, parse,
};
use super::memfd;
use super::sparse;
use super::{DIGESTS_FILE, MANIFEST_FILE, SIGNATURE_FILE};

/// Most threads that read a part.
const MAX_THREADS: usize = 8;

/// Parts with fewer chunks are read by one thread.
const PARALLEL_CHUNKS: u64 = 64;

/// Whether an image that may hold values is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residue {
    /// It is refused.
    Refuse,
    /// The user gave `--dangerously-keep-residue`.
    Accept,
}

/// An image whose manifest is signed by a trusted key, and whose parts are there in full length.
///
/// What a part holds is checked when it is read. All files are open from the beginning: nothing is looked up
/// by name again.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    manifest: Manifest,
    /// The list of digests, true to the manifest.
    digests: Vec<u8>,
    /// In the manifest's order.
    parts: Vec<File>,
    identities: Option<Identities>,
}

impl Image {
    /// Opens the image in this folder. Its signature is checked before any of it is parsed.
    ///
    /// # Errors
    /// [`ImageError`]: not an image, not this user's, signed by an untrusted key, changed, of another version, or
    /// not complete.
    pub fn open(path: &Path, trusted: &TrustedKeys) -> Result<Self, ImageError> {
        let image_folder = folder::open_private(path)?;
        let open = |name: &str| match folder::open_file(&image_folder, name, &path.join(name)) {
            Err(error) if error.is_not_found() => Err(ImageError::NotAnImage {
                path: path.to_owned(),
                why: format!("it has no {name}"),
            }),
            other => other,
        };
        let manifest_file = open(MANIFEST_FILE)?;
        let json = read_whole(&manifest_file, MAX_MANIFEST_LEN)
            .map_err(ImageError::system("read", &path.join(MANIFEST_FILE)))?
            .map_err(|len| ImageError::Manifest {
                path: path.to_owned(),
                source: ManifestError::TooLong(len),
            })?;
        let signature = read_whole(&open(SIGNATURE_FILE)?, SIGNATURE_FILE_LEN as u64)
            .map_err(ImageError::system("read", &path.join(SIGNATURE_FILE)))?
            // One that is too long is no signature either.
            .unwrap_or_default();
        let signer = trusted.check(path, &json, &signature)?;

        let refused = |source| ImageError::Manifest {
            path: path.to_owned(),
            source,
        };
        let manifest = parse(&json).map_err(refused)?;
        if manifest.host_key != signer {
            let what = "it names another host key than the one that signed it";
            return Err(refused(ManifestError::Inconsistent(what)));
        }
        let digests = read_whole(&open(DIGESTS_FILE)?, manifest.digests.length)
            .map_err(ImageError::system("read", &path.join(DIGESTS_FILE)))?
            .ok()
            .filter(|digests| {
                digests.len() as u64 == manifest.digests.length
                    && Digest::of(digests) == manifest.digests.blake3
            })
            .ok_or_else(|| ImageError::Digests(path.to_owned()))?;

        let mut parts = Vec::with_capacity(manifest.parts.len());
        for part in &manifest.parts {
            let file = open(&part.name.to_string())?;
            let metadata = file.metadata().map_err(ImageError::system(
                "examine",
                &path.join(part.name.to_string()),
            ))?;
            if metadata.len() != part.stored {
                return Err(ImageError::Length {
                    path: path.to_owned(),
                    part: part.name,
                    expected: part.stored,
                    found: metadata.len(),
                });
            }
            parts.push(file);
        }
        Ok(Self {
            path: path.to_owned(),
            manifest,
            digests,
            parts,
            identities: None,
        })
    }

    /// Gives the keys that encrypted parts are read with.
    pub fn set_identities(&mut self, identities: Identities) {
        self.identities = Some(identities);
    }

    /// What the image says about itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the image is, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a machine may be made of it on a host with these CPUs.
    ///
    /// # Errors
    /// [`ImageError::ResidueKept`] or [`ImageError::UnfitCpu`].
    pub fn check_restorable(&self, host: &CpuBaseline, residue: Residue) -> Result<(), ImageError> {
        if self.manifest.receipt.residue_kept && residue == Residue::Refuse {
            return Err(ImageError::ResidueKept(self.path.clone()));
        }
        let unfit = |why| {
            Err(ImageError::UnfitCpu {
                path: self.path.clone(),
                why,
            })
        };
        let guest = &self.manifest.machine.cpu;
        if guest.vendor != host.vendor {
            return unfit(format!(
                "of {}, and this is one of {}",
                guest.vendor, host.vendor
            ));
        }
        let missing: Vec<&str> = guest
            .features
            .difference(&host.features)
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return unfit(format!("this one has no {}", missing.join(", ")));
        }
        Ok(())
    }

    /// Reads every byte of every part and compares it with what was signed.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] names part and chunk; [`ImageError::Length`], [`ImageError::System`].
    pub fn verify_all(&self) -> Result<(), ImageError> {
        self.manifest
            .parts
            .iter()
            .try_for_each(|part| self.checked_part(part.name)?.read(|_, _| Ok(())))
    }

    /// Reads a part that fits memory: [`PartName::State`], [`PartName::Plan`], [`PartName::Needles`].
    ///
    /// # Errors
    /// As [`Self::verify_all`]; [`ImageError::TooLong`] for other parts that are longer than any of those.
    pub fn read(&self, name: PartName) -> Result<Vec<u8>, ImageError> {
        let part = self.checked_part(name)?;
        let length = part.part.length;
        let too_long = ImageError::TooLong {
            path: self.path.clone(),
            part: name,
            length,
            limit: MAX_PLAN_LEN,
        };
        let length = usize::try_from(length)
            .ok()
            .filter(|_| length <= MAX_PLAN_LEN)
            .ok_or(too_long)?;
        let bytes = Mutex::new(vec![0; length]);
        part.content(|at, chunk| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let mut bytes = bytes
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            bytes[at..at + chunk.len()].copy_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Guest RAM, checked while it is copied into a memory file of this host that nothing can change any more: for
    /// `MAP_PRIVATE` mappings of any number of VMs. Holes stay holes.
    ///
    /// # Errors
    /// As [`Self::verify_all`].
    pub fn load_memory(&self) -> Result<OwnedFd, ImageError> {
        let make = ImageError::system("make a memory file for", &self.path);
        let memory = memfd::create().map_err(make)?;
        self.copy(PartName::Memory, &memory)?;
        memfd::seal(&memory).map_err(ImageError::system("seal the memory file of", &self.path))?;
        Ok(memory.into())
    }

    /// The file of guest RAM itself, unchecked, for `--trust-image`: whoever can change the file changes every
    /// VM that maps it.
    ///
    /// # Errors
    /// [`ImageError::Encrypted`]: there is nothing to map in an encrypted image.
    pub fn trusted_memory(&self) -> Result<&File, ImageError> {
        if self.manifest.is_encrypted() {
            return Err(ImageError::Encrypted(self.path.clone()));
        }
        Ok(&self.parts[0])
    }

    /// Copies the disk of this part into an empty file, checked.
    ///
    /// # Errors
    /// As [`Self::verify_all`], and [`ImageError::NoPart`].
    pub fn copy_disk(&self, name: PartName, to: &File) -> Result<(), ImageError> {
        self.copy(name, to)
    }

    fn copy(&self, name: PartName, to: &File) -> Result<(), ImageError> {
        let part = self.checked_part(name)?;
        to.set_len(part.part.length)
            .map_err(ImageError::system("make room for a copy of", &part.path()))?;
        part.content(|at, chunk| {
            sparse::write_data(to, chunk, at).map_err(ImageError::system("copy", &part.path()))
        })
    }

    pub(super) fn checked_part(&self, name: PartName) -> Result<CheckedPart<'_>, ImageError> {
        let mut first_chunk = 0;
        for (part, file) in self.manifest.parts.iter().zip(&self.parts) {
            let chunks = chunk_count(part.stored);
            if part.name == name {
                return Ok(CheckedPart {
                    image: self,
                    part,
                    file,
                    first_chunk,
                    chunks,
                });
            }
            first_chunk += chunks;
        }
        Err(ImageError::NoPart {
            path: self.path.clone(),
            part: name,
        })
    }
}

/// A part whose chunks are compared with their digests when they are read.
pub(super) struct CheckedPart<'a> {
    pub(super) image: &'a Image,
    part: &'a Part,
    file: &'a File,
    /// Place of its first digest in the list.
    first_chunk: u64,
    pub(super) chunks: u64,
}

impl CheckedPart<'_> {
    fn path(&self) -> PathBuf {
        self.image.path.join(self.part.name.to_string())
    }

    /// Hands the content, but for its holes, to `consume`: in any order, from several threads.
    pub(super) fn content(
        &self,
        consume: impl Fn(u64, &[u8]) -> Result<(), ImageError> + Sync,
    ) -> Result<(), ImageError> {
        if !self.image.manifest.is_encrypted() {
            return self.read(consume);
        }
        let encrypted = || ImageError::Encrypted(self.image.path.clone());
        let identities = self.image.identities.as_ref().ok_or_else(encrypted)?;
        let stored = InOrder {
            part: self,
            next: 0,
            buffer: vec![0; CHUNK_LEN],
            unread: 0..0,
        };
        cipher::decrypt(stored, self.part.length, identities, |at, bytes| {
            consume(at, bytes).map_err(io::Error::other)
        })
        .map_err(|error| match error.downcast::<ImageError>() {
            Ok(error) => error,
            Err(source) => ImageError::Decrypt {
                path: self.image.path.clone(),
                part: self.part.name,
                source,
            },
        })
    }

    /// Hands every chunk that is not a hole, once it is known to be what was signed, to `consume`: in any order,
    /// from several threads.
    fn read(
        &self,
        consume: impl Fn(u64, &[u8]) -> Result<(), ImageError> + Sync,
    ) -> Result<(), ImageError> {
        let threads = if self.chunks < PARALLEL_CHUNKS {
            1
        } else {
            std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS))
        };
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let work = || -> Result<(), ImageError> {
            let mut buffer = vec![0; CHUNK_LEN];
            while !stop.load(Ordering::Relaxed) {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= self.chunks {
                    break;
                }
                let read = self.read_chunk(chunk, &mut buffer, &consume);
                if read.is_err() {
                    stop.store(true, Ordering::Relaxed);
                    return read;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut result = work();
            for other in others {
                let other = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(other);
            }
            result
        })
    }

    /// Hands a chunk, unless it is a hole, to `consume` once it is known to be what was signed.
    pub(super) fn read_chunk(
        &self,
        chunk: u64,
        buffer: &mut [u8],
        consume: &impl Fn(u64, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let (at, len) = self.range_of(chunk);
        let bytes = &mut buffer[..len];
        let end = at + len as u64;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damage(chunk),
            _ => ImageError::system("read", &self.path())(error),
        };
        let hole = sparse::next_data(self.file, at, end).map_err(failed)? == end;
        let digest = if hole {
            zero_digest(len)
        } else {
            self.file.read_exact_at(bytes, at).map_err(failed)?;
            Digest::of(bytes)
        };
        if digest.as_bytes() != self.signed_digest(chunk) {
            return Err(self.damage(chunk));
        }
        if hole { Ok(()) } else { consume(at, bytes) }
    }

    /// Where a chunk is, and how long.
    fn range_of(&self, chunk: u64) -> (u64, usize) {
        let at = chunk * CHUNK_LEN as u64;
        let left = self.part.stored - at;
        let len = usize::try_from(left).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
        (at, len)
    }

    /// Why this chunk is not what was signed.
    fn damage(&self, chunk: u64) -> ImageError {
        let (path, part) = (self.image.path.clone(), self.part.name);
        let found = self.file.metadata().map_or(0, |metadata| metadata.len());
        if found == self.part.stored {
            ImageError::Damaged { path, part, chunk }
        } else {
            ImageError::Length {
                path,
                part,
                expected: self.part.stored,
                found,
            }
        }
    }

    fn signed_digest(&self, chunk: u64) -> &[u8] {
        // In bounds: the list was compared with the manifest, and the manifest has one digest for each chunk.
        let place =
            usize::try_from(self.first_chunk + chunk).unwrap_or(usize::MAX / DIGEST_LEN - 1);
        &self.image.digests[place * DIGEST_LEN..][..DIGEST_LEN]
    }
}

/// The stored bytes of a part from the beginning to the end, each chunk checked before a byte of it is read.
struct InOrder<'a> {
    part: &'a CheckedPart<'a>,
    /// Number of the chunk that comes next.
    next: u64,
    buffer: Vec<u8>,
    /// What is left of the chunk in the buffer.
    unread: Range<usize>,
}

impl Read for InOrder<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() && self.next < self.part.chunks {
            let (_, len) = self.part.range_of(self.next);
            // A hole is not read into the buffer.
            self.buffer.fill(0);
            self.part
                .read_chunk(self.next, &mut self.buffer, &|_, _| Ok(()))
                .map_err(io::Error::other)?;
            self.next += 1;
            self.unread = 0..len;
        }
        let now = into.len().min(self.unread.len());
        into[..now].copy_from_slice(&self.buffer[self.unread.start..][..now]);
        self.unread.start += now;
        Ok(now)
    }
}

/// All of a file, or its length if that is more than `limit`.
fn read_whole(file: &File, limit: u64) -> io::Result<Result<Vec<u8>, u64>> {
    let len = file.metadata()?.len();
    let Some(len) = usize::try_from(len).ok().filter(|_| len <= limit) else {
        return Ok(Err(len));
    };
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Ok(bytes))
}
