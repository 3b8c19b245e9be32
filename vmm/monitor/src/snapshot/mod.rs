//! Snapshots as the main thread sees them: one at a time, the machine paused for the copy only, or held until the
//! keeper lets it go, and going on afterwards on every path.

mod copy;
mod error;
mod job;
mod memory;
mod order;
mod progress;
mod receipt;
mod shape;
mod verify;
mod worker;

pub use self::shape::host_cpu;
pub use self::worker::Worker;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use self::order::{Attached, Delivered, Files, Order, Resting, Source};
use self::worker::Report;
use crate::life::{Life, State};
use crate::machine::Machine;
use crate::protocol::{SnapshotRequest, ToKeeper};

/// Takes snapshots of one machine.
pub struct Snapshots {
    worker: Worker,
    source: Arc<Source>,
    /// Whether guest RAM is locked as soon as it is touched.
    ram_locked: bool,
    current: Option<Current>,
}

/// A snapshot that is being taken.
#[derive(Default)]
struct Current {
    /// The machine was paused for this, and is still.
    paused: Option<Instant>,
    paused_us: u64,
    /// The machine is to rest until [`Snapshots::release`].
    hold: bool,
    /// All is done but that.
    done: bool,
}

impl Snapshots {
    /// Gets ready to take snapshots.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new(worker: Worker, machine: &Machine, ram_locked: bool) -> io::Result<Self> {
        let disk = machine.writable_disk.as_ref();
        let source = Source {
            ram: machine.ram.clone(),
            disk: disk.map(File::try_clone).transpose()?,
        };
        Ok(Self {
            worker,
            source: Arc::new(source),
            ram_locked,
            current: None,
        })
    }

    /// Becomes readable when [`Self::go_on`] has something to do.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        self.worker.event()
    }

    /// Begins a snapshot into these files; what to tell the keeper at once, if anything.
    pub fn begin(
        &mut self,
        request: SnapshotRequest,
        files: Vec<OwnedFd>,
        life: &Life,
    ) -> Option<ToKeeper> {
        let hold = request.hold;
        let order = self.order(request, files, life);
        match order {
            Ok(order) => {
                self.current = Some(Current {
                    hold,
                    ..Current::default()
                });
                self.worker.prepare(order);
                None
            }
            Err(message) => Some(ToKeeper::SnapshotFailed { message }),
        }
    }

    fn order(
        &self,
        request: SnapshotRequest,
        files: Vec<OwnedFd>,
        life: &Life,
    ) -> Result<Order, String> {
        if self.current.is_some() {
            return Err("another snapshot of this VM is being taken: wait for it".into());
        }
        if !matches!(life.state(), State::Running | State::Paused) {
            return Err("the VM is stopping: there is nothing to take a snapshot of".into());
        }
        let has_disk = life.machine().writable_disk.is_some();
        Ok(Order {
            source: Arc::clone(&self.source),
            request,
            files: Files::new(files, has_disk)
                .ok_or("the keeper sent more or fewer files than a snapshot of this VM has")?,
            delivered: delivered(life),
            ram_locked: self.ram_locked,
        })
    }

    /// Does what the worker's next report asks for: whether there was one, and what to tell the keeper.
    pub fn go_on(&mut self, life: &mut Life) -> (bool, Option<ToKeeper>) {
        let report = self.worker.report();
        let there_is_one = report.is_some();
        (
            there_is_one,
            report.and_then(|report| self.on_report(report, life)),
        )
    }

    fn on_report(&mut self, report: Report, life: &mut Life) -> Option<ToKeeper> {
        match report {
            Report::Prepared => self.hand_over(life),
            Report::Progress(progress) => Some(ToKeeper::SnapshotProgress(progress)),
            Report::Written => {
                self.let_go_unless_held(life);
                None
            }
            Report::Done(mut report) => {
                self.let_go_unless_held(life);
                report.paused_us = self.current.as_ref().map_or(0, Current::paused_us);
                match &mut self.current {
                    Some(current) if current.hold => current.done = true,
                    current => *current = None,
                }
                Some(ToKeeper::SnapshotWritten(report))
            }
            Report::Failed(message) => {
                self.let_go(life);
                self.current = None;
                Some(ToKeeper::SnapshotFailed { message })
            }
        }
    }

    /// Pauses the machine and gives its state to the worker.
    fn hand_over(&mut self, life: &mut Life) -> Option<ToKeeper> {
        let current = self.current.as_mut()?;
        let saved = life
            .begin_saving()
            .map_err(|error| error.to_string())
            .and_then(|was_running| {
                current.paused = was_running.then(Instant::now);
                let state = life.machine().save().map_err(|error| error.to_string())?;
                Ok(Resting {
                    state,
                    attached: attached(life),
                })
            });
        match saved {
            Ok(machine) => {
                self.worker.write(machine);
                None
            }
            Err(message) => {
                self.worker.abandon();
                self.let_go(life);
                self.current = None;
                Some(ToKeeper::SnapshotFailed { message })
            }
        }
    }

    /// Holds the machine no longer: if it is held it goes on now, else as soon as its copy is made.
    pub fn release(&mut self, life: &mut Life) {
        let Some(current) = &mut self.current else {
            return;
        };
        current.hold = false;
        if current.done {
            self.let_go(life);
            self.current = None;
        }
    }

    fn let_go_unless_held(&mut self, life: &mut Life) {
        if !self.current.as_ref().is_some_and(|current| current.hold) {
            self.let_go(life);
        }
    }

    /// Lets a machine go on that was paused for the snapshot.
    fn let_go(&mut self, life: &mut Life) {
        let paused = self.current.as_mut().and_then(|current| {
            current.paused_us = current.paused_us();
            current.paused.take()
        });
        life.end_saving(paused.is_some());
    }
}

impl Current {
    /// How long the machine rested, or has been resting, in microseconds.
    fn paused_us(&self) -> u64 {
        self.paused.map_or(self.paused_us, |paused| {
            u64::try_from(paused.elapsed().as_micros()).unwrap_or(u64::MAX)
        })
    }
}

/// All values that were ever delivered.
fn delivered(life: &Life) -> Vec<Delivered> {
    let mut device = life
        .machine()
        .secrets
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    device.with_device(|device, _| {
        device
            .delivered()
            .map(|(name, version, value)| Delivered {
                name: name.clone(),
                version,
                value: Arc::clone(value),
            })
            .collect()
    })
}

/// All pages that hold values.
fn attached(life: &Life) -> Vec<Attached> {
    let mut device = life
        .machine()
        .secrets
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    device.with_device(|device, _| {
        device
            .attached()
            .map(|range| Attached {
                start: range.start,
                len: range.len,
            })
            .collect()
    })
}
