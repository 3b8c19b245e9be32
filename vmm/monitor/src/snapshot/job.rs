//! One snapshot: what is searched for, where, what is left out of the image, and the proof that it is.

use std::error::Error;
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cachot_devices::memory::{Extent, GuestRam};
use cachot_secrets::{Name, SealedValue, ValueError};
use cachot_snapshot::image::{Machine as Shape, Place as ReceiptPlace};
use cachot_snapshot::needles::{NeedleError, Needles, Value};
use cachot_snapshot::plan::{Place, Plan, PlanBuilder, PlanError};
use cachot_snapshot::scan::Edges;

use super::receipt::{self, Tally};
use super::worker::{Report, Reporter};
use super::{memory, shape, verify};
use crate::protocol::{OnResidue, SnapshotProgress, SnapshotReport, SnapshotRequest, SnapshotStep};
use crate::state::{MachineState, StateError};
use crate::x86_64::register_file;

/// A snapshot to take.
pub struct Order {
    /// How.
    pub request: SnapshotRequest,
    /// Where to.
    pub files: Files,
    /// What must not be in it.
    pub delivered: Vec<Delivered>,
    /// Whether guest RAM may be on a swap device.
    pub may_swap: bool,
}

/// The parts of the image.
#[allow(missing_docs, reason = "the fields are the parts of the same name")]
pub struct Files {
    pub memory: File,
    pub state: File,
    pub plan: File,
    pub needles: File,
    pub digests: File,
}

impl From<[File; 5]> for Files {
    fn from([memory, state, plan, needles, digests]: [File; 5]) -> Self {
        Self {
            memory,
            state,
            plan,
            needles,
            digests,
        }
    }
}

/// A value that was delivered to the guest.
pub struct Delivered {
    /// Its secret.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// Its bytes.
    pub value: Arc<SealedValue>,
}

/// Pages that hold a value, or did.
pub struct Attached {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Attached {
    fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}

/// A machine that rests.
pub struct Machine {
    /// All but RAM.
    pub state: MachineState,
    /// Pages that hold values.
    pub attached: Vec<Attached>,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A value cannot be brought into locked memory.
    #[error("cannot read a delivered value")]
    Value(#[source] ValueError),
    /// Values cannot be searched for.
    #[error(transparent)]
    Needles(#[from] NeedleError),
    /// A part cannot be written or read back.
    #[error("cannot write the snapshot's {part}")]
    Part {
        /// The part.
        part: &'static str,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The state does not become bytes.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// RAM is not where it was said to be.
    #[error("guest memory cannot be read")]
    Ram(#[source] io::Error),
    /// There is residue, and the user does not want it redacted.
    #[error(
        "copies of secrets are in the machine, and --on-residue refuse was given: {0}; --on-residue redact leaves \
         them out"
    )]
    Refused(String),
    /// There is residue where it cannot be redacted.
    #[error(
        "{0} copies of secrets are in the state of devices, where they cannot be left out: try again later"
    )]
    Unredactable(u64),
    /// What was written has residue all the same.
    #[error(
        "the image would hold copies of secrets and is not published: {found}, the first at {offset:#x}; please \
         report this"
    )]
    Leak {
        /// What was found.
        found: String,
        /// Where the first one is.
        offset: u64,
    },
}

impl JobError {
    /// The error with its causes.
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line
    }
}

fn part(part: &'static str) -> impl Fn(io::Error) -> JobError {
    move |source| JobError::Part { part, source }
}

/// A snapshot that can be taken as soon as its machine rests.
pub struct Job<'a> {
    ram: &'a GuestRam,
    reporter: &'a Reporter,
    order: Order,
    needles: Needles,
}

impl<'a> Job<'a> {
    /// Does what can be done while the machine runs.
    pub fn prepare(
        ram: &'a GuestRam,
        mut order: Order,
        reporter: &'a Reporter,
    ) -> Result<Self, JobError> {
        let delivered = std::mem::take(&mut order.delivered);
        let values = delivered.into_iter().map(|delivered| {
            Ok(Value {
                bytes: delivered.value.read().map_err(JobError::Value)?,
                name: delivered.name,
                version: delivered.version,
            })
        });
        let needles = Needles::new(values.collect::<Result<_, JobError>>()?)?;
        let files = &order.files;
        files.memory.set_len(ram.size()).map_err(part("memory"))?;
        files
            .needles
            .write_all_at(&needles.commitments(&order.request.commitment_key), 0)
            .map_err(part("needles"))?;
        Ok(Self {
            ram,
            reporter,
            order,
            needles,
        })
    }

    /// Searches and copies a machine that rests.
    pub fn write(self, mut machine: Machine) -> Result<Written<'a>, JobError> {
        let keep = self.order.request.on_residue == OnResidue::Keep;
        let extents = memory::extents(self.ram, self.order.may_swap).map_err(JobError::Ram)?;
        let total = extents.iter().map(|extent| extent.len).sum();
        let mut progress = Progress::new(self.reporter, SnapshotStep::Scan, total);

        let attached: Vec<_> = machine.attached.iter().map(Attached::range).collect();
        let key = &self.order.request.commitment_key;
        let mut plan = PlanBuilder::new(&self.needles, key, attached.iter().cloned());
        let mut tally = Tally::default();
        for extent in &extents {
            let bytes = self.quiet(*extent)?;
            let found = self.needles.scan(bytes, Edges::PAGES, &mut |hit| {
                let start = extent.start.0 + hit.start as u64;
                tally.count(place_in_ram(&attached, start), hit.encoding);
                plan.add(Place::Ram, extent.start.0, bytes, &hit);
                progress.hits += 1;
                until(plan.is_full())
            });
            if found.is_break() {
                break;
            }
            progress.advance(extent.len);
        }
        for (state, number) in machine.state.vcpus.iter().zip(0..) {
            let file = register_file::read(state);
            let bytes = file.as_slice();
            let edges = Edges::Every(register_file::EDGE);
            let found = self.needles.scan(bytes, edges, &mut |hit| {
                tally.count(ReceiptPlace::Vcpu, hit.encoding);
                plan.add(Place::Vcpu(number), 0, bytes, &hit);
                until(plan.is_full())
            });
            if found.is_break() {
                break;
            }
        }
        let mut plan = plan.build()?;
        if self.order.request.on_residue == OnResidue::Refuse && !plan.redactions().is_empty() {
            return Err(JobError::Refused(tally.describe()));
        }
        let machine_shape = shape::of(&machine.state, self.ram);
        if keep {
            plan = Plan::default();
        } else {
            redact_registers(&mut machine.state, &plan);
        }
        self.write_memory(&extents, &plan.left_out(), total)?;
        let state = machine.state.to_bytes()?;
        // What is left in the state is in no register of the file, and cannot be left out.
        let unredactable = self.needles.count(&state, Edges::Ends, u64::MAX);
        if unredactable > 0 && !keep {
            return Err(JobError::Unredactable(unredactable));
        }
        let files = &self.order.files;
        files.state.write_all_at(&state, 0).map_err(part("state"))?;
        files
            .plan
            .write_all_at(&plan.to_bytes()?, 0)
            .map_err(part("plan"))?;
        Ok(Written {
            job: self,
            total,
            machine: machine_shape,
            plan,
            tally,
        })
    }

    fn write_memory(
        &self,
        extents: &[Extent],
        left_out: &[Range<u64>],
        total: u64,
    ) -> Result<(), JobError> {
        let mut progress = Progress::new(self.reporter, SnapshotStep::Write, total);
        for extent in extents {
            let offset = memory::file_offset(self.ram, extent.start).ok_or_else(no_ram)?;
            let bytes = self.quiet(*extent)?;
            let file = &self.order.files.memory;
            memory::write_extent(file, offset, extent.start.0, bytes, left_out)
                .map_err(part("memory"))?;
            progress.advance(extent.len);
        }
        Ok(())
    }

    fn quiet(&self, extent: Extent) -> Result<&[u8], JobError> {
        // SAFETY: this is called between the main thread's message that vCPUs and devices rest and this thread's
        // that they need not any more.
        unsafe { self.ram.quiet(extent) }.ok_or_else(no_ram)
    }
}

fn no_ram() -> JobError {
    JobError::Ram(io::ErrorKind::InvalidInput.into())
}

fn until(enough: bool) -> ControlFlow<()> {
    if enough {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

fn place_in_ram(attached: &[Range<u64>], address: u64) -> ReceiptPlace {
    if attached.iter().any(|range| range.contains(&address)) {
        ReceiptPlace::AttachedPage
    } else {
        ReceiptPlace::Ram
    }
}

fn redact_registers(state: &mut MachineState, plan: &Plan) {
    for (state, number) in state.vcpus.iter_mut().zip(0..) {
        let redactions = plan.at(Place::Vcpu(number));
        if redactions.is_empty() {
            continue;
        }
        let mut file = register_file::read(state);
        for redaction in redactions {
            let start = usize::try_from(redaction.start).expect("a position in the file");
            file[start..start + redaction.len as usize].fill(0);
        }
        register_file::write(state, &file);
    }
}

/// A snapshot whose machine goes on already.
pub struct Written<'a> {
    job: Job<'a>,
    total: u64,
    machine: Shape,
    plan: Plan,
    tally: Tally,
}

impl Written<'_> {
    /// Hashes what was written, and searches it again.
    pub fn verify(self) -> Result<SnapshotReport, JobError> {
        let Job {
            ram,
            reporter,
            order,
            needles,
        } = self.job;
        let keep = order.request.on_residue == OnResidue::Keep;
        let mut progress = Progress::new(reporter, SnapshotStep::Verify, self.total);
        let mut residue = Tally::default();
        let mut first = None;
        let mut search = |place, offset: u64, bytes: &[u8], edges| {
            let searched = needles.scan(bytes, edges, &mut |hit| {
                residue.count(place, hit.encoding);
                first.get_or_insert(offset + hit.start as u64);
                ControlFlow::Continue(())
            });
            debug_assert!(searched.is_continue());
        };
        let files = &order.files;
        let mut read = verify::read_back(
            &files.memory,
            ram.size(),
            &files.digests,
            |offset, bytes| {
                search(ReceiptPlace::Ram, offset, bytes, Edges::PAGES);
                progress.advance(bytes.len() as u64);
            },
        )
        .map_err(part("memory"))?;
        for (file, name) in [
            (&files.state, "state"),
            (&files.plan, "plan"),
            (&files.needles, "needles"),
        ] {
            let bytes = verify::read_all(file).map_err(part(name))?;
            search(ReceiptPlace::DeviceState, 0, &bytes, Edges::Ends);
            read += bytes.len() as u64;
        }
        if let Some(offset) = first
            && !keep
        {
            return Err(JobError::Leak {
                found: residue.describe(),
                offset,
            });
        }
        let receipt = receipt::receipt(
            &needles,
            order.request.on_residue,
            &self.plan,
            &self.tally,
            &residue,
            read,
        );
        Ok(SnapshotReport {
            machine: self.machine,
            receipt,
            paused_us: 0,
        })
    }
}

/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 64 << 20;

/// Reports progress now and then.
struct Progress<'a> {
    reporter: &'a Reporter,
    step: SnapshotStep,
    done: u64,
    total: u64,
    hits: u64,
    reported: u64,
}

impl<'a> Progress<'a> {
    fn new(reporter: &'a Reporter, step: SnapshotStep, total: u64) -> Self {
        Self {
            reporter,
            step,
            done: 0,
            total,
            hits: 0,
            reported: 0,
        }
    }

    fn advance(&mut self, bytes: u64) {
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
        }));
    }
}
