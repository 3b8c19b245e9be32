//! The search for residue in what is longer than memory: piece by piece, with the same result as in one piece.
//!
//! A window of locked memory moves over the stream. It overlaps its predecessor by twice the length of the longest
//! form, so each hit lies in one of them whole; a hit belongs to the window in whose middle it begins. Windows begin
//! and end at pages, which are edges in the stream too: no window has an edge of its own.

use std::cmp::Reverse;
use std::io;
use std::ops::{ControlFlow, Range};

use cachot_secrets::{LockError, LockedBuffer};

use crate::needles::{Encoding, Needles};
use crate::scan::{Edges, Hit, PAGE};

/// Bytes that a window moves on by: small enough for a core's cache, large beside the overlap of usual values.
const STEP: usize = 512 << 10;

/// A run of a stream that is one of a form, and cannot be extended in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamHit {
    /// Where it begins in the stream.
    pub start: u64,
    /// Its length in bytes.
    pub len: usize,
    /// Index of the value among [`Needles::origins`].
    pub value: usize,
    /// Form of the value.
    pub encoding: Encoding,
}

/// Gets every hit once: by ascending position, and none that lies in another.
pub type OnHit<'a> = &'a mut dyn FnMut(StreamHit);

/// A search in a stream whose pages are edges ([`Edges::PAGES`]), or in a section of one.
///
/// Sections of one stream can be searched at the same time: each hit is found in the section in which it begins.
///
/// ```
/// # use cachot_snapshot::{needles::{Needles, Value}, stream::StreamSearch};
/// # let bytes = cachot_secrets::SecretValue::copy_of(b"tk-0123456789abcdef")?;
/// # let needles = Needles::new(vec![Value { name: "TOKEN".parse()?, version: 1, bytes }])?;
/// let mut search = StreamSearch::new(&needles)?;
/// let mut found = Vec::new();
/// search.begin(0..u64::MAX);
/// search.feed(0, b"token: tk-01234", &mut |hit| found.push(hit));
/// search.feed(15, b"56789abcdef", &mut |hit| found.push(hit));
/// search.finish(26, &mut |hit| found.push(hit));
/// assert_eq!((found[0].start, found[0].len), (7, 19));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StreamSearch<'a> {
    needles: &'a Needles,
    window: LockedBuffer,
    /// At least the longest form, in whole pages.
    margin: usize,
    /// Where the window begins in the stream, at a page.
    base: u64,
    /// Bytes of the window that are known.
    filled: usize,
    /// Hits that begin before this place are reported, or another section's.
    reported_to: u64,
    /// Hits that begin from this place on are another section's.
    section_end: u64,
    /// Where the last reported hit ends.
    covered_to: u64,
    first_window: bool,
}

impl<'a> StreamSearch<'a> {
    /// A search for these needles. It locks half a MiB of memory, more if values are long.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn new(needles: &'a Needles) -> Result<Self, LockError> {
        Self::with_step(needles, STEP)
    }

    fn with_step(needles: &'a Needles, step: usize) -> Result<Self, LockError> {
        // At least a page, for the edges.
        let margin = needles.longest_form().max(1).next_multiple_of(PAGE);
        // What is searched twice is never more than what is searched once.
        let step = step.max(2 * margin);
        let mut search = Self {
            needles,
            window: LockedBuffer::new(step + 2 * margin)?,
            margin,
            base: 0,
            filled: 0,
            reported_to: 0,
            section_end: u64::MAX,
            covered_to: 0,
            first_window: true,
        };
        search.begin(0..u64::MAX);
        Ok(search)
    }

    /// Begins anew, with a section from one multiple of 4096 to another or to the end of the stream; returns what has
    /// to be fed for it, as far as the stream goes: a little of its neighbours too.
    pub fn begin(&mut self, section: Range<u64>) -> Range<u64> {
        let margin = self.margin as u64;
        self.base = page_of(section.start.saturating_sub(margin));
        self.filled = 0;
        self.reported_to = section.start;
        self.section_end = section.end;
        self.covered_to = 0;
        self.first_window = true;
        self.base..section.end.saturating_add(margin)
    }

    /// Takes the bytes of the stream at `at`, which is not before the end of what it was given last; all between is
    /// zero.
    pub fn feed(&mut self, at: u64, mut bytes: &[u8], on_hit: OnHit<'_>) {
        let mut at = at;
        while !bytes.is_empty() {
            self.move_to(at, on_hit);
            let now = self.space().min(bytes.len());
            let (head, rest) = bytes.split_at(now);
            self.window[self.filled..self.filled + now].copy_from_slice(head);
            self.filled += now;
            at += now as u64;
            bytes = rest;
        }
    }

    /// As [`Self::feed`], with up to `most` bytes that `read` puts straight into the window, where they go from no
    /// further. Returns how many it read.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn feed_by(
        &mut self,
        at: u64,
        most: u64,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
        on_hit: OnHit<'_>,
    ) -> io::Result<usize> {
        self.move_to(at, on_hit);
        let most = usize::try_from(most).map_or(self.space(), |most| most.min(self.space()));
        let into = &mut self.window[self.filled..self.filled + most];
        let now = read(into)?.min(most);
        self.filled += now;
        Ok(now)
    }

    /// Ends the stream at `end`, or the section with what was to be fed for it; what was not given before is zero.
    pub fn finish(&mut self, end: u64, on_hit: OnHit<'_>) {
        // Zeros can belong to a hit, and what ends in the middle of a page would be an edge.
        let tail = self.end().saturating_add(2 * self.margin as u64);
        self.move_to(end.min(page_of(tail)).max(self.end()), on_hit);
        self.report(u64::MAX, on_hit);
    }

    /// Where what is known ends.
    fn end(&self) -> u64 {
        self.base + self.filled as u64
    }

    fn space(&self) -> usize {
        self.window.len() - self.filled
    }

    /// Fills up with zeros until `at` is what comes next, and makes room for it.
    fn move_to(&mut self, at: u64, on_hit: OnHit<'_>) {
        debug_assert!(at >= self.end(), "fed twice");
        let far = 2 * self.window.len() as u64;
        if at - self.end() > far {
            // Longer than any hit: what is before the gap and what is behind it have nothing to do with each other.
            let zeros = page_of(self.end() + 2 * self.margin as u64);
            self.fill_to(zeros, on_hit);
            self.report(u64::MAX, on_hit);
            self.reported_to = self.reported_to.max(self.end());
            self.base = page_of(at - self.margin as u64);
            self.filled = 0;
            self.first_window = false;
        }
        self.fill_to(at, on_hit);
        if self.space() == 0 {
            self.advance(on_hit);
        }
    }

    /// Fills up with zeros to `at`.
    fn fill_to(&mut self, at: u64, on_hit: OnHit<'_>) {
        while self.end() < at {
            if self.space() == 0 {
                self.advance(on_hit);
            }
            let left = usize::try_from(at - self.end()).unwrap_or(usize::MAX);
            let now = left.min(self.space());
            self.window[self.filled..self.filled + now].fill(0);
            self.filled += now;
        }
    }

    /// Searches the full window and moves it on.
    fn advance(&mut self, on_hit: OnHit<'_>) {
        let limit = self.filled - self.margin;
        self.report(self.base + limit as u64, on_hit);
        let kept = limit - self.margin;
        self.window.copy_within(kept..self.filled, 0);
        self.base += kept as u64;
        self.filled -= kept;
        self.first_window = false;
    }

    /// Reports what begins in the window before `limit` and was not reported.
    fn report(&mut self, limit: u64, on_hit: OnHit<'_>) {
        let mut hits: Vec<Hit> = Vec::new();
        let search = self
            .needles
            .scan(&self.window[..self.filled], Edges::PAGES, &mut |hit| {
                hits.push(hit);
                ControlFlow::Continue(())
            });
        debug_assert!(search.is_continue());
        hits.sort_unstable_by_key(|hit| (hit.start, Reverse(hit.len)));
        let limit = limit.min(self.section_end);
        for hit in hits {
            let start = self.base + hit.start as u64;
            let end = start + hit.len as u64;
            let mine = (self.reported_to..limit).contains(&start);
            // Before a section's first hit are those of the section before it.
            let earlier = self.first_window && start < self.reported_to;
            if (mine || earlier) && end > self.covered_to {
                self.covered_to = end;
                if mine {
                    on_hit(StreamHit {
                        start,
                        len: hit.len,
                        value: hit.value,
                        encoding: hit.encoding,
                    });
                }
            }
        }
        self.reported_to = self.reported_to.max(limit.min(self.end()));
    }
}

/// Where the page begins that this place is in.
fn page_of(at: u64) -> u64 {
    at - at % PAGE as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needles::Value;
    use cachot_secrets::SecretValue;
    use proptest::prelude::*;

    const SHORT: &[u8] = b"k9!x\0\0aZ";
    const TOKEN: &[u8] = b"tk-demo-0123456789abcdef\"0123456789/+\xc3\xa9";

    /// A value with forms of several pages.
    fn long() -> Vec<u8> {
        let text = (0..1500u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]);
        text.collect()
    }

    fn needles() -> Needles {
        let values = [SHORT, TOKEN, &long()];
        let values = values.iter().enumerate().map(|(number, bytes)| Value {
            name: format!("SECRET_{number}").parse().expect("a name"),
            version: 1,
            bytes: SecretValue::copy_of(bytes).expect("a value"),
        });
        Needles::new(values.collect()).expect("needles")
    }

    /// What a search in one piece covers.
    fn oracle(needles: &Needles, haystack: &[u8]) -> Vec<bool> {
        let mut covered = vec![false; haystack.len()];
        let search = needles.scan(haystack, Edges::PAGES, &mut |hit| {
            covered[hit.start..hit.start + hit.len].fill(true);
            ControlFlow::Continue(())
        });
        assert!(search.is_continue());
        covered
    }

    /// Feeds all of `haystack` that is in `ranges`, in pieces.
    fn feed(
        search: &mut StreamSearch<'_>,
        haystack: &[u8],
        needed: Range<u64>,
        pieces: &[usize],
        found: &mut Vec<StreamHit>,
    ) {
        let len = haystack.len();
        let end = usize::try_from(needed.end).map_or(len, |end| end.min(len));
        let mut at = usize::try_from(needed.start).expect("small");
        let mut sizes = pieces.iter().cycle();
        while at < end {
            let piece = &haystack[at..end.min(at + sizes.next().expect("endless"))];
            // Zeros need not be given.
            if piece.iter().any(|byte| *byte != 0) {
                search.feed(at as u64, piece, &mut |hit| found.push(hit));
            }
            at += piece.len();
        }
        search.finish(end as u64, &mut |hit| found.push(hit));
    }

    fn check(haystack: &[u8], pieces: &[usize], step: usize, sections: u64) {
        let needles = needles();
        let mut search = StreamSearch::with_step(&needles, step).expect("a search");
        let len = haystack.len() as u64;
        let section = (len / sections + 1).next_multiple_of(PAGE as u64);
        let mut found = Vec::new();
        for start in (0..len.max(1)).step_by(usize::try_from(section).expect("small")) {
            let end = match start + section {
                end if end >= len => u64::MAX,
                end => end,
            };
            let needed = search.begin(start..end);
            feed(&mut search, haystack, needed, pieces, &mut found);
        }
        let mut covered = vec![false; haystack.len()];
        for hit in &found {
            let start = usize::try_from(hit.start).expect("small");
            covered[start..start + hit.len].fill(true);
        }
        let expected = oracle(&needles, haystack);
        let wrong = (0..haystack.len()).find(|at| covered[*at] != expected[*at]);
        assert_eq!(wrong, None, "{found:?}");
        for pair in found.windows(2) {
            let ends = [0, 1].map(|at: usize| pair[at].start + pair[at].len as u64);
            assert!(
                pair[0].start <= pair[1].start && ends[0] < ends[1],
                "twice: {pair:?}"
            );
        }
    }

    /// A piece of a form, put somewhere near a place that is interesting or not.
    fn fragment() -> impl Strategy<Value = (usize, usize, usize, usize, usize, bool)> {
        (
            0..3usize,
            0..Encoding::ALL.len(),
            0..6000usize,
            1..6000usize,
            0..70usize,
            any::<bool>(),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn test_search_by_pieces_finds_what_a_search_in_one_piece_finds(
            len in 0..300_000usize,
            noise in any::<bool>(),
            fragments in prop::collection::vec(fragment(), 0..30),
            offsets in prop::collection::vec(0..5000usize, 30),
            pieces in prop::collection::vec(1..40_000usize, 1..6),
            sections in 1..4u64,
        ) {
            let mut haystack = vec![0; len];
            if noise {
                let mut state = 1_u32;
                for byte in &mut haystack[..len / 3] {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = state.to_le_bytes()[3];
                }
            }
            let long = long();
            for ((value, encoding, from, take, page, at_edge), offset) in fragments.into_iter().zip(offsets) {
                let mut form = Vec::new();
                let value = [SHORT, TOKEN, &long][value];
                Encoding::ALL[encoding].encode(value, &mut |byte| form.push(byte));
                if form.is_empty() {
                    continue;
                }
                let from = if take % 3 == 0 { 0 } else { from % form.len() };
                let piece = &form[from..form.len().min(from + take)];
                let at = match at_edge {
                    // Over the edge of a page, by a few bytes.
                    true => (page * PAGE).saturating_sub(offset % 40),
                    false => page * PAGE + offset,
                };
                if at + piece.len() <= len {
                    haystack[at..at + piece.len()].copy_from_slice(piece);
                }
            }
            check(&haystack, &pieces, 2 * PAGE, sections);
        }
    }

    #[test]
    fn test_every_place_around_the_end_of_a_window_is_found_once() {
        // Windows move on by two margins of three pages here.
        let step = 6 * PAGE;
        for border in [step, 2 * step, 3 * step, 7 * step] {
            for back in 0..TOKEN.len() + 2 {
                let mut haystack = vec![0xaa; 8 * step];
                let at = border - back;
                haystack[at..at + TOKEN.len()].copy_from_slice(TOKEN);
                check(&haystack, &[5000], PAGE, 1);
                check(&haystack, &[5000], PAGE, 2);
            }
        }
    }

    #[test]
    fn test_halves_of_a_value_on_both_sides_of_a_gap_are_found_at_their_edges() {
        let needles = needles();
        let mut search = StreamSearch::with_step(&needles, PAGE).expect("a search");
        let (left, right) = TOKEN.split_at(9);
        let far = 1 << 40;
        let mut found = Vec::new();
        search.feed(PAGE as u64 - 9, left, &mut |hit| found.push(hit));
        search.feed(far, right, &mut |hit| found.push(hit));
        search.finish(far + PAGE as u64 * 1000, &mut |hit| found.push(hit));
        let places: Vec<_> = found.iter().map(|hit| (hit.start, hit.len)).collect();
        assert_eq!(places, [(PAGE as u64 - 9, left.len()), (far, right.len())]);
    }

    #[test]
    fn test_fewer_than_eight_bytes_at_an_edge_are_nothing_and_eight_are_a_hit() {
        for (len, expected) in [(7, 0), (8, 1)] {
            let mut haystack = vec![0xaa; 40 * PAGE];
            let at = 12 * PAGE - len;
            haystack[at..at + len].copy_from_slice(&TOKEN[3..3 + len]);
            let needles = needles();
            let mut search = StreamSearch::with_step(&needles, PAGE).expect("a search");
            let mut found = Vec::new();
            feed(&mut search, &haystack, 0..u64::MAX, &[999], &mut found);
            assert_eq!(found.len(), expected, "{len}");
        }
    }

    #[test]
    fn test_feed_by_reads_no_more_than_is_wanted() {
        let needles = needles();
        let mut search = StreamSearch::new(&needles).expect("a search");
        let mut found = Vec::new();
        let read = search.feed_by(
            10,
            TOKEN.len() as u64,
            |into| {
                assert_eq!(into.len(), TOKEN.len());
                into.copy_from_slice(TOKEN);
                Ok(into.len())
            },
            &mut |hit| found.push(hit),
        );
        assert_eq!(read.expect("read"), TOKEN.len());
        search.finish(10 + TOKEN.len() as u64, &mut |hit| found.push(hit));
        assert_eq!((found[0].start, found[0].len), (10, TOKEN.len()));
    }
}
