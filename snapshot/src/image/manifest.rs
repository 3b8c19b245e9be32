//! The manifest: what an image holds and what was proved of it, as readable JSON that the host signs.
//!
//! [`parse`] is a pure function of the file's bytes. It is called only after the signature was checked;
//! it refuses all that is not a manifest of this version all the same.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use cachot_secrets::Name;
use serde::{Deserialize, Serialize};

use super::chunk::{DIGEST_LEN, Digest};
use super::key::PublicKey;
use super::receipt::Receipt;

/// Version of the format that this version of cachot writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Longest manifest, in bytes. The longest honest one (4,096 secrets) has half of it.
pub const MAX_MANIFEST_LEN: u64 = 2 << 20;

/// Longest machine state, in bytes: 255 vCPUs with 16 KiB of registers each, and devices, have less.
pub const MAX_STATE_LEN: u64 = 16 << 20;

/// Longest redaction plan, in bytes.
pub const MAX_PLAN_LEN: u64 = 64 << 20;

/// Most needles that a VM has in its life, and most secrets that it declares.
pub const MAX_NEEDLES: u64 = 4096;

/// Most guest RAM, in bytes.
pub const MAX_MEMORY_LEN: u64 = 1 << 40;

/// Longest copy of a disk, in bytes.
pub const MAX_DISK_LEN: u64 = 16 << 40;

/// Most bytes of all parts together: the most RAM and one of the longest disks. The digests of so much have
/// 2.1 GiB, and they are read into memory.
pub const MAX_STORED_LEN: u64 = MAX_MEMORY_LEN + MAX_DISK_LEN;

/// Most disks of a VM.
pub const MAX_DISKS: usize = 16;

/// Most ancestors that are named; older ones are forgotten.
pub const MAX_LINEAGE: usize = 64;

/// The required feature of an image whose parts are encrypted with age.
pub const FEATURE_AGE: &str = "age";

/// Features that this version knows. A reader that does not know a *required* feature refuses the image;
/// one that does not know an *optional* feature ignores the fields that came with it.
const KNOWN_FEATURES: [&str; 1] = [FEATURE_AGE];

/// Why bytes are not a manifest that this version can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MAX_MANIFEST_LEN`].
    #[error("its manifest has {0} bytes: the limit is {MAX_MANIFEST_LEN}")]
    TooLong(u64),
    /// Written by another version of the format.
    #[error(
        "its format has version {0}, and this version of cachot reads version {FORMAT_VERSION}: use a version of cachot \
         that reads it, or make the image anew"
    )]
    Version(u32),
    /// It needs what this version does not know.
    #[error(
        "it needs the feature {0:?}, which this version of cachot does not have: use a newer one"
    )]
    Feature(String),
    /// Not JSON, or not of this shape.
    #[error("its manifest cannot be read")]
    Json(#[from] serde_json::Error),
    /// A field that no known feature has.
    #[error("its manifest has an unknown field {0:?}")]
    UnknownField(String),
    /// The fields contradict each other.
    #[error("its manifest is not consistent: {0}")]
    Inconsistent(&'static str),
}

/// Who an image is: 16 random bytes; hexadecimal in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(#[serde(with = "hex::serde")] [u8; 16]);

impl ImageId {
    pub(super) fn random() -> rustix::io::Result<Self> {
        let mut bytes = [0; 16];
        super::folder::random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl From<[u8; 16]> for ImageId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageId({self})")
    }
}

/// A file of an image that the manifest describes. In text: `memory`, `state`, `plan`, `needles`, `disk-N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PartName {
    /// Guest RAM, region after region.
    Memory,
    /// The machine's state: bytes that only the monitor understands.
    State,
    /// The redaction plan: bytes that only its own module understands.
    Plan,
    /// Commitments to the values that were searched for ([`super::commitments`]).
    Needles,
    /// The copy of a writable disk.
    Disk(u8),
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::State => f.write_str("state"),
            Self::Plan => f.write_str("plan"),
            Self::Needles => f.write_str("needles"),
            Self::Disk(number) => write!(f, "disk-{number}"),
        }
    }
}

/// Not the name of a part.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("not the name of a part: memory, state, plan, needles or disk-N")]
pub struct PartNameError;

impl FromStr for PartName {
    type Err = PartNameError;

    fn from_str(text: &str) -> Result<Self, PartNameError> {
        let name = match text {
            "memory" => Self::Memory,
            "state" => Self::State,
            "plan" => Self::Plan,
            "needles" => Self::Needles,
            _ => {
                let number = text
                    .strip_prefix("disk-")
                    .and_then(|text| text.parse().ok());
                Self::Disk(number.ok_or(PartNameError)?)
            }
        };
        // One spelling only: no `disk-01`.
        (name.to_string() == text)
            .then_some(name)
            .ok_or(PartNameError)
    }
}

impl TryFrom<String> for PartName {
    type Error = PartNameError;

    fn try_from(text: String) -> Result<Self, PartNameError> {
        text.parse()
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> Self {
        name.to_string()
    }
}

impl PartName {
    /// Most bytes that it may hold.
    #[must_use]
    pub fn limit(self) -> u64 {
        match self {
            Self::Memory => MAX_MEMORY_LEN,
            Self::State => MAX_STATE_LEN,
            Self::Plan => MAX_PLAN_LEN,
            Self::Needles => MAX_NEEDLES * DIGEST_LEN as u64,
            Self::Disk(_) => MAX_DISK_LEN,
        }
    }
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which.
    pub name: PartName,
    /// Bytes of content.
    pub length: u64,
    /// Bytes of the file: more or less than the content if the image is encrypted, else as many.
    pub stored: u64,
}

/// The list of digests: those of all chunks of the stored bytes of the first part, then of the second, and so on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// Bytes of the file `digests`.
    pub length: u64,
    /// BLAKE3 of all of it.
    pub blake3: Digest,
}

/// A run of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Guest-physical address of its first byte.
    pub guest_start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Where in the part `memory` it begins.
    pub file_offset: u64,
}

/// What a guest saw of its CPUs, and so what a host needs to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuBaseline {
    /// `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// Names of the features that the guest may use, as in `/proc/cpuinfo`.
    pub features: BTreeSet<String>,
    /// BLAKE3 of the whole CPUID table, in the monitor's form.
    pub fingerprint: Digest,
}

/// The machine's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Number of vCPUs.
    pub cpus: u8,
    /// RAM, by ascending address.
    pub memory: Vec<MemoryRegion>,
    /// Kinds of the virtio devices, in the order of their slots.
    pub devices: Vec<String>,
    /// Its CPUs.
    pub cpu: CpuBaseline,
}

/// A disk of the guest, in the order of the devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Path of the file or device on the host that the guest was started with.
    pub source: String,
    /// Whether the guest can write to it.
    pub read_only: bool,
    /// Its length in bytes.
    pub length: u64,
    /// The copy in this image; every writable disk has one. A read-only disk is opened by its path again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<PartName>,
    /// BLAKE3 of a read-only disk, where it was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Digest>,
}

/// What the keeper needs to run the guest again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Name of the VM that the image was made of.
    pub name: String,
    /// BLAKE3 of the kernel's command line.
    pub cmdline: Digest,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its vsock context id.
    pub vsock_cid: u64,
    /// The keeper's own record of how the guest is run (command, terminal, limits): opaque here.
    pub keeper: serde_json::Value,
}

/// What happens to a secret at a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestorePolicy {
    /// Its reference is resolved again, unless another value is given.
    Reissue,
}

/// A secret that the guest has: never its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Name in `/run/secrets`.
    pub name: Name,
    /// Where its value came from: `scheme:locator`.
    pub reference: String,
    /// Permission bits, a subset of 0444.
    pub mode: u32,
    /// Owner in the guest.
    pub uid: u32,
    /// Group in the guest.
    pub gid: u32,
    /// Whether the workload also has it as an environment variable.
    pub export_env: bool,
    /// Version of the value that the guest had, from 1.
    pub version: u64,
    /// What happens at a restore.
    pub policy: RestorePolicy,
}

/// What the writer of an image says about it; the rest of the manifest is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// The machine's shape.
    pub machine: Machine,
    /// What the keeper needs.
    pub guest: Guest,
    /// Every declared secret.
    pub secrets: Vec<Secret>,
    /// What was searched for, found and removed.
    pub receipt: Receipt,
    /// The images that the VM comes from, nearest first ([`Manifest::descent`]); empty if it was booted.
    pub lineage: Vec<ImageId>,
}

/// All that is said about an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format: [`FORMAT_VERSION`].
    pub format: u32,
    /// What a reader must know.
    pub required_features: BTreeSet<String>,
    /// What a reader may ignore.
    pub optional_features: BTreeSet<String>,
    /// Version of cachot that wrote the image.
    pub cachot: String,
    /// Who the image is.
    pub id: ImageId,
    /// The images that it comes from, nearest first.
    pub lineage: Vec<ImageId>,
    /// When it was published.
    #[serde(with = "time")]
    pub created: SystemTime,
    /// Who signed it.
    pub host_key: PublicKey,
    /// The machine's shape.
    pub machine: Machine,
    /// What the keeper needs.
    pub guest: Guest,
    /// Every declared secret.
    pub secrets: Vec<Secret>,
    /// What was searched for, found and removed.
    pub receipt: Receipt,
    /// The files, in the order of their digests: `memory`, `state`, `plan`, `needles`, then the disks.
    pub parts: Vec<Part>,
    /// The list of digests.
    pub digests: Digests,
}

/// What every version of the format begins with.
#[derive(Deserialize)]
struct Header {
    format: u32,
    #[serde(default)]
    required_features: BTreeSet<String>,
}

/// Reads a manifest: version first, then the features, then the rest.
///
/// # Errors
/// See [`ManifestError`].
pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let len = bytes.len() as u64;
    if len > MAX_MANIFEST_LEN {
        return Err(ManifestError::TooLong(len));
    }
    let header: Header = serde_json::from_slice(bytes)?;
    if header.format != FORMAT_VERSION {
        return Err(ManifestError::Version(header.format));
    }
    let known = |feature: &String| KNOWN_FEATURES.contains(&feature.as_str());
    if let Some(unknown) = header
        .required_features
        .into_iter()
        .find(|name| !known(name))
    {
        return Err(ManifestError::Feature(unknown));
    }
    let mut unknown_field = None;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let manifest: Manifest = serde_ignored::deserialize(&mut json, |path| {
        unknown_field.get_or_insert_with(|| path.to_string());
    })?;
    json.end()?;
    // A field may be ignored only if an optional feature that came after this version explains it.
    if let Some(field) = unknown_field
        && manifest.optional_features.iter().all(known)
    {
        return Err(ManifestError::UnknownField(field));
    }
    manifest.check().map_err(ManifestError::Inconsistent)?;
    Ok(manifest)
}

impl Manifest {
    /// The manifest as it is signed and stored.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// What the lineage of an image begins with that is made of a VM restored from this one.
    #[must_use]
    pub fn descent(&self) -> Vec<ImageId> {
        let all = std::iter::once(self.id).chain(self.lineage.iter().copied());
        all.take(MAX_LINEAGE).collect()
    }

    /// Whether the parts are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.required_features.contains(FEATURE_AGE)
    }

    /// The part of this name.
    #[must_use]
    pub fn part(&self, name: PartName) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }
}

/// RFC 3339, in UTC and whole seconds.
mod time {
    use std::time::{SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_seconds(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        let time = humantime::parse_rfc3339(&text).map_err(D::Error::custom)?;
        let since = time.duration_since(UNIX_EPOCH).map_err(D::Error::custom)?;
        if since.subsec_nanos() != 0 {
            return Err(D::Error::custom("a time is in whole seconds"));
        }
        Ok(time)
    }
}
