//! Why an image cannot be written, published, opened or used.

use std::io;
use std::path::{Path, PathBuf};

use super::key::PublicKey;
use super::manifest::{ManifestError, PartName};

/// Why an image cannot be written, published, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The path given for a new image is in use.
    #[error("{0:?} exists already: give a new path, or remove it first (cachot snapshot delete)")]
    Exists(PathBuf),
    /// The path has no last component that could name an image's folder.
    #[error("{0:?} cannot name an image: give the path of a folder")]
    NoName(PathBuf),
    /// A file or folder of an image, or of the state folder, is not what it has to be.
    #[error("{path:?} is refused: it is {what}")]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: &'static str,
    },
    /// The folder is not an image.
    #[error("{path:?} is not a cachot image: {why}")]
    NotAnImage {
        /// The folder.
        path: PathBuf,
        /// What is missing or should not be there.
        why: String,
    },
    /// The host key's file is damaged. It is never made anew: images signed by it would be lost.
    #[error(
        "the host key {path:?} has {found} bytes, not 32: restore it from a backup; if there is none, \
         move it away, and images that it signed must be made anew"
    )]
    KeyLength {
        /// The key file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
    },
    /// A file in `trusted-keys` does not hold a public key.
    #[error(
        "the trusted key {0:?} is not the 64 hexadecimal digits of an Ed25519 public key and a line feed: \
         correct or remove it"
    )]
    TrustedKey(PathBuf),
    /// Signed by a host that this one does not trust.
    #[error(
        "the image {path:?} is signed by the key {key}, which is not trusted here: put the key into a file \
         in trusted-keys of the state folder if the host that made the image is yours"
    )]
    UntrustedKey {
        /// The image.
        path: PathBuf,
        /// Who signed it.
        key: PublicKey,
    },
    /// The manifest or the signature was changed.
    #[error(
        "the manifest of the image {0:?} does not match its signature: it was changed after it was signed"
    )]
    Signature(PathBuf),
    /// The manifest is signed, but this version cannot use it.
    #[error("the image {path:?} cannot be used")]
    Manifest {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// A part has another length than the manifest says.
    #[error(
        "{part} of the image {path:?} has {found} bytes instead of {expected}: it was truncated or replaced"
    )]
    Length {
        /// The image.
        path: PathBuf,
        /// Which part.
        part: PartName,
        /// What the manifest says, in bytes.
        expected: u64,
        /// The file's length in bytes.
        found: u64,
    },
    /// A chunk's digest is not the one that was signed.
    #[error(
        "{part} of the image {path:?} is damaged: chunk {chunk} (from byte {}) is not what was signed",
        .chunk * super::chunk::CHUNK_LEN as u64
    )]
    Damaged {
        /// The image.
        path: PathBuf,
        /// Which part.
        part: PartName,
        /// Number of the chunk, from 0.
        chunk: u64,
    },
    /// The list of digests is not the one that was signed.
    #[error("the digests of the image {0:?} are damaged or were replaced")]
    Digests(PathBuf),
    /// There is no such part.
    #[error("the image {path:?} has no {part}")]
    NoPart {
        /// The image.
        path: PathBuf,
        /// Which part.
        part: PartName,
    },
    /// A part that is to be read into memory is too long for that.
    #[error("{part} of the image {path:?} has {length} bytes: the limit is {limit}")]
    TooLong {
        /// The image.
        path: PathBuf,
        /// Which part.
        part: PartName,
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Its parts are encrypted, and no key was given.
    #[error("the image {0:?} is encrypted: give a file with the private key (--identity)")]
    Encrypted(PathBuf),
    /// An encrypted part is what was signed, and yet cannot be read.
    #[error("cannot decrypt {part} of the image {path:?}")]
    Decrypt {
        /// The image.
        path: PathBuf,
        /// Which part.
        part: PartName,
        /// What age said; most likely that none of the keys fits.
        #[source]
        source: io::Error,
    },
    /// Made with `--dangerously-keep-residue`.
    #[error(
        "the image {0:?} was made with --dangerously-keep-residue and may hold values of secrets: \
         give the same flag to use it all the same"
    )]
    ResidueKept(PathBuf),
    /// The guest uses what this host's CPU does not have.
    #[error("the image {path:?} was made on another kind of CPU: {why}")]
    UnfitCpu {
        /// The image.
        path: PathBuf,
        /// What differs.
        why: String,
    },
}

impl ImageError {
    pub(super) fn system<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::System {
            action,
            path,
            source: source.into(),
        }
    }

    /// Whether a file or folder is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
