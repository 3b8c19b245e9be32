//! What redaction itself makes: zeros beside bytes that stay can be a run of a value that has zeros in it. Such
//! runs are left out too, until there are none.

use std::ops::{ControlFlow, Range};

use cachot_secrets::LockedBuffer;

use super::{Place, PlanBuilder, PlanError, Redaction, free_parts};
use crate::needles::WINDOW;
use crate::scan::{Edges, Hit};

/// Most rounds of leaving out what the round before has made. Two or three are plenty for values that people have.
pub(super) const MAX_ROUNDS: usize = 256;

impl PlanBuilder<'_> {
    /// Searches a haystack that begins at `base` again, around what is left out, as it would be written, and adds what
    /// that finds; all hits in the haystack were added before. Returns what is left out in addition.
    ///
    /// Only bytes that stay so far are added, with the value's bytes that they are: these are the haystack's own, so
    /// the same value restores them exactly.
    ///
    /// # Errors
    /// [`PlanError::Unsettled`] or [`PlanError::Locked`].
    pub fn settle(
        &mut self,
        place: Place,
        base: u64,
        haystack: &[u8],
        edges: Edges,
    ) -> Result<Vec<Range<u64>>, PlanError> {
        self.take_new_hits();
        let new = self.taken_in(place, base, haystack.len());
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let len = haystack.len();
        let mut buffer = match self.written.take() {
            Some(buffer) if buffer.len() >= len => buffer,
            _ => LockedBuffer::new(len.max(1))?,
        };
        // It has what the redactions make, too.
        let written = &mut buffer[..len];
        written.copy_from_slice(haystack);
        let added = self.leave_out_new(place, base, written, edges, new);
        self.written = Some(buffer);
        added
    }

    /// Leaves out what was added, and what that makes, until nothing more is made.
    fn leave_out_new(
        &mut self,
        place: Place,
        base: u64,
        written: &mut [u8],
        edges: Edges,
        mut new: Vec<Range<usize>>,
    ) -> Result<Vec<Range<u64>>, PlanError> {
        let mut added = Vec::new();
        for _ in 0..MAX_ROUNDS {
            for range in &new {
                written[range.clone()].fill(0);
            }
            let hits = self.search(written, &new, edges);
            if hits.is_empty() {
                return Ok(added);
            }
            new.clear();
            for hit in &hits {
                let before = self.hits.len();
                for part in self.free_parts_of(place, base, written, hit) {
                    if self.too_many || self.hits.len() >= super::MAX_REDACTIONS {
                        self.too_many = true;
                        return Ok(added);
                    }
                    self.hits.push(part);
                    added.push(part.range());
                    new.push(within(&part.range(), base, written.len()));
                }
                if before < self.hits.len() {
                    self.take_new_hits();
                }
            }
        }
        Err(PlanError::Unsettled)
    }

    /// Notes what hits cover that were added since the last call.
    fn take_new_hits(&mut self) {
        for hit in &self.hits[self.settled..] {
            for free in free_parts(&self.taken, hit) {
                self.taken.insert((hit.place, free.start), free.end);
            }
        }
        self.settled = self.hits.len();
    }

    /// What is left out so far of so many bytes from `base` on, as places there.
    fn taken_in(&self, place: Place, base: u64, len: usize) -> Vec<Range<usize>> {
        let end = base.saturating_add(len as u64);
        let before = self.taken.range(..(place, base)).next_back();
        before
            .into_iter()
            .filter(|((other, _), taken_end)| *other == place && **taken_end > base)
            .chain(self.taken.range((place, base)..(place, end)))
            .map(|((_, start), taken_end)| within(&(*start..*taken_end), base, len))
            .collect()
    }

    /// Finds residue around what is newly left out.
    fn search(&self, written: &[u8], new: &[Range<usize>], edges: Edges) -> Vec<Hit> {
        let mut hits = Vec::new();
        for region in regions(new, written.len(), edges) {
            let searched = self
                .needles
                .scan(&written[region.clone()], edges, &mut |hit| {
                    hits.push(Hit {
                        start: region.start + hit.start,
                        ..hit
                    });
                    ControlFlow::Continue(())
                });
            debug_assert!(searched.is_continue());
        }
        hits
    }

    /// The parts of a hit that are not left out yet.
    fn free_parts_of(
        &mut self,
        place: Place,
        base: u64,
        written: &[u8],
        hit: &Hit,
    ) -> Vec<Redaction> {
        let Some(redaction) = self.redaction(place, base, written, hit) else {
            self.too_many = true;
            return Vec::new();
        };
        let free = free_parts(&self.taken, &redaction).into_iter();
        free.map(|free| redaction.part(&free)).collect()
    }
}

/// A range of positions as places in what begins at `base` and has `len` bytes, which it overlaps.
fn within(range: &Range<u64>, base: u64, len: usize) -> Range<usize> {
    let place = |at: u64| usize::try_from(at.saturating_sub(base)).map_or(len, |at| at.min(len));
    place(range.start)..place(range.end)
}

/// What has to be searched after these ranges became zero, sorted and apart. A run that is new has one of their bytes
/// within each window, and what is searched ends where the edges are.
fn regions(new: &[Range<usize>], len: usize, edges: Edges) -> Vec<Range<usize>> {
    let Edges::Every(distance) = edges else {
        return std::iter::once(0..len).collect();
    };
    let mut all: Vec<_> = new
        .iter()
        .map(|range| {
            let first = range.start.saturating_sub(WINDOW);
            let end = (range.end + WINDOW).next_multiple_of(distance);
            first - first % distance..end.min(len)
        })
        .collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut apart: Vec<Range<usize>> = Vec::with_capacity(all.len());
    for range in all {
        match apart.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}
