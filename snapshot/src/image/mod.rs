//! Images of virtual machines on disk: written under a temporary name, signed, published at once or not
//! at all, and checked before anything in them is believed. `resources/snapshot-format.md` specifies them.
//!
//! ```text
//! DIR/manifest.json   what the image is, and the receipt (0600, as all files; the folder is 0700)
//! DIR/manifest.sig    who says so: an Ed25519 signature of the manifest
//! DIR/digests         BLAKE3 of every chunk of every part
//! DIR/memory          guest RAM, sparse
//! DIR/state           the machine's state
//! DIR/plan            what was redacted, and what goes there at a restore
//! DIR/needles         keyed digests of the values that were searched for
//! DIR/disk-N          the copy of a writable disk
//! ```
//!
//! Writing: [`ImageWriter::create`], fill the files ([`copy_disk`]), [`ImageWriter::publish`]. Reading: [`Image::open`],
//! then [`Image::load_memory`], [`Image::read`], [`Image::copy_disk`], [`Image::stream`].

mod catalogue;
mod chunk;
mod cipher;
mod consistency;
mod error;
#[cfg(test)]
mod example;
mod folder;
mod key;
mod manifest;
pub mod memfd;
mod reader;
mod receipt;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

pub use catalogue::{Inspection, Listed, delete, inspect, list};
pub use chunk::{CHUNK_LEN, ChunkHasher, DIGEST_LEN, Digest, chunk_count};
pub use cipher::{Identities, Recipient, RecipientError};
pub use error::ImageError;
pub use key::{HOST_KEY_FILE, HostKey, PublicKey, TRUSTED_KEYS_FOLDER, TrustedKeys, commitments};
pub use manifest::{
    Contents, CpuBaseline, Digests, Disk, FEATURE_AGE, FORMAT_VERSION, Guest, ImageId,
    MAX_DISK_LEN, MAX_DISKS, MAX_LINEAGE, MAX_MANIFEST_LEN, MAX_MEMORY_LEN, MAX_NEEDLES,
    MAX_PLAN_LEN, MAX_STATE_LEN, MAX_STORED_LEN, Machine, Manifest, ManifestError, MemoryRegion,
    Part, PartName, PartNameError, RestorePolicy, Secret, parse,
};
pub use reader::{Image, Residue};
pub use receipt::{Hits, OnResidue, Place, Receipt, Redactions};
pub use sparse::{copy_disk, next_data, write_data};
pub use writer::{ImageWriter, sweep};

/// Name of the manifest in an image's folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Name of the signature in an image's folder.
pub const SIGNATURE_FILE: &str = "manifest.sig";

/// Name of the list of digests in an image's folder.
pub const DIGESTS_FILE: &str = "digests";
