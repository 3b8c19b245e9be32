//! The search for residue.
//!
//! **Residue** is any run of at least [`WINDOW`] bytes of a form of a value (of a shorter form: all of it), anywhere,
//! and any run of at least [`EDGE_WINDOW`] bytes that touches an edge: where a page or a register ends, a
//! copy may go on somewhere else. Windows with fewer than [`DISTINCT`](crate::needles::DISTINCT) distinct bytes
//! do not count, nor pieces of alphabets and tables of digits; they are everywhere.
//!
//! A run of 16 bytes has 9 grams of 8 bytes, so one of every 9 places has one of them: only these are looked at, in a
//! filter that stays in the cache. What passes is compared exactly.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use crate::needles::{
    EDGE_WINDOW, Encoding, GRAM, Index, Needles, Places, WINDOW, gram_at, is_telling,
};

/// Where a haystack's neighbours are not its continuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edges {
    /// At multiples of this many bytes from the beginning, and at both ends.
    Every(usize),
    /// At both ends.
    Ends,
    /// Nowhere: what comes before and behind the haystack is searched too, with enough of it.
    None,
}

impl Edges {
    /// Guest RAM, and files of it.
    pub const PAGES: Self = Self::Every(PAGE);
}

/// A page, in bytes.
pub(crate) const PAGE: usize = 4096;

/// A run of a haystack that is one of a form, and in some form cannot be extended in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    /// Where it begins in the haystack.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Index of the value among [`Needles::origins`].
    pub value: usize,
    /// Form of the value.
    pub encoding: Encoding,
    /// Where it begins in that form.
    pub offset: usize,
}

impl Needles {
    /// Finds all residue in `haystack`. Every byte of residue is in at least one of the hits that `on_hit` gets;
    /// where forms have runs in common, the plainest of them is named. `on_hit` may end the search.
    pub fn scan(
        &self,
        haystack: &[u8],
        edges: Edges,
        on_hit: &mut dyn FnMut(Hit) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.index.forms().is_empty() {
            return ControlFlow::Continue(());
        }
        let scan = Scan {
            index: &self.index,
            haystack,
            edges,
            on_hit,
            last: [(0, 0); 2],
        };
        match self.index.stride {
            1 => scan.run::<1>(),
            2 => scan.run::<2>(),
            3 => scan.run::<3>(),
            4 => scan.run::<4>(),
            5 => scan.run::<5>(),
            6 => scan.run::<6>(),
            7 => scan.run::<7>(),
            8 => scan.run::<8>(),
            _ => scan.run::<9>(),
        }
    }

    /// Number of hits, up to `limit`.
    #[must_use]
    pub fn count(&self, haystack: &[u8], edges: Edges, limit: u64) -> u64 {
        let mut count = 0;
        let search = self.scan(haystack, edges, &mut |_| {
            count += 1;
            if count < limit {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        debug_assert_eq!(search.is_break(), count >= limit);
        count
    }
}

struct Scan<'a> {
    index: &'a Index,
    haystack: &'a [u8],
    edges: Edges,
    on_hit: &'a mut dyn FnMut(Hit) -> ControlFlow<()>,
    /// Starts and ends of the two hits that were reported last, the last one first.
    last: [(usize, usize); 2],
}

impl Scan<'_> {
    /// Looks at one place in `STRIDE`.
    fn run<const STRIDE: usize>(mut self) -> ControlFlow<()> {
        let len = self.haystack.len();
        if len < GRAM {
            return ControlFlow::Continue(());
        }
        let mut at = 0;
        for page in (0..len).step_by(PAGE) {
            let end = len.min(page + PAGE);
            if is_zero(&self.haystack[page..end]) {
                // What begins before the page is looked at here, and what ends behind it from its last bytes on.
                self.around::<STRIDE>(page)?;
                at = at.max(end.saturating_sub(WINDOW - 1));
            }
            self.edges_of(page, end)?;
            at = self.samples::<STRIDE>(at, end)?;
        }
        match self.edges {
            Edges::Every(_) | Edges::Ends => self.edge(len),
            Edges::None => ControlFlow::Continue(()),
        }
    }

    /// Looks at places from `at` to `end`; returns the next one.
    fn samples<const STRIDE: usize>(
        &mut self,
        mut at: usize,
        end: usize,
    ) -> ControlFlow<(), usize> {
        const BLOCK: usize = 8;
        let last = self.haystack.len() - GRAM;
        while at < end && at <= last {
            let span = at + (BLOCK - 1) * STRIDE;
            if span >= end || span > last {
                at = if self.index.may_have(gram_at(self.haystack, at)) {
                    self.candidate::<STRIDE>(at)?
                } else {
                    at + STRIDE
                };
                continue;
            }
            let block = &self.haystack[at..=span + GRAM - 1];
            let mut passed = 0_u32;
            for place in 0..BLOCK {
                let passes = self.index.may_have(gram_at(block, place * STRIDE));
                passed |= u32::from(passes) << place;
            }
            let base = at;
            at += BLOCK * STRIDE;
            if !passed.is_power_of_two() {
                let mut rest = passed;
                while rest != 0 {
                    let place = rest.trailing_zeros();
                    rest &= rest - 1;
                    let taken = self.index.is_taken(gram_at(block, place as usize * STRIDE));
                    passed &= !(u32::from(!taken) << place);
                }
            }
            while passed != 0 {
                let place = passed.trailing_zeros() as usize;
                passed &= passed - 1;
                let here = base + place * STRIDE;
                let next = self.candidate::<STRIDE>(here)?;
                if next != here + STRIDE {
                    at = next;
                    break;
                }
            }
        }
        ControlFlow::Continue(at)
    }

    /// Looks closer at a place that passed the filter; returns the next place to look at.
    fn candidate<const STRIDE: usize>(&mut self, at: usize) -> ControlFlow<(), usize> {
        let gram = gram_at(self.haystack, at);
        if gram == gram.rotate_left(8) {
            // A run of one byte. What has too much of it does not tell anything; what ends behind it is found
            // from its last bytes on.
            self.starts::<STRIDE>(at)?;
            let byte = self.haystack[at];
            let rest = self.haystack[at..].iter();
            let run_end = at + rest.take_while(|other| **other == byte).count();
            return ControlFlow::Continue((at + STRIDE).max(run_end.saturating_sub(WINDOW - 1)));
        }
        let end = match self.index.places(gram) {
            None => return ControlFlow::Continue(at + STRIDE),
            Some(Places::One(place)) => self.places(at, [place], STRIDE)?,
            Some(Places::Two(places)) => self.places(at, places, STRIDE)?,
            Some(Places::Many { .. }) => self.starts::<STRIDE>(at)?,
        };
        // A window that goes on behind the end of a hit begins less than a window before it; the places before
        // the next one are looked at from there.
        ControlFlow::Continue((at + STRIDE).max(end.saturating_sub(WINDOW - STRIDE)))
    }

    /// Reports the runs around `at`, where the haystack has the same gram as the text at these places and nowhere
    /// else; returns where the last of them ends, or 0.
    fn places<const COUNT: usize>(
        &mut self,
        at: usize,
        places: [u32; COUNT],
        stride: usize,
    ) -> ControlFlow<(), usize> {
        let least = stride + GRAM - 1;
        let mut found = places.map(|place| {
            let extent = self.index.extent(place, self.haystack, at, least)?;
            let (begin, end) = (at - extent.before, at + extent.behind);
            is_telling(&self.haystack[begin..end]).then(|| Hit {
                start: begin,
                len: end - begin,
                value: extent.form.value as usize,
                encoding: extent.form.encoding,
                offset: (place - extent.form.start) as usize - extent.before,
            })
        });
        // The longest first; of those that are the same run, the plainest, which comes first in the text.
        found.sort_by_key(|hit| hit.map(|hit| Reverse(hit.len)));
        let mut last = 0;
        for hit in found.into_iter().flatten() {
            let end = hit.start + hit.len;
            last = last.max(end);
            if self.is_new(hit.start, end) {
                (self.on_hit)(hit)?;
            }
        }
        ControlFlow::Continue(last)
    }

    /// Reports what begins at `at` or up to `STRIDE - 1` bytes before it, and goes on over it; returns where the
    /// last of them ends.
    fn starts<const STRIDE: usize>(&mut self, at: usize) -> ControlFlow<(), usize> {
        let least = STRIDE + GRAM - 1;
        let mut first = at;
        while first > 0 && at - first < STRIDE - 1 && self.may_begin(first - 1) {
            first -= 1;
        }
        let mut end = 0;
        for start in first..=at {
            // A run that is longer than a window is found again by its end.
            if STRIDE == WINDOW - GRAM + 1 && start + WINDOW <= end {
                continue;
            }
            // Its last gram rules most of them out.
            if self.may_begin(start + least - GRAM) {
                end = end.max(self.report(start, None)?);
            }
        }
        ControlFlow::Continue(end)
    }

    /// Reports what begins up to a window before `page`.
    fn around<const STRIDE: usize>(&mut self, page: usize) -> ControlFlow<()> {
        for start in page.saturating_sub(WINDOW - 1)..page {
            if self.may_begin(start) && self.may_begin(start + STRIDE - 1) {
                self.report(start, None)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Looks at the edges from `from` on, before `to`.
    fn edges_of(&mut self, from: usize, to: usize) -> ControlFlow<()> {
        match self.edges {
            Edges::Every(distance) => {
                let first = from.next_multiple_of(distance);
                (first..to)
                    .step_by(distance)
                    .try_for_each(|edge| self.edge(edge))
            }
            Edges::Ends if from == 0 => self.edge(0),
            Edges::Ends | Edges::None => ControlFlow::Continue(()),
        }
    }

    /// Reports runs that touch an edge.
    fn edge(&mut self, edge: usize) -> ControlFlow<()> {
        for start in edge.saturating_sub(WINDOW - 1)..=edge {
            // Of a run that is longer than a window, a window is found anyway.
            let (begin, end) = self.last[0];
            let covered = begin <= start && start + WINDOW <= end;
            if !covered && self.may_begin(start) {
                self.report(start, Some(edge))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes note of a hit; false if it is in one of the last ones.
    fn is_new(&mut self, start: usize, end: usize) -> bool {
        let is_in = |(other_start, other_end)| other_start <= start && end <= other_end;
        if self.last.into_iter().any(is_in) {
            return false;
        }
        self.last = [(start, end), self.last[0]];
        true
    }

    /// Whether a run may begin there.
    fn may_begin(&self, at: usize) -> bool {
        at + GRAM <= self.haystack.len() && self.index.may_have(gram_at(self.haystack, at))
    }

    /// Reports the longest run that begins at `start`, if it is residue; returns its end, or 0.
    fn report(&mut self, start: usize, edge: Option<usize>) -> ControlFlow<(), usize> {
        let rest = &self.haystack[start..];
        let Some(longest) = self.index.longest(rest) else {
            return ControlFlow::Continue(0);
        };
        let touches = edge.is_some_and(|edge| start + longest.len >= edge);
        let found = if longest.len >= WINDOW || (touches && longest.len >= EDGE_WINDOW) {
            longest
        } else if let Some(short) = self.index.longest_short(rest) {
            short
        } else {
            return ControlFlow::Continue(0);
        };
        if !is_telling(&rest[..found.len]) {
            return ControlFlow::Continue(0);
        }
        let end = start + found.len;
        let before = self.index.common_before(found.at, &self.haystack[..start]);
        let begin = start - before;
        if !self.is_new(begin, end) {
            return ControlFlow::Continue(end);
        }
        let mut form = self.index.form_at(found.at);
        let mut offset = (found.at - form.start) as usize - before;
        if form.encoding != Encoding::Raw
            && let Some(first) = self.index.earliest(&self.haystack[begin..end])
        {
            form = self.index.form_at(first);
            offset = (first - form.start) as usize;
        }
        (self.on_hit)(Hit {
            start: begin,
            len: end - begin,
            value: form.value as usize,
            encoding: form.encoding,
            offset,
        })?;
        ControlFlow::Continue(end)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // A loop without a way out in the middle is compiled to vector instructions.
    bytes
        .chunks(512)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needles::Value;

    #[test]
    fn test_scan_window_that_begins_within_another_hit() {
        // Two windows of its UTF-32 form that are not next to each other in it: the second one less its first byte
        // goes on from the end of the first one. A short form has every place looked at.
        let value = b"a\nbbd\nbb";
        let mut form = Vec::new();
        Encoding::Utf32.encode(value, &mut |byte| form.push(byte));
        let haystack = [&form[16..], b"d"].concat();
        assert_eq!(form[1..17], haystack[1..]);
        let needles = Needles::new(vec![Value {
            name: "A".parse().expect("a name"),
            version: 1,
            bytes: cachot_secrets::SecretValue::copy_of(value).expect("a value"),
        }])
        .expect("memory");

        let mut hits = Vec::new();
        let search = needles.scan(&haystack, Edges::None, &mut |hit| {
            hits.push((hit.start, hit.len, hit.offset));
            ControlFlow::Continue(())
        });

        assert!(search.is_continue());
        assert_eq!(hits, [(0, 16, 16), (1, 16, 1)]);
    }

    #[test]
    fn test_scan_names_the_plainest_of_the_forms_that_have_a_run() {
        // At both ends of a value its raw, percent-encoded and JSON forms are the same, and so are the two alphabets
        // of base64 but for the sign in the middle.
        let value = b"qwertzuiopasdfghjklyxcvb??\"nmQWERTZUIOPASDFGHJKLYXCVB";
        let form = |encoding: Encoding| {
            let mut form = Vec::new();
            encoding.encode(value, &mut |byte| form.push(byte));
            form
        };
        let needles = Needles::new(vec![Value {
            name: "A".parse().expect("a name"),
            version: 1,
            bytes: cachot_secrets::SecretValue::copy_of(value).expect("a value"),
        }])
        .expect("memory");
        let base64 = form(Encoding::Base64(0));
        let percent = form(Encoding::Percent);
        for (run, wanted) in [
            (&value[..20], (Encoding::Raw, 0)),
            (&value[4..24], (Encoding::Raw, 4)),
            (&value[27..], (Encoding::Raw, 27)),
            (&value[35..], (Encoding::Raw, 35)),
            (&base64[..30], (Encoding::Base64(0), 0)),
            (&base64[40..], (Encoding::Base64(0), 40)),
            // What only one form has is still that one.
            (&percent[10..], (Encoding::Percent, 10)),
        ] {
            let mut hits = Vec::new();
            let search = needles.scan(run, Edges::Ends, &mut |hit| {
                hits.push((hit.encoding, hit.offset, hit.start, hit.len));
                ControlFlow::Continue(())
            });

            assert!(search.is_continue());
            assert_eq!(hits, [(wanted.0, wanted.1, 0, run.len())]);
        }
    }
}
