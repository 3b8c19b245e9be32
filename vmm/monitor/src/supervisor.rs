//! The machine's life after it was built: keeper, signals, the control socket and the machine's own end.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::keeper::Keeper;
use crate::machine::Machine;
use crate::protocol::StopReason;
use crate::signals::Signals;
use crate::vcpu::{CrewError, End};

/// How long a guest has to power off after its power button was pressed by a signal.
const GRACE: Duration = Duration::from_secs(10);

/// Event data of what is watched.
const KEEPER: u32 = 0;
const SIGNALS: u32 = 1;
const END: u32 = 2;

/// How the monitor ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The machine has ended.
    End(End),
    /// The keeper is gone, and the guest may not go on without it.
    KeeperGone,
}

/// What the vCPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Paused,
    /// The power button was pressed; at this time the guest is ended.
    Stopping(Instant),
}

/// Watches everything that decides on the machine's life.
pub struct Supervisor {
    machine: Machine,
    keeper: Arc<Keeper>,
    signals: Signals,
    outlive_keeper: bool,
    phase: Phase,
    outcome: Option<Outcome>,
}

impl Supervisor {
    /// Supervises a machine whose vCPUs are about to run.
    #[must_use]
    pub fn new(
        machine: Machine,
        keeper: Arc<Keeper>,
        signals: Signals,
        outlive_keeper: bool,
    ) -> Self {
        Self {
            machine,
            keeper,
            signals,
            outlive_keeper,
            phase: Phase::Paused,
            outcome: None,
        }
    }

    /// How the monitor ends, as soon as that is known.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        if let Phase::Stopping(deadline) = self.phase
            && Instant::now() >= deadline
        {
            self.kill();
        }
        self.outcome.take()
    }

    /// Milliseconds until something has to be done even if nothing happens; -1 is never.
    #[must_use]
    pub fn timeout(&self) -> i32 {
        match self.phase {
            Phase::Stopping(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so as not to wake before the deadline.
                i32::try_from(left.as_millis()).map_or(i32::MAX, |left| left.saturating_add(1))
            }
            _ => -1,
        }
    }

    /// Lets vCPUs and devices work.
    pub fn resume(&mut self) {
        for device in &self.machine.devices {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .resume();
        }
        self.machine.crew.resume();
        self.phase = Phase::Running;
    }

    /// Stops vCPUs, then devices.
    ///
    /// # Errors
    /// When a vCPU does not stop.
    pub fn pause(&mut self) -> Result<(), CrewError> {
        self.machine.crew.pause()?;
        for device in &self.machine.devices {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pause();
        }
        self.phase = Phase::Paused;
        Ok(())
    }

    /// Asks the guest to power off; a paused guest cannot hear that.
    fn press_power_button(&mut self) {
        // Fails only with a full counter, and then the line is raised already.
        drop(self.machine.power_button.write(1));
        self.phase = Phase::Stopping(Instant::now() + GRACE);
    }

    fn kill(&mut self) {
        self.outcome
            .get_or_insert(Outcome::End(End::Stopped(StopReason::Killed)));
    }

    fn on_signals(&mut self) {
        while self.signals.take() {
            match self.phase {
                Phase::Running => self.press_power_button(),
                Phase::Paused | Phase::Stopping(_) => self.kill(),
            }
        }
    }
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        let ender = self.machine.crew.ender();
        for events in [
            Events::with_data(&*self.keeper, KEEPER, EventSet::IN),
            Events::with_data(&self.signals, SIGNALS, EventSet::IN),
            Events::with_data(ender.event(), END, EventSet::IN),
        ] {
            ops.add(events)
                .expect("three new descriptors can be added to a new epoll instance");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            KEEPER if !self.keeper.is_there() => {
                if !self.outlive_keeper {
                    self.outcome.get_or_insert(Outcome::KeeperGone);
                }
                drop(ops.remove(events));
            }
            SIGNALS => self.on_signals(),
            END => {
                if let Some(end) = self.machine.crew.ender().end() {
                    self.outcome.get_or_insert(Outcome::End(end));
                }
                drop(ops.remove(events));
            }
            _ => {}
        }
    }
}
