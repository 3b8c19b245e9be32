//! What must be known of the device to leave every value out of a snapshot: which ones there are, and which
//! pages hold them.

use std::sync::Arc;

use cachot_secrets::{Name, SealedValue};

use super::device::SecretsDevice;

/// Attached guest memory, at addresses that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedRange<'a> {
    /// The secret that it is attached to.
    pub name: &'a Name,
    /// The version of the value that the device wrote there, a part of it or zero bytes behind it; none
    /// where it has wiped everything.
    pub version: Option<u64>,
    /// Guest-physical address, a multiple of 4096.
    pub start: u64,
    /// Bytes, a multiple of 4096 and not 0.
    pub len: u64,
}

impl SecretsDevice {
    /// Every value that was ever declared to this device, each once, oldest first: also what was rotated
    /// away, revoked or replaced by [`Self::rehydrate`], and what no driver has asked for. Where several
    /// secrets had a value, one that has it now is named.
    pub fn delivered(&self) -> impl ExactSizeIterator<Item = (&Name, u64, &Arc<SealedValue>)> {
        self.delivered.iter().map(|(name, version, value)| {
            let has_it = |own: &&Arc<SealedValue>| Arc::ptr_eq(own, value);
            let mut entries = self.entries.iter();
            match entries.find(|entry| entry.value.as_ref().filter(has_it).is_some()) {
                Some(owner) => (&owner.name, owner.version, value),
                None => (name, version, value),
            }
        })
    }

    /// All attached memory, by address. The guest may write there too, so it holds anything.
    pub fn attached(&self) -> impl Iterator<Item = AttachedRange<'_>> {
        self.handles
            .ranges()
            .map(|(range, attachment)| AttachedRange {
                name: &attachment.name,
                version: attachment.content.version(),
                start: range.start(),
                len: range.len(),
            })
    }
}
