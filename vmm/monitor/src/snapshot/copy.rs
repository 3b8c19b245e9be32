//! RAM of a resting machine into the `memory` part of an image, searched and written piece by piece: what was just
//! searched is still in the cache when it is written.

use std::ops::{ControlFlow, Range};

use cachot_devices::memory::{Extent, GuestRam};
use cachot_snapshot::image::Place as ReceiptPlace;
use cachot_snapshot::needles::Needles;
use cachot_snapshot::plan::{Place, PlanBuilder};
use cachot_snapshot::scan::{Edges, Hit};

use super::error::JobError;
use super::memory;
use super::order::Files;
use super::progress::Progress;
use super::receipt::Tally;

/// Bytes that are searched and then written: a part of a core's second-level cache.
const PIECE: usize = 256 << 10;

/// Bytes behind a piece that are searched with it, for what begins in it and ends behind it. Whole pages: what is
/// longer goes on, for the search, as a run that touches an edge.
const BEHIND: usize = 4096;

/// The copy as far as it is.
pub struct Copy<'a, 'n> {
    pub needles: &'n Needles,
    pub plan: &'a mut PlanBuilder<'n>,
    pub tally: &'a mut Tally,
    pub progress: Progress<'a>,
    /// What is left out of the file, sorted and apart, from the piece at hand on; at first the attached pages.
    pub left_out: Vec<Range<u64>>,
    /// Whether hits are only counted.
    pub keep: bool,
    /// Where the hits so far end.
    pub end: u64,
}

impl Copy<'_, '_> {
    /// Searches and writes an extent, whose bytes these are, unless there are more hits than a plan has.
    pub fn extent(
        &mut self,
        ram: &GuestRam,
        files: &Files,
        extent: Extent,
        bytes: &[u8],
    ) -> Result<(), JobError> {
        let offset = memory::file_offset(ram, extent.start).ok_or_else(JobError::no_ram)?;
        for from in (0..bytes.len()).step_by(PIECE) {
            let to = bytes.len().min(from + PIECE);
            let start = extent.start.0 + from as u64;
            let searched = &bytes[from..bytes.len().min(to + BEHIND)];
            if self.search(start, to - from, searched)?.is_break() {
                break;
            }
            let (file, offset) = (&files.memory, offset + from as u64);
            memory::write_extent(file, offset, start, &bytes[from..to], &self.left_out)
                .map_err(JobError::part("memory"))?;
            self.progress.advance((to - from) as u64);
        }
        Ok(())
    }

    /// Finds what begins in the piece of this length at `start`, and what would be residue without that.
    fn search(
        &mut self,
        start: u64,
        len: usize,
        bytes: &[u8],
    ) -> Result<ControlFlow<()>, JobError> {
        let Self { plan, tally, .. } = self;
        let mut new = Vec::new();
        let end = self.end;
        let searched = self.needles.scan(bytes, Edges::PAGES, &mut |hit| {
            let range = range_of(start, &hit);
            // The rest of what began in the piece before.
            let is_rest = hit.start == 0 && range.end <= end;
            if hit.start < len && !is_rest {
                tally.count(place_of(plan, range.start), hit.encoding);
                plan.add(Place::Ram, start, bytes, &hit);
                new.push(range);
            }
            if plan.is_full() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        self.progress.hits += new.len() as u64;
        self.end = new.iter().map(|range| range.end).fold(end, u64::max);
        if !self.keep && !new.is_empty() {
            new.extend(plan.settle(Place::Ram, start, bytes, Edges::PAGES)?);
            self.leave_out(start, new);
        }
        Ok(searched)
    }

    /// Adds what was found from `start` on, and forgets what lies before it.
    fn leave_out(&mut self, start: u64, new: Vec<Range<u64>>) {
        let first = self.left_out.partition_point(|range| range.end <= start);
        let mut all = self.left_out.split_off(first);
        all.extend(new);
        all.sort_unstable_by_key(|range| range.start);
        self.left_out.clear();
        for range in all {
            match self.left_out.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => self.left_out.push(range),
            }
        }
    }
}

fn range_of(base: u64, hit: &Hit) -> Range<u64> {
    let start = base + hit.start as u64;
    start..start + hit.len as u64
}

fn place_of(plan: &PlanBuilder<'_>, address: u64) -> ReceiptPlace {
    if plan.attached().iter().any(|range| range.contains(&address)) {
        ReceiptPlace::AttachedPage
    } else {
        ReceiptPlace::Ram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::SnapshotStep;
    use crate::snapshot::worker::Reporter;
    use cachot_devices::memory::{MIN_SIZE, Swap};
    use cachot_secrets::SecretValue;
    use cachot_snapshot::needles::Value;
    use std::os::unix::fs::FileExt;
    use vm_memory::{Bytes, GuestAddress};

    const VALUE: &[u8; 60] = b"tk-7Qm2Zr9XcVbN4aKsLp0WtYeHgUdJf6IoC1Ty8GhRn3MwEqSxDzAvBk5Pu";

    #[test]
    fn test_extent_what_lies_across_the_ends_of_pieces_is_left_out_whole() {
        let ram = GuestRam::new(MIN_SIZE, Swap::Ignored).expect("little memory");
        let mut expected = Vec::new();
        // From one byte before the end of a piece to all but one.
        for before in 1..VALUE.len() as u64 {
            let at = before * PIECE as u64 - before;
            ram.write_slice(VALUE, GuestAddress(at)).expect("RAM");
            expected.push(at..at + VALUE.len() as u64);
        }
        let value = Value {
            name: "A".parse().expect("a name"),
            version: 1,
            bytes: SecretValue::copy_of(VALUE).expect("a value"),
        };
        let needles = Needles::new(vec![value]).expect("memory");
        let file = || tempfile::tempfile().expect("a file");
        let files = Files {
            memory: file(),
            state: file(),
            plan: file(),
            needles: file(),
            digests: file(),
            disk: None,
        };
        files.memory.set_len(MIN_SIZE).expect("its length");
        let mut plan = PlanBuilder::new(&needles, &[7; 32], []);
        let mut tally = Tally::default();
        let reporter = Reporter::for_tests();
        let extent = Extent {
            start: GuestAddress(0),
            len: MIN_SIZE,
        };
        // SAFETY: nobody else knows of this memory.
        let bytes = unsafe { ram.quiet(extent) }.expect("RAM");
        let mut copy = Copy {
            needles: &needles,
            plan: &mut plan,
            tally: &mut tally,
            progress: Progress::new(&reporter, SnapshotStep::Copy, MIN_SIZE, &needles),
            left_out: Vec::new(),
            keep: false,
            end: 0,
        };

        copy.extent(&ram, &files, extent, bytes).expect("written");

        let count = expected.len() as u64;
        assert_eq!(copy.progress.hits, count, "each once");
        assert_eq!(plan.build().expect("few hits").left_out(), expected);
        let mut written = vec![1; bytes.len()];
        files
            .memory
            .read_exact_at(&mut written, 0)
            .expect("readable");
        assert!(written.iter().all(|byte| *byte == 0));
    }
}
