//! The handles: which guest pages hold which secret. No page belongs to two of them.

use std::collections::BTreeMap;

use cachot_secrets::Name;
use serde::{Deserialize, Serialize};

use super::pages::PageRange;

/// Most handles at a time.
pub const MAX_HANDLES: usize = 4096;

/// Most bytes attached at a time.
pub const MAX_ATTACHED: u64 = 64 << 20;

/// What the device wrote to the pages of a handle last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Zero bytes: the secret was revoked, or a restore brought no value that fits.
    Wiped,
    /// The secret's value of this version, which is its current one.
    Current(u64),
    /// The secret's value of this version; the secret was rotated since.
    Superseded(u64),
}

impl Content {
    /// The version of the value, if there is one.
    pub fn version(self) -> Option<u64> {
        match self {
            Self::Wiped => None,
            Self::Current(version) | Self::Superseded(version) => Some(version),
        }
    }
}

/// The pages of one handle, in the order in which they hold the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The secret, which need not be declared any more.
    pub name: Name,
    /// What they hold.
    pub content: Content,
    /// Never empty.
    pub ranges: Vec<PageRange>,
}

impl Attachment {
    /// Bytes of all ranges together.
    pub fn len(&self) -> u64 {
        total(&self.ranges)
    }
}

/// Why ranges cannot be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// They overlap one another or another handle's, or their length overflows.
    Overlap,
    /// [`MAX_HANDLES`] or [`MAX_ATTACHED`] is reached.
    Limit,
}

/// All handles of a device.
#[derive(Debug, Default)]
pub struct Handles {
    table: BTreeMap<u32, Attachment>,
    /// Every attached range with its handle, by start.
    attached: BTreeMap<u64, (PageRange, u32)>,
    bytes: u64,
    /// The number given out last; numbers are not used again soon, so that a driver's mistake does not hit
    /// another handle.
    last: u32,
}

impl Handles {
    /// Whether `ranges` can be attached now.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn check(&self, ranges: &[PageRange]) -> Result<(), Refusal> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let overlap_inside = sorted.windows(2).any(|pair| pair[0].overlaps(pair[1]));
        if overlap_inside || ranges.iter().any(|range| self.overlaps(*range)) {
            return Err(Refusal::Overlap);
        }
        // The ranges are apart, so the sum fits an address.
        if self.table.len() >= MAX_HANDLES || total(ranges) > MAX_ATTACHED - self.bytes {
            return Err(Refusal::Limit);
        }
        Ok(())
    }

    /// Adds what [`Self::check`] has found attachable; answers its number, which is not 0.
    pub fn insert(&mut self, attachment: Attachment) -> u32 {
        let mut handle = self.last.wrapping_add(1);
        // Ends: at most MAX_HANDLES numbers are taken.
        while handle == 0 || self.table.contains_key(&handle) {
            handle = handle.wrapping_add(1);
        }
        self.insert_as(handle, attachment);
        handle
    }

    /// Adds what [`Self::check`] has found attachable under a number that is free.
    pub fn insert_as(&mut self, handle: u32, attachment: Attachment) {
        self.last = handle;
        self.bytes += attachment.len();
        self.attached.extend(
            attachment
                .ranges
                .iter()
                .map(|range| (range.start(), (*range, handle))),
        );
        self.table.insert(handle, attachment);
    }

    /// Forgets a handle.
    pub fn remove(&mut self, handle: u32) -> Option<Attachment> {
        let attachment = self.table.remove(&handle)?;
        self.bytes -= attachment.len();
        for range in &attachment.ranges {
            self.attached.remove(&range.start());
        }
        Some(attachment)
    }

    /// Forgets all handles.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The pages of `handle`.
    pub fn get(&self, handle: u32) -> Option<&Attachment> {
        self.table.get(&handle)
    }

    /// All handles, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Attachment)> {
        self.table
            .iter()
            .map(|(handle, attachment)| (*handle, attachment))
    }

    /// All attached ranges by address, each with what its handle holds.
    pub fn ranges(&self) -> impl Iterator<Item = (PageRange, &Attachment)> {
        self.attached
            .values()
            .filter_map(|(range, handle)| Some((*range, self.table.get(handle)?)))
    }

    /// Lets `write` change what the pages of every handle hold, and notes what that is now. Stops at the
    /// first error.
    pub fn try_update<E>(
        &mut self,
        mut write: impl FnMut(&Attachment) -> Result<Content, E>,
    ) -> Result<(), E> {
        for attachment in self.table.values_mut() {
            attachment.content = write(attachment)?;
        }
        Ok(())
    }

    /// Whether a page of `range` is attached.
    pub fn overlaps(&self, range: PageRange) -> bool {
        // Attached ranges are apart: of those that begin before the end, the last one ends last.
        self.attached
            .range(..range.end())
            .next_back()
            .is_some_and(|(_, (last, _))| last.end() > range.start())
    }
}

/// Bytes of ranges that are apart.
fn total(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| range.len()).sum()
}
