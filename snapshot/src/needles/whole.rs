//! Values that are known only as a whole: too short, or with too few distinct bytes, for a run of them to tell
//! anything. In a snapshot they are not searched for; output is kept free of them.

use std::ops::Range;

use cachot_secrets::SecretValue;

use super::{EDGE_WINDOW, WINDOW, is_telling};

/// Values with fewer bytes are everywhere.
pub(super) const LEAST: usize = 4;

/// Bits of the filter. It has a bit for the first bytes of each value.
const FILTER_BITS: usize = 1 << 14;

const FILTER_FACTOR: u32 = 0x9e37_79b1;

/// The values of 4 to 15 bytes that have no form with a telling window of their own bytes.
pub(super) struct Whole {
    /// Their numbers, sorted by their bytes.
    order: Vec<u32>,
    filter: Vec<u64>,
}

impl Whole {
    pub fn new(values: &[SecretValue]) -> Self {
        let mut order: Vec<u32> = values
            .iter()
            .zip(0..)
            .filter(|(value, _)| is_whole(value.expose()))
            .map(|(_, number)| number)
            .collect();
        order.sort_unstable_by_key(|number| values[*number as usize].expose());
        let mut filter = vec![0; FILTER_BITS / 64];
        for number in &order {
            let bit = bit(values[*number as usize].expose());
            filter[bit / 64] |= 1 << (bit % 64);
        }
        Self { order, filter }
    }

    /// Where `haystack` has one of them; of those that begin at one place, the longest.
    pub fn find<'a>(
        &'a self,
        values: &'a [SecretValue],
        haystack: &'a [u8],
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        let places = if self.order.is_empty() {
            0
        } else {
            (haystack.len() + 1).saturating_sub(LEAST)
        };
        (0..places).filter_map(move |at| {
            let rest = &haystack[at..];
            let bit = bit(rest);
            if self.filter[bit / 64] >> (bit % 64) & 1 == 0 {
                return None;
            }
            let most = rest.len().min(WINDOW - 1);
            let mut lengths = (LEAST..=most).rev();
            let len = lengths.find(|len| {
                let place = self.place(values, &rest[..*len]);
                self.value(values, place) == Some(&rest[..*len])
            })?;
            Some(at..at + len)
        })
    }

    /// Whether one of them begins with these bytes.
    pub fn has_beginning(&self, values: &[SecretValue], run: &[u8]) -> bool {
        let place = self.place(values, run);
        let next = self.value(values, place);
        next.is_some_and(|value| value.starts_with(run))
    }

    /// How many come before these bytes.
    fn place(&self, values: &[SecretValue], bytes: &[u8]) -> usize {
        self.order
            .partition_point(|number| values[*number as usize].expose() < bytes)
    }

    fn value<'a>(&self, values: &'a [SecretValue], place: usize) -> Option<&'a [u8]> {
        let number = self.order.get(place)?;
        Some(values[*number as usize].expose())
    }
}

fn is_whole(value: &[u8]) -> bool {
    (LEAST..WINDOW).contains(&value.len()) && (value.len() < EDGE_WINDOW || !is_telling(value))
}

/// The bit of what begins with these bytes, of which there are at least [`LEAST`].
fn bit(bytes: &[u8]) -> usize {
    let first = [bytes[0], bytes[1], bytes[2], bytes[3]];
    let product = u32::from_le_bytes(first).wrapping_mul(FILTER_FACTOR);
    (product >> (32 - FILTER_BITS.trailing_zeros())) as usize
}
