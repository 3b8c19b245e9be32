//! The monitor's life from its first message to its last.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cachot_secrets::{HardenError, harden_process};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use crate::keeper::{self, Keeper, SetupError};
use crate::machine::{self, MachineError};
use crate::metrics::{Milestone, Timeline};
use crate::protocol::{ChannelError, ToKeeper};
use crate::signals::Signals;
use crate::supervisor::{Outcome, Supervisor};
use crate::vcpu::End;

/// Why a monitor fails.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The process cannot be protected.
    #[error(transparent)]
    Harden(#[from] HardenError),
    /// The keeper asked for something that is not possible.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The event loop failed.
    #[error("the event loop failed: {0}")]
    Events(event_manager::Error),
    /// Signals cannot be watched.
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    /// The keeper cannot be told.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The guest or KVM broke while running.
    #[error("{0}")]
    Broken(String),
}

/// Runs one machine for the keeper on the inherited socket; returns the exit code of the process.
///
/// Failures are told to the keeper, or, where there is none, to standard error.
#[must_use]
pub fn run() -> u8 {
    let timeline = Arc::new(Timeline::begin());
    let keeper = match harden_process()
        .map_err(MonitorError::from)
        .and_then(|()| Ok(Keeper::inherited()?))
    {
        Ok(keeper) => keeper,
        Err(error) => {
            eprintln!("cachot-vmm: {}", one_line(&error));
            return 1;
        }
    };
    let keeper = Arc::new(keeper);
    match serve(&keeper, &timeline) {
        Ok(()) => 0,
        Err(error) => {
            let failed = ToKeeper::Failed {
                message: one_line(&error),
            };
            match keeper.tell(&failed) {
                Ok(()) => {}
                Err(_) => eprintln!("cachot-vmm: {}", one_line(&error)),
            }
            1
        }
    }
}

/// An error with its causes.
fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

fn serve(keeper: &Arc<Keeper>, timeline: &Arc<Timeline>) -> Result<(), MonitorError> {
    let signals = Signals::watch().map_err(MonitorError::Signals)?;
    let setup = keeper.receive_setup()?;
    timeline.reach(Milestone::Configured);
    let outlive_keeper = setup.config.outlive_keeper;
    let (machine, subscribers) = machine::build(setup, timeline)?;
    timeline.reach(Milestone::Built);

    let mut events =
        EventManager::<Box<dyn MutEventSubscriber>>::new().map_err(MonitorError::Events)?;
    for subscriber in subscribers {
        events.add_subscriber(subscriber);
    }
    let supervisor = Supervisor::new(machine, Arc::clone(keeper), signals, outlive_keeper);
    let supervisor = Arc::new(Mutex::new(supervisor));
    events.add_subscriber(Box::new(Arc::clone(&supervisor)));

    keeper.tell(&ToKeeper::Running)?;
    let lock = || supervisor.lock().unwrap_or_else(PoisonError::into_inner);
    timeline.reach(Milestone::Running);
    lock().resume();
    let outcome = loop {
        if let Some(outcome) = lock().take_outcome() {
            break outcome;
        }
        let timeout = lock().timeout();
        match events.run_with_timeout(timeout) {
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            other => drop(other.map_err(MonitorError::Events)?),
        }
    };
    // The kernel takes the machine down with the process, faster than this program could.
    std::mem::forget((events, supervisor));
    match outcome {
        Outcome::End(End::Stopped(reason)) => Ok(keeper.tell(&ToKeeper::Stopped { reason })?),
        Outcome::End(End::Failed(message)) => Err(MonitorError::Broken(message)),
        Outcome::KeeperGone => {
            keeper::remove_state_folder();
            Ok(())
        }
    }
}
