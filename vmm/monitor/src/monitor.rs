//! The monitor's life from its first message to its last.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cachot_secrets::{HardenError, harden_process};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use crate::api::Server;
use crate::keeper::{self, Keeper, SetupError};
use crate::life::Life;
use crate::machine::{self, MachineError};
use crate::metrics::{Milestone, Timeline};
use crate::protocol::{ChannelError, ToKeeper};
use crate::seccomp::{Filter, SeccompError, ThreadKind};
use crate::signals::Signals;
use crate::snapshot::{Snapshots, Worker};
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
    /// The control socket cannot be used.
    #[error("cannot serve the control socket")]
    Api(#[source] io::Error),
    /// There is no thread for snapshots.
    #[error("cannot start a thread for snapshots: raise the limit of processes (`ulimit -u`)")]
    Snapshots(#[source] io::Error),
    /// No filter, no guest.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The keeper cannot be told.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The guest or KVM broke while running.
    #[error("{0}")]
    Broken(String),
}

/// Runs one machine for the keeper on the inherited socket, and ends the process: with code 0 after the
/// guest's end, 1 after a failure, which is told to the keeper, or, where there is none, to standard error.
pub fn run() -> ! {
    let timeline = Arc::new(Timeline::begin());
    // One heap for all threads: vCPU threads allocate next to nothing, and a heap of their own would cost each
    // of them mappings and memory at its first allocation.
    // SAFETY: there is one thread, which changes a parameter of its allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let served = harden_process()
        .map_err(MonitorError::from)
        .and_then(|()| Ok(Arc::new(Keeper::inherited()?)))
        .map_err(|error| eprintln!("cachot-vmm: {}", one_line(&error)))
        .and_then(|keeper| serve(&keeper, &timeline).map_err(|error| report(&keeper, &error)));
    // SAFETY: ends the process as it is. There is nothing to flush, and the kernel takes the machine down
    // faster than destructors could.
    unsafe { libc::_exit(i32::from(served.is_err())) }
}

/// Tells the keeper of a failure.
fn report(keeper: &Keeper, error: &MonitorError) {
    let message = one_line(error);
    if keeper
        .tell(&ToKeeper::Failed {
            message: message.clone(),
        })
        .is_err()
    {
        eprintln!("cachot-vmm: {message}");
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
    // All that can be done before the keeper has said what machine it wants: it may have started this process long
    // before. Threads inherit filters, so each is started before the main thread has its own.
    let filter = Filter::new(ThreadKind::Main)?;
    let vcpu_filter = Filter::new(ThreadKind::Vcpu)?;
    let worker =
        Worker::start(Filter::new(ThreadKind::Snapshot)?).map_err(MonitorError::Snapshots)?;
    let mut setup = keeper.receive_setup()?;
    timeline.reach(Milestone::Configured);
    let (name, outlive_keeper) = (setup.config.name.clone(), setup.config.outlive_keeper);
    let allow_swap = setup.config.allow_swap;
    let api = setup
        .api
        .take()
        .map(Server::new)
        .transpose()
        .map_err(MonitorError::Api)?;
    let (machine, devices) = machine::build(setup, timeline, &vcpu_filter)?;
    timeline.reach(Milestone::Built);

    let mut events =
        EventManager::<Box<dyn MutEventSubscriber>>::new().map_err(MonitorError::Events)?;
    for device in devices {
        events.add_subscriber(device);
    }
    let snapshots =
        Snapshots::new(worker, &machine, !allow_swap).map_err(MonitorError::Snapshots)?;
    filter.install()?;
    for (secret, copies) in &machine.left_zero {
        let secret = secret.to_string();
        keeper.tell(&ToKeeper::LeftZero {
            secret,
            copies: *copies,
        })?;
    }
    keeper.tell(&ToKeeper::Running)?;
    let life = Life::begin(name, machine, Arc::clone(timeline));
    let supervisor = Supervisor::new(
        life,
        Arc::clone(keeper),
        signals,
        api,
        snapshots,
        outlive_keeper,
    );
    let supervisor = Arc::new(Mutex::new(supervisor));
    let id = events.add_subscriber(Box::new(Arc::clone(&supervisor)));
    let lock = || supervisor.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome = loop {
        let mut ops = events.event_ops(id).map_err(MonitorError::Events)?;
        if let Some(outcome) = lock().check(&mut ops) {
            break outcome;
        }
        let timeout = lock().timeout();
        match events.run_with_timeout(timeout) {
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            other => drop(other.map_err(MonitorError::Events)?),
        }
    };
    // Not dropped: the process ends.
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
