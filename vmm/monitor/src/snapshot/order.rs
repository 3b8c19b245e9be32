//! What a snapshot is made of: where from, where to, and what must not be in it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cachot_devices::memory::GuestRam;
use cachot_secrets::{Name, SealedValue};

use crate::protocol::{SNAPSHOT_FILES, SnapshotRequest};
use crate::state::MachineState;

/// What is copied.
pub struct Source {
    /// Guest memory.
    pub ram: GuestRam,
    /// The disk that the guest may write to.
    pub disk: Option<File>,
}

/// A snapshot to take.
pub struct Order {
    /// Where from.
    pub source: Arc<Source>,
    /// How.
    pub request: SnapshotRequest,
    /// Where to.
    pub files: Files,
    /// What must not be in it.
    pub delivered: Vec<Delivered>,
    /// Whether guest RAM is locked as soon as it is touched.
    pub ram_locked: bool,
}

/// The parts of the image.
#[allow(missing_docs, reason = "the fields are the parts of the same name")]
pub struct Files {
    pub memory: File,
    pub state: File,
    pub plan: File,
    pub needles: File,
    pub digests: File,
    pub disk: Option<File>,
}

impl Files {
    /// Takes the descriptors for what they are, in order; none if there are more or fewer.
    pub fn new(files: Vec<OwnedFd>, has_disk: bool) -> Option<Self> {
        let mut files: Vec<File> = files.into_iter().map(File::from).collect();
        let disk = files.split_off(SNAPSHOT_FILES.len().min(files.len()));
        let [memory, state, plan, needles, digests] = files.try_into().ok()?;
        if disk.len() != usize::from(has_disk) {
            return None;
        }
        Some(Self {
            memory,
            state,
            plan,
            needles,
            digests,
            disk: disk.into_iter().next(),
        })
    }
}

/// A value that was delivered to the guest.
pub struct Delivered {
    /// Its secret.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// Its bytes.
    pub value: Arc<SealedValue>,
}

/// Pages that hold a value, or did.
pub struct Attached {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Attached {
    /// The same as a range.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}

/// A machine that rests.
pub struct Resting {
    /// All but RAM.
    pub state: MachineState,
    /// Pages that hold values.
    pub attached: Vec<Attached>,
}
