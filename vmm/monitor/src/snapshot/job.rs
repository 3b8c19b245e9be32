//! One snapshot: what is searched for, where, what is left out of the image, and the proof that it is.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use cachot_devices::memory::Extent;
use cachot_snapshot::image::{Machine as Shape, Place as ReceiptPlace, copy_disk};
use cachot_snapshot::needles::{Needles, Value};
use cachot_snapshot::plan::{Place, Plan, PlanBuilder};
use cachot_snapshot::scan::Edges;
use rustix::fs::SeekFrom;

use super::copy::Copy;
use super::error::JobError;
use super::order::{Attached, Order, Resting};
use super::progress::Progress;
use super::receipt::{self, Tally};
use super::worker::Reporter;
use super::{memory, shape, verify};
use crate::protocol::{OnResidue, SnapshotReport, SnapshotStep};
use crate::state::MachineState;
use crate::x86_64::register_file;

/// Hits on a disk whose places are told.
const TOLD: usize = 3;

/// A snapshot that can be taken as soon as its machine rests.
pub struct Job<'a> {
    reporter: &'a Reporter,
    order: Order,
    needles: Needles,
}

impl<'a> Job<'a> {
    /// Does what can be done while the machine runs.
    pub fn prepare(mut order: Order, reporter: &'a Reporter) -> Result<Self, JobError> {
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
        let memory_len = order.source.ram.size();
        files
            .memory
            .set_len(memory_len)
            .map_err(JobError::part("memory"))?;
        files
            .needles
            .write_all_at(&needles.commitments(&order.request.commitment_key), 0)
            .map_err(JobError::part("needles"))?;
        Ok(Self {
            reporter,
            order,
            needles,
        })
    }

    /// Searches and copies a machine that rests.
    pub fn write(self, mut machine: Resting) -> Result<Written<'a>, JobError> {
        let keep = self.order.request.on_residue == OnResidue::Keep;
        let extents = memory::extents(&self.order.source.ram, self.order.ram_locked)
            .map_err(JobError::Ram)?;
        let total = extents.iter().map(|extent| extent.len).sum();
        let attached = machine.attached.iter().map(Attached::range);
        let key = &self.order.request.commitment_key;
        let mut plan = PlanBuilder::new(&self.needles, key, attached);
        let mut tally = Tally::default();
        let mut copy = Copy {
            needles: &self.needles,
            left_out: if keep {
                Vec::new()
            } else {
                plan.attached().to_vec()
            },
            plan: &mut plan,
            tally: &mut tally,
            progress: Progress::new(self.reporter, SnapshotStep::Copy, total, &self.needles),
            keep,
            end: 0,
        };
        for extent in extents {
            copy.extent(
                &self.order.source.ram,
                &self.order.files,
                extent,
                self.quiet(extent)?,
            )?;
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
            if !keep {
                plan.settle(Place::Vcpu(number), 0, bytes, edges)?;
            }
        }
        let mut plan = plan.build()?;
        if self.order.request.on_residue == OnResidue::Refuse && !plan.redactions().is_empty() {
            return Err(JobError::Refused(tally.describe()));
        }
        let machine_shape = shape::of(&machine.state, &self.order.source.ram);
        if keep {
            plan = Plan::default();
        } else {
            redact_registers(&mut machine.state, &plan);
        }
        self.copy_disk()?;
        let state = machine.state.to_bytes()?;
        // What is left in the state is in no register of the file, and cannot be left out.
        let unredactable = self.needles.count(&state, Edges::Ends, u64::MAX);
        if unredactable > 0 && !keep {
            return Err(JobError::Unredactable(unredactable));
        }
        let files = &self.order.files;
        files
            .state
            .write_all_at(&state, 0)
            .map_err(JobError::part("state"))?;
        files
            .plan
            .write_all_at(&plan.to_bytes()?, 0)
            .map_err(JobError::part("plan"))?;
        Ok(Written {
            job: self,
            total,
            machine: machine_shape,
            plan,
            tally,
        })
    }

    fn copy_disk(&self) -> Result<(), JobError> {
        match (&self.order.source.disk, &self.order.files.disk) {
            (Some(from), Some(to)) => copy_disk(from, to).map_err(JobError::part("disk")),
            _ => Ok(()),
        }
    }

    fn quiet(&self, extent: Extent) -> Result<&[u8], JobError> {
        // SAFETY: this is called between the main thread's message that vCPUs and devices rest and this thread's
        // that they need not any more.
        unsafe { self.order.source.ram.quiet(extent) }.ok_or_else(JobError::no_ram)
    }
}

fn until(enough: bool) -> ControlFlow<()> {
    if enough {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
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

/// Searches the copy of a disk, where nothing can be left out; returns the number of bytes that were read.
fn search_disk(
    disk: &File,
    needles: &Needles,
    keep: bool,
    residue: &mut Tally,
) -> Result<u64, JobError> {
    let len = rustix::fs::seek(disk, SeekFrom::End(0))
        .map_err(|errno| JobError::part("disk")(errno.into()))?;
    let mut found = Tally::default();
    let mut places = Vec::new();
    let read = verify::read_back(disk, len, None, |offset, bytes| {
        let searched = needles.scan(bytes, Edges::PAGES, &mut |hit| {
            found.count(ReceiptPlace::Disk, hit.encoding);
            if places.len() < TOLD {
                places.push(format!("at byte {}", offset + hit.start as u64));
            }
            ControlFlow::Continue(())
        });
        debug_assert!(searched.is_continue());
    })
    .map_err(JobError::part("disk"))?;
    if !places.is_empty() && !keep {
        return Err(JobError::Disk {
            found: found.describe(),
            places: places.join(", "),
        });
    }
    residue.add(&found);
    Ok(read)
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
            reporter,
            order,
            needles,
        } = self.job;
        let keep = order.request.on_residue == OnResidue::Keep;
        memory::begin_writing_out(&order.files.memory);
        let mut progress = Progress::new(reporter, SnapshotStep::Verify, self.total, &needles);
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
            order.source.ram.size(),
            Some(&files.digests),
            |offset, bytes| {
                search(ReceiptPlace::Ram, offset, bytes, Edges::PAGES);
                progress.advance(bytes.len() as u64);
            },
        )
        .map_err(JobError::part("memory"))?;
        for (file, name) in [
            (&files.state, "state"),
            (&files.plan, "plan"),
            (&files.needles, "needles"),
        ] {
            let bytes = verify::read_all(file).map_err(JobError::part(name))?;
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
        if let Some(disk) = &files.disk {
            read += search_disk(disk, &needles, keep, &mut residue)?;
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
