//! The receipt: what was searched for in an image, what was found and removed, and what is not proved.
//!
//! It means: this version, on this host, searched these bytes for these needles and found this. It does
//! not mean that nothing derived from a value is there.

use cachot_secrets::Name;
use serde::{Deserialize, Serialize};

/// Where bytes were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A page that the guest's driver attached for a value.
    AttachedPage,
    /// Any other guest RAM.
    Ram,
    /// A vCPU's registers.
    Vcpu,
    /// The state of a device.
    DeviceState,
    /// The copy of a writable disk.
    Disk,
    /// The log of the console.
    Console,
}

/// What happens to residue in RAM and vCPU state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnResidue {
    /// It is zeroed in the image and put back at a restore.
    Redact,
    /// No image is published.
    Refuse,
}

/// Residue that was found before the image was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// Where.
    pub place: Place,
    /// In which form: `raw`, `base64`, and so on, the scanner's names.
    pub encoding: String,
    /// Number of maximal matches.
    pub count: u64,
}

/// Bytes that are zero in the image because a value was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redactions {
    /// Where.
    pub place: Place,
    /// Number of ranges.
    pub ranges: u64,
    /// Their length in bytes, all together.
    pub bytes: u64,
}

/// What was searched for in an image, what was found and removed, and what is not proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Name and version of the scanner.
    pub scanner: String,
    /// What was to happen to residue.
    pub policy: OnResidue,
    /// Whether the image was made with `--dangerously-keep-residue`: then it may hold values.
    pub residue_kept: bool,
    /// Distinct values that were delivered in the VM's life and searched for, in all encodings. The part
    /// `needles` has a commitment to each.
    pub needles: u64,
    /// Windows of values that every program has, such as pieces of alphabets, which were not searched for.
    pub degenerate_windows: u64,
    /// Secrets with a value too short to be searched for: only their attached pages were removed.
    pub short_values: Vec<Name>,
    /// Bytes that the verifying scan read: all of the image but its holes.
    pub bytes_scanned: u64,
    /// What was found before writing.
    pub hits: Vec<Hits>,
    /// What was removed.
    pub redactions: Vec<Redactions>,
    /// What the verifying scan still found in the written image; none, unless residue was kept.
    pub residue: Vec<Hits>,
    /// What could not be proved, a sentence each.
    pub not_proved: Vec<String>,
}
