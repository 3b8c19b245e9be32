//! Writes an image: under a temporary name until all of it is on disk, signed, and true to its manifest;
//! then it is there at once. On every other way out nothing is left.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::chunk::{CHUNK_LEN, ChunkHasher, DIGEST_LEN, Digest, chunk_count};
use super::cipher::{self, Recipient};
use super::error::ImageError;
use super::folder::{self, Place, Temporary};
use super::key::HostKey;
use super::manifest::{
    Contents, Digests, FEATURE_AGE, FORMAT_VERSION, ImageId, MAX_DISKS, Manifest, ManifestError,
    Part, PartName,
};
use super::memfd;
use super::sparse;
use super::{DIGESTS_FILE, MANIFEST_FILE, SIGNATURE_FILE};

/// An image that is being written, in a folder with a temporary name beside its target. Dropped without
/// having been published, it removes all of it; if the process is killed, the next command that
/// creates an image there does.
#[derive(Debug)]
pub struct ImageWriter {
    target: Place,
    temporary: Temporary,
    published: bool,
    id: ImageId,
    /// Empty if the image is not encrypted.
    recipients: Vec<Recipient>,
    /// Files in the folder; in memory if the image will be encrypted, until it is.
    parts: BTreeMap<PartName, File>,
    digests: File,
}

impl ImageWriter {
    /// Begins an image that will be at `target`, which must not exist; the folder above it must.
    ///
    /// With `recipients`, the parts are files in memory until they are encrypted at the end: their content is
    /// never on a disk.
    ///
    /// # Errors
    /// [`ImageError::Exists`], [`ImageError::NoName`] or [`ImageError::System`].
    pub fn create(target: &Path, recipients: Vec<Recipient>) -> Result<Self, ImageError> {
        let target = Place::of(target)?;
        match rustix::fs::statat(&target.parent, &target.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(ImageError::Exists(target.path)),
            Err(errno) => return Err(ImageError::system("examine", &target.path)(errno)),
        }
        folder::sweep(&target.parent)
            .map_err(ImageError::system("clean up beside", &target.path))?;
        let temporary = Temporary::create(&target.parent)
            .map_err(ImageError::system("create a folder beside", &target.path))?;

        // From here on the folder has an owner that removes it.
        let id = ImageId::random().map_err(ImageError::system("name", &target.path));
        let digests = new_part_file(&temporary, DIGESTS_FILE, !recipients.is_empty())
            .map_err(ImageError::system("create a file of", &target.path));
        let (id, digests) = match (id, digests) {
            (Ok(id), Ok(digests)) => (id, digests),
            (Err(error), _) | (_, Err(error)) => {
                // It is this error that counts; what is left the next command removes.
                temporary.remove(&target.parent).ok();
                return Err(error);
            }
        };
        let mut writer = Self {
            target,
            temporary,
            published: false,
            id,
            recipients,
            parts: BTreeMap::new(),
            digests,
        };
        for name in [
            PartName::Memory,
            PartName::State,
            PartName::Plan,
            PartName::Needles,
        ] {
            writer.add_part(name)?;
        }
        Ok(writer)
    }

    /// Who the image will be.
    #[must_use]
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// The file of a part, open for reading and writing; empty when the image is created.
    ///
    /// Guest RAM at position P of its regions, put one after the other, is at offset P of
    /// [`PartName::Memory`]; what is not written there is a hole, and zero.
    #[must_use]
    pub fn part(&self, name: PartName) -> Option<&File> {
        self.parts.get(&name)
    }

    /// Gives the part `memory` its length, so that only what is not zero need be written.
    ///
    /// # Errors
    /// [`ImageError::System`].
    pub fn set_memory_len(&self, len: u64) -> Result<(), ImageError> {
        let path = self.path_of(PartName::Memory);
        self.parts[&PartName::Memory]
            .set_len(len)
            .map_err(ImageError::system("give a length to", &path))
    }

    /// Where [`ChunkHasher`]s put the digests of the part `memory`. If it is left empty, publishing reads all of
    /// the part again to compute them.
    #[must_use]
    pub fn digests(&self) -> &File {
        &self.digests
    }

    /// Adds an empty part for the copy of a writable disk ([`super::copy_disk`]). Disks are numbered in the order of
    /// the calls.
    ///
    /// # Errors
    /// [`ImageError::System`]; [`ImageError::Manifest`] for more disks than an image may have.
    pub fn add_disk(&mut self) -> Result<PartName, ImageError> {
        let disks = self.parts.len() - 4;
        let number = u8::try_from(disks)
            .ok()
            .filter(|_| disks < MAX_DISKS)
            .ok_or_else(|| inconsistent(&self.target.path, "it has too many disks"))?;
        let name = PartName::Disk(number);
        self.add_part(name)?;
        Ok(name)
    }

    /// Makes the image exist: complete, signed and on disk, or not at all.
    ///
    /// # Errors
    /// [`ImageError::Manifest`] if the files are not what `contents` says, [`ImageError::Exists`] if the target
    /// exists by now, or [`ImageError::System`]. Nothing is left behind.
    pub fn publish(mut self, contents: Contents, key: &HostKey) -> Result<Manifest, ImageError> {
        let mut parts = self.measure()?;
        if !self.recipients.is_empty() {
            self.encrypt(&mut parts)?;
        }
        let digests = self.complete_digests(&parts)?;
        let manifest = Manifest {
            format: FORMAT_VERSION,
            required_features: match self.recipients.is_empty() {
                true => [].into(),
                false => [FEATURE_AGE.to_owned()].into(),
            },
            optional_features: [].into(),
            cachot: env!("CARGO_PKG_VERSION").to_owned(),
            id: self.id,
            lineage: contents.lineage,
            created: SystemTime::now(),
            host_key: key.public(),
            machine: contents.machine,
            guest: contents.guest,
            secrets: contents.secrets,
            receipt: contents.receipt,
            parts,
            digests,
        };
        let refused = |source| ImageError::Manifest {
            path: self.target.path.clone(),
            source,
        };
        let json = manifest.to_json().map_err(refused)?;
        // Nothing is signed that could not be opened again.
        let manifest = super::manifest::parse(&json).map_err(refused)?;
        self.write_file(MANIFEST_FILE, &json)?;
        self.write_file(SIGNATURE_FILE, &key.sign(&json))?;
        self.sync()?;
        self.rename()?;
        Ok(manifest)
    }

    fn path_of(&self, name: PartName) -> std::path::PathBuf {
        self.target.path.join(name.to_string())
    }

    fn add_part(&mut self, name: PartName) -> Result<(), ImageError> {
        let encrypted = !self.recipients.is_empty();
        let file = new_part_file(&self.temporary, &name.to_string(), encrypted)
            .map_err(ImageError::system("create", &self.path_of(name)))?;
        self.parts.insert(name, file);
        Ok(())
    }

    fn measure(&self) -> Result<Vec<Part>, ImageError> {
        let measure = |(name, file): (&PartName, &File)| {
            let path = self.path_of(*name);
            let metadata = file
                .metadata()
                .map_err(ImageError::system("examine", &path))?;
            let length = metadata.len();
            // Before it is hashed, which may take long.
            if length > name.limit() {
                return Err(inconsistent(
                    &self.target.path,
                    "a part is longer than the limit",
                ));
            }
            Ok(Part {
                name: *name,
                length,
                stored: length,
            })
        };
        self.parts.iter().map(measure).collect()
    }

    /// Replaces the files in memory by encrypted ones in the folder, and with them the digests, of which there are
    /// none yet.
    fn encrypt(&mut self, parts: &mut [Part]) -> Result<(), ImageError> {
        for part in parts {
            let path = self.path_of(part.name);
            let mut encrypt = || -> io::Result<File> {
                let stored = new_file(&self.temporary, &part.name.to_string())?;
                let plain = &self.parts[&part.name];
                cipher::encrypt(plain, part.length, &stored, &self.recipients)?;
                part.stored = stored.metadata()?.len();
                Ok(stored)
            };
            let stored = encrypt().map_err(ImageError::system("encrypt", &path))?;
            self.parts.insert(part.name, stored);
        }
        let path = self.target.path.join(DIGESTS_FILE);
        self.digests =
            new_file(&self.temporary, DIGESTS_FILE).map_err(ImageError::system("create", &path))?;
        Ok(())
    }

    /// Computes the digests that are missing: those of `memory` if there are none, and those of all other parts.
    fn complete_digests(&self, parts: &[Part]) -> Result<Digests, ImageError> {
        let path = self.target.path.join(DIGESTS_FILE);
        let len = || -> Result<u64, ImageError> {
            let metadata = self.digests.metadata();
            Ok(metadata
                .map_err(ImageError::system("examine", &path))?
                .len())
        };
        let given = len()?;
        let mut chunk = 0;
        for part in parts {
            let chunks = chunk_count(part.stored);
            if part.name == PartName::Memory && given > 0 {
                if given != chunks * DIGEST_LEN as u64 {
                    let what = "there is not one digest for each chunk of memory";
                    return Err(inconsistent(&self.target.path, what));
                }
            } else {
                let hash = || -> io::Result<()> {
                    let mut hasher = ChunkHasher::new(&self.digests, chunk);
                    hash_file(&self.parts[&part.name], part.stored, &mut hasher)?;
                    hasher.finish()
                };
                hash().map_err(ImageError::system("hash", &self.path_of(part.name)))?;
            }
            chunk += chunks;
        }
        let length = len()?;
        let all = || -> io::Result<Digest> {
            let mut hasher = blake3::Hasher::new();
            sparse::read_all(&self.digests, length, &mut vec![0; CHUNK_LEN], |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
            Ok(Digest::from(*hasher.finalize().as_bytes()))
        };
        Ok(Digests {
            length,
            blake3: all().map_err(ImageError::system("hash", &path))?,
        })
    }

    fn write_file(&self, name: &str, content: &[u8]) -> Result<(), ImageError> {
        let write = || -> io::Result<()> {
            let mut file = new_file(&self.temporary, name)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(ImageError::system("write", &self.target.path.join(name)))
    }

    fn sync(&self) -> Result<(), ImageError> {
        for (name, file) in &self.parts {
            file.sync_all()
                .map_err(ImageError::system("write", &self.path_of(*name)))?;
        }
        self.digests.sync_all().map_err(ImageError::system(
            "write",
            &self.target.path.join(DIGESTS_FILE),
        ))?;
        rustix::fs::fsync(&self.temporary.folder)
            .map_err(ImageError::system("write", &self.target.path))
    }

    fn rename(&mut self) -> Result<(), ImageError> {
        let Place { parent, name, path } = &self.target;
        let renamed = rustix::fs::renameat_with(
            parent,
            &self.temporary.name,
            parent,
            name,
            RenameFlags::NOREPLACE,
        );
        match renamed {
            Err(Errno::EXIST) => return Err(ImageError::Exists(path.clone())),
            other => other.map_err(ImageError::system("publish", path))?,
        }
        // If that fails, the folder has to go by its new name.
        self.temporary.name.clone_from(name);
        rustix::fs::fsync(parent).map_err(ImageError::system("publish", path))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        if !self.published {
            // Nobody is left to tell on this way out; the next command sweeps what remains.
            self.temporary.remove(&self.target.parent).ok();
        }
    }
}

/// Removes what killed commands left beside `path`; returns how many folders. [`ImageWriter::create`] does it too.
///
/// # Errors
/// [`ImageError::System`].
pub fn sweep(path: &Path) -> Result<usize, ImageError> {
    let place = Place::of(path)?;
    folder::sweep(&place.parent).map_err(ImageError::system("clean up beside", path))
}

fn inconsistent(path: &Path, what: &'static str) -> ImageError {
    ImageError::Manifest {
        path: path.to_owned(),
        source: ManifestError::Inconsistent(what),
    }
}

/// Makes a file, mode 0600, in the folder.
fn new_file(temporary: &Temporary, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file: OwnedFd = rustix::fs::openat(&temporary.folder, OsStr::new(name), flags, mode)?;
    Ok(file.into())
}

/// Makes a file for the content of a part; in memory if that is not to be on disk.
fn new_part_file(temporary: &Temporary, name: &str, in_memory: bool) -> io::Result<File> {
    if in_memory {
        return Ok(memfd::create()?);
    }
    new_file(temporary, name)
}

fn hash_file(file: &File, len: u64, hasher: &mut ChunkHasher<'_>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_LEN];
    let mut at = 0;
    while at < len {
        let data = sparse::next_data(file, at, len)?;
        // Whole chunks only: what follows is then read and hashed a chunk at a time.
        let hole = (data - at) / CHUNK_LEN as u64 * CHUNK_LEN as u64;
        hasher.zeros(if data == len { len - at } else { hole })?;
        at = if data == len { len } else { at + hole };
        let now = usize::try_from(len - at).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
        file.read_exact_at(&mut buffer[..now], at)?;
        hasher.update(&buffer[..now])?;
        at += now as u64;
    }
    Ok(())
}
