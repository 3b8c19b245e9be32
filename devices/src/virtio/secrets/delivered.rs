//! Every value that was ever delivered in this VM's life, so that a snapshot can be searched for all of
//! them: also those that were rotated away, revoked, or replaced by a restore.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use cachot_secrets::{Name, SealedValue};
use zeroize::Zeroizing;

use super::host::HostError;

/// Most different values in a VM's life: a snapshot is searched for all of them at once.
pub const MAX_DELIVERED: usize = 4096;

/// Most bytes that they have together.
pub const MAX_DELIVERED_LEN: usize = 16 << 20;

/// A value and where it first came from.
#[derive(Debug)]
struct Kept {
    name: Name,
    version: u64,
    value: Arc<SealedValue>,
}

/// The values, each once. One counts as delivered as soon as it could be: whether the driver has fetched it
/// is not recorded.
#[derive(Debug, Default)]
pub struct Delivered {
    kept: Vec<Kept>,
    /// Indices of `kept`, sorted by length and content.
    sorted: Vec<usize>,
    bytes: usize,
}

impl Delivered {
    /// Keeps a value, or finds that it is kept already.
    ///
    /// # Errors
    /// [`HostError::Limit`] or [`HostError::Read`]; the value must not be delivered then.
    pub fn keep(
        &mut self,
        name: &Name,
        version: u64,
        value: SealedValue,
    ) -> Result<Arc<SealedValue>, HostError> {
        let read = |source| HostError::Read {
            name: name.clone(),
            source,
        };
        let at = match self.find(&value).map_err(read)? {
            Ok(index) => return Ok(Arc::clone(&self.kept[index].value)),
            Err(at) => at,
        };
        // At most the limit and one value more: no overflow.
        let bytes = self.bytes + value.len();
        if self.kept.len() >= MAX_DELIVERED || bytes > MAX_DELIVERED_LEN {
            return Err(HostError::Limit(name.clone()));
        }
        let value = Arc::new(value);
        self.sorted.insert(at, self.kept.len());
        self.kept.push(Kept {
            name: name.clone(),
            version,
            value: Arc::clone(&value),
        });
        self.bytes = bytes;
        Ok(value)
    }

    /// All values, oldest first, with the name and version that each was first declared as.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Name, u64, &Arc<SealedValue>)> {
        self.kept
            .iter()
            .map(|kept| (&kept.name, kept.version, &kept.value))
    }

    /// The index of an equal value in `kept`, or, as an error, where in `sorted` this one belongs.
    fn find(&self, value: &SealedValue) -> io::Result<Result<usize, usize>> {
        let (mut low, mut high) = (0, self.sorted.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let index = self.sorted[middle];
            match compare(&self.kept[index].value, value)? {
                Ordering::Equal => return Ok(Ok(index)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(Err(low))
    }
}

/// Compares by length, then by content, which passes through this process in small pieces that are wiped.
fn compare(left: &SealedValue, right: &SealedValue) -> io::Result<Ordering> {
    const PIECE: usize = 4096;
    let lengths = left.len().cmp(&right.len());
    if lengths.is_ne() {
        return Ok(lengths);
    }
    let mut pieces = Zeroizing::new([[0; PIECE]; 2]);
    let [of_left, of_right] = &mut *pieces;
    for offset in (0..left.len()).step_by(PIECE) {
        let len = PIECE.min(left.len() - offset);
        left.pread_into(offset, &mut of_left[..len])?;
        right.pread_into(offset, &mut of_right[..len])?;
        let contents = of_left[..len].cmp(&of_right[..len]);
        if contents.is_ne() {
            return Ok(contents);
        }
    }
    Ok(Ordering::Equal)
}
