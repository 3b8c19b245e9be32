//! The steps of a snapshot that the monitor takes, on the terminal of the command that waits for it.

use cachot_vmm::protocol::{SnapshotProgress, SnapshotStep};

use crate::progress::Progress;

/// A bar for the step that is being done, once one has been told of.
#[derive(Debug, Default)]
pub struct Steps {
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    step: SnapshotStep,
    done: u64,
    hits: u64,
    progress: Progress,
}

impl Steps {
    /// Shows what the monitor tells.
    pub fn tell(&mut self, told: &SnapshotProgress) {
        if self
            .current
            .as_ref()
            .is_none_or(|current| current.step != told.step)
        {
            // One bar goes away before the next one comes.
            self.current = None;
        }
        let current = self.current.get_or_insert_with(|| Current {
            step: told.step,
            done: 0,
            hits: 0,
            progress: Progress::new(
                match told.step {
                    SnapshotStep::Copy => "copying",
                    SnapshotStep::Verify => "verifying",
                },
                told.total,
                usize::try_from(told.needles).unwrap_or(usize::MAX),
            ),
        });
        let done = told.done.max(current.done);
        let hits = told.hits.max(current.hits);
        current.progress.advance(done - current.done);
        current.progress.add_hits(hits - current.hits);
        (current.done, current.hits) = (done, hits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(step: SnapshotStep, done: u64, hits: u64) -> SnapshotProgress {
        SnapshotProgress {
            step,
            done,
            total: 1000,
            hits,
            needles: 3,
        }
    }

    fn shown(steps: &Steps) -> (u64, String) {
        let current = steps.current.as_ref().expect("a bar");
        current.progress.shown()
    }

    #[test]
    fn test_tell_shows_the_latest_of_each_step() {
        let mut steps = Steps::default();
        assert!(steps.current.is_none());

        steps.tell(&told(SnapshotStep::Copy, 100, 1));
        steps.tell(&told(SnapshotStep::Copy, 700, 4));
        assert_eq!(shown(&steps), (700, "3 needles, 4 hits".to_owned()));

        steps.tell(&told(SnapshotStep::Verify, 50, 0));
        assert_eq!(shown(&steps), (50, "3 needles, 0 hits".to_owned()));
    }

    #[test]
    fn test_tell_what_goes_backwards_changes_nothing() {
        let mut steps = Steps::default();
        steps.tell(&told(SnapshotStep::Copy, 700, 4));
        steps.tell(&told(SnapshotStep::Copy, 0, 0));
        assert_eq!(shown(&steps), (700, "3 needles, 4 hits".to_owned()));
    }
}
