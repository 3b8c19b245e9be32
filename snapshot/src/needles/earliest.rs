//! Which suffix of a run of sorted ones comes first in the text: least positions of pieces, in a tree.
//!
//! Forms are in the text in the order of their values and encodings, so that is the plainest form.

use std::ops::Range;

use super::order::Suffix;

/// Suffixes whose least position is written down; a tree of all of them would be as large as they are.
const PIECE: usize = 64;

/// Least positions: of pieces from the middle on, and before it at `n` that of `2 * n` and `2 * n + 1`.
pub(super) struct Earliest(Vec<u32>);

impl Earliest {
    pub fn new(suffixes: &[Suffix]) -> Self {
        let pieces = suffixes.chunks(PIECE).map(least);
        let mut tree = vec![u32::MAX; pieces.len()];
        tree.extend(pieces);
        for node in (1..tree.len() / 2).rev() {
            tree[node] = tree[2 * node].min(tree[2 * node + 1]);
        }
        Self(tree)
    }

    /// The least position of `suffixes[run]`, which are those that this was made of; nothing if there are none.
    pub fn of(&self, suffixes: &[Suffix], run: Range<usize>) -> Option<u32> {
        let (first, last) = (run.start.div_ceil(PIECE), run.end / PIECE);
        if run.is_empty() {
            return None;
        }
        if first >= last {
            return Some(least(&suffixes[run]));
        }
        let before = least(&suffixes[run.start..first * PIECE]);
        let behind = least(&suffixes[last * PIECE..run.end]);
        Some(before.min(behind).min(self.of_pieces(first, last)))
    }

    /// That of whole pieces, from bottom to top: an odd left end is not in its parent's run, nor what is before an odd
    /// right end.
    fn of_pieces(&self, first: usize, last: usize) -> u32 {
        let pieces = self.0.len() / 2;
        let (mut left, mut right) = (first + pieces, last + pieces);
        let mut least = u32::MAX;
        while left < right {
            if left % 2 == 1 {
                least = least.min(self.0[left]);
                left += 1;
            }
            if right % 2 == 1 {
                right -= 1;
                least = least.min(self.0[right]);
            }
            left /= 2;
            right /= 2;
        }
        least
    }
}

/// The least position; the greatest number if there is none.
fn least(suffixes: &[Suffix]) -> u32 {
    let starts = suffixes.iter().map(|suffix| suffix.start);
    starts.min().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_earliest_of_every_run_is_what_looking_at_all_finds() {
        for count in [0_u32, 1, 63, 64, 65, 200, 449, 512] {
            // No order: multiples of a number without a common divisor.
            let start = |at| at * 7919 % 10_007;
            let suffixes: Vec<_> = (0..count)
                .map(|at| Suffix {
                    start: start(at),
                    end: u32::MAX,
                })
                .collect();
            let earliest = Earliest::new(&suffixes);
            for first in (0..suffixes.len()).step_by(3) {
                for last in first..=suffixes.len() {
                    let wanted = suffixes[first..last].iter().map(|suffix| suffix.start);
                    let found = earliest.of(&suffixes, first..last);
                    assert_eq!(found, wanted.min(), "{first}..{last} of {count}");
                }
            }
        }
    }
}
