//! How far a snapshot is, told now and then.

use cachot_snapshot::needles::Needles;

use super::worker::{Report, Reporter};
use crate::protocol::{SnapshotProgress, SnapshotStep};

/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 64 << 20;

/// Reports progress now and then.
pub struct Progress<'a> {
    reporter: &'a Reporter,
    step: SnapshotStep,
    done: u64,
    total: u64,
    /// Copies of values that were found so far.
    pub hits: u64,
    reported: u64,
    needles: u64,
}

impl<'a> Progress<'a> {
    /// Nothing of `total` bytes is done, which are searched for these values.
    pub fn new(reporter: &'a Reporter, step: SnapshotStep, total: u64, needles: &Needles) -> Self {
        Self {
            reporter,
            step,
            done: 0,
            total,
            hits: 0,
            reported: 0,
            needles: needles.origins().len() as u64,
        }
    }

    /// So many bytes more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.done - self.reported < REPORT_EVERY {
            return;
        }
        self.reported = self.done;
        self.reporter.tell(Report::Progress(SnapshotProgress {
            step: self.step,
            done: self.done.min(self.total),
            total: self.total,
            hits: self.hits,
            needles: self.needles,
        }));
    }
}
