//! What a snapshot holds of a disk: what the guest knows of it. Its contents are elsewhere.

use serde::{Deserialize, Serialize};

use crate::virtio::RestoreError;

/// The disk as the guest saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl BlockState {
    /// A running guest does not expect its disk to change.
    pub(super) fn check(self, sectors: u64, read_only: bool) -> Result<(), RestoreError> {
        let own = Self { sectors, read_only };
        if self == own {
            Ok(())
        } else {
            Err(RestoreError(format!(
                "disk: the image has {sectors} sectors (read-only: {read_only}), \
                 the guest's has {} (read-only: {})",
                self.sectors, self.read_only
            )))
        }
    }
}
