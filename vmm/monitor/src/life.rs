//! The machine's state as the host sees it, and what may be done in which state.
//!
//! ```text
//!             pause              power button
//!  paused <---------- running ------------------> stopping
//!     |   ---------->                                 |
//!     |     resume                                    |
//!     +--- kill ---+ kill, or the guest's own end +---+--- kill, or the grace is over
//!                  +--------------> end <---------+
//! ```
//!
//! From running and paused a machine is saved, and goes back to what it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::machine::Machine;
use crate::metrics::{Milestone, Timeline};
use crate::protocol::StopReason;
use crate::vcpu::{CrewError, End};

/// How long a guest has to power off after its power button was pressed.
pub const GRACE: Duration = Duration::from_secs(10);

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// vCPUs run.
    Running,
    /// Neither vCPUs nor devices work.
    Paused,
    /// The power button was pressed; if the guest does not power off in time it is ended.
    Stopping,
    /// Neither vCPUs nor devices work, because their state is being copied for a snapshot.
    Saving,
}

/// Why a change of state was refused.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// Not possible now.
    #[error("cannot {action} a machine that is {}", match .state {
        State::Running => "running",
        State::Paused => "paused",
        State::Stopping => "stopping",
        State::Saving => "being saved",
    })]
    State {
        /// What was asked for.
        action: &'static str,
        /// What the machine does.
        state: State,
    },
    /// A vCPU is stuck.
    #[error(transparent)]
    Crew(#[from] CrewError),
}

/// A machine and its state.
pub struct Life {
    name: String,
    machine: Machine,
    timeline: Arc<Timeline>,
    state: State,
    /// When a stopping machine is ended.
    deadline: Option<Instant>,
    end: Option<End>,
}

impl Life {
    /// Lets the vCPUs of a machine that was just built run for the first time.
    #[must_use]
    pub fn begin(name: String, machine: Machine, timeline: Arc<Timeline>) -> Self {
        // Before it: the guest's first output may come at once.
        timeline.reach(Milestone::Running);
        machine.crew.resume();
        Self {
            name,
            machine,
            timeline,
            state: State::Running,
            deadline: None,
            end: None,
        }
    }

    /// Name of the VM.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Milestones of its start.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// What it does.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// When [`Self::check_deadline`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The machine's end, if it has come.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Lets devices, then vCPUs, work.
    ///
    /// # Errors
    /// When the machine is not paused.
    pub fn resume(&mut self) -> Result<(), LifeError> {
        self.expect("resume", State::Paused)?;
        self.work();
        self.state = State::Running;
        Ok(())
    }

    /// Stops vCPUs, then devices.
    ///
    /// # Errors
    /// When the machine is not running, or a vCPU does not stop.
    pub fn pause(&mut self) -> Result<(), LifeError> {
        self.expect("pause", State::Running)?;
        self.rest()?;
        self.state = State::Paused;
        Ok(())
    }

    /// Brings vCPUs, then devices, to rest.
    fn rest(&self) -> Result<(), CrewError> {
        if let Err(error) = self.machine.crew.pause() {
            self.machine.crew.resume();
            return Err(error);
        }
        self.machine.pause_devices();
        Ok(())
    }

    /// Lets devices, then vCPUs, work.
    fn work(&self) {
        self.machine.resume_devices();
        self.machine.crew.resume();
    }

    /// Keeps a machine from changing until [`Self::end_saving`]; says whether it was running.
    ///
    /// # Errors
    /// When the machine is neither running nor paused, or a vCPU does not stop.
    pub fn begin_saving(&mut self) -> Result<bool, LifeError> {
        let was_running = match self.state {
            State::Running => {
                self.rest()?;
                true
            }
            State::Paused => false,
            state => {
                return Err(LifeError::State {
                    action: "save",
                    state,
                });
            }
        };
        self.state = State::Saving;
        Ok(was_running)
    }

    /// Gives a machine that was being saved back its life; any other goes on as it does.
    pub fn end_saving(&mut self, was_running: bool) {
        if self.state != State::Saving {
            return;
        }
        self.state = if was_running {
            self.work();
            State::Running
        } else {
            State::Paused
        };
    }

    /// Asks the guest to power off, and ends it if it has not done so within [`GRACE`].
    ///
    /// # Errors
    /// When the machine is not running: a paused guest cannot hear it.
    pub fn press_power_button(&mut self) -> Result<(), LifeError> {
        self.expect("press the power button of", State::Running)?;
        // Fails only with a full counter, and then the line is raised already.
        drop(self.machine.power_button.write(1));
        self.state = State::Stopping;
        self.deadline = Some(Instant::now() + GRACE);
        Ok(())
    }

    /// Ends the machine.
    pub fn kill(&mut self) {
        self.end.get_or_insert(End::Stopped(StopReason::Killed));
    }

    /// Takes note of the end that the guest has made.
    pub fn check_guest(&mut self) {
        if let Some(end) = self.machine.crew.ender().end() {
            self.end.get_or_insert(end);
        }
    }

    /// Ends a machine that did not stop in time.
    pub fn check_deadline(&mut self) {
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            self.kill();
        }
    }

    fn expect(&self, action: &'static str, state: State) -> Result<(), LifeError> {
        if self.state == state {
            Ok(())
        } else {
            Err(LifeError::State {
                action,
                state: self.state,
            })
        }
    }
}
