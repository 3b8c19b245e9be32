//! What a run has cost: exits by kind, and when the milestones of a start were reached.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

/// Why a vCPU came back from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// A port was read or written.
    Io,
    /// A device's memory was read.
    MmioRead,
    /// A device's memory was written.
    MmioWrite,
    /// A signal asked for it, or an application processor was started.
    Interrupted,
    /// Anything else.
    Other,
}

/// Exits of one vCPU. Only its thread counts, anybody may look.
#[derive(Debug, Default)]
pub struct Exits {
    io: AtomicU64,
    mmio_read: AtomicU64,
    mmio_write: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

impl Exits {
    /// Counts one exit.
    pub fn count(&self, kind: ExitKind) {
        let counter = match kind {
            ExitKind::Io => &self.io,
            ExitKind::MmioRead => &self.mmio_read,
            ExitKind::MmioWrite => &self.mmio_write,
            ExitKind::Interrupted => &self.interrupted,
            ExitKind::Other => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers now.
    #[must_use]
    pub fn report(&self) -> ExitReport {
        let [io, mmio_read, mmio_write, interrupted, other] = [
            &self.io,
            &self.mmio_read,
            &self.mmio_write,
            &self.interrupted,
            &self.other,
        ]
        .map(|counter| counter.load(Ordering::Relaxed));
        ExitReport {
            io,
            mmio_read,
            mmio_write,
            interrupted,
            other,
        }
    }
}

/// Exits of one vCPU, or of all of them, by kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the fields are ExitKind's variants")]
pub struct ExitReport {
    pub io: u64,
    pub mmio_read: u64,
    pub mmio_write: u64,
    pub interrupted: u64,
    pub other: u64,
}

impl std::iter::Sum for ExitReport {
    fn sum<I: Iterator<Item = Self>>(reports: I) -> Self {
        reports.fold(Self::default(), |sum, report| Self {
            io: sum.io + report.io,
            mmio_read: sum.mmio_read + report.mmio_read,
            mmio_write: sum.mmio_write + report.mmio_write,
            interrupted: sum.interrupted + report.interrupted,
            other: sum.other + report.other,
        })
    }
}

/// Milestones of a start, counted from the beginning of `main`.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    configured: OnceLock<Instant>,
    built: OnceLock<Instant>,
    running: OnceLock<Instant>,
    first_output: OnceLock<Instant>,
}

/// A milestone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// The keeper has said all.
    Configured,
    /// Memory, vCPUs, devices, kernel and tables are in place.
    Built,
    /// vCPUs run.
    Running,
    /// The guest has written the first byte to its console.
    FirstOutput,
}

impl Timeline {
    /// A timeline that begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            start: Instant::now(),
            configured: OnceLock::new(),
            built: OnceLock::new(),
            running: OnceLock::new(),
            first_output: OnceLock::new(),
        }
    }

    fn milestone(&self, milestone: Milestone) -> &OnceLock<Instant> {
        match milestone {
            Milestone::Configured => &self.configured,
            Milestone::Built => &self.built,
            Milestone::Running => &self.running,
            Milestone::FirstOutput => &self.first_output,
        }
    }

    /// Notes that a milestone is reached; only the first time counts.
    pub fn reach(&self, milestone: Milestone) {
        self.milestone(milestone).get_or_init(Instant::now);
    }

    /// Microseconds from the beginning to each milestone reached.
    #[must_use]
    pub fn report(&self) -> TimelineReport {
        let since = |milestone| {
            let reached = self.milestone(milestone).get()?;
            u64::try_from(reached.duration_since(self.start).as_micros()).ok()
        };
        TimelineReport {
            configured: since(Milestone::Configured),
            built: since(Milestone::Built),
            running: since(Milestone::Running),
            first_output: since(Milestone::FirstOutput),
        }
    }
}

/// Microseconds from the start of the monitor's `main`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the fields are Milestone's variants")]
pub struct TimelineReport {
    pub configured: Option<u64>,
    pub built: Option<u64>,
    pub running: Option<u64>,
    pub first_output: Option<u64>,
}
