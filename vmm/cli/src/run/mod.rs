//! `cachot run`: from a command line to a booted VM, with nothing started half-way.
//!
//! What costs nothing is tried first, and nothing exists outside this process before all references
//! are resolved and all files are open. From then on every way out kills the monitor and removes the
//! state folder.

mod error;
mod parts;
mod vm;

use std::cell::Cell;
use std::ffi::OsString;

use cachot_control::{Root, Start, WindowSize};

use crate::args::RunArgs;
use crate::monitor_process::{MONITOR_VARIABLE, monitor_program};
use crate::session;
use crate::signals::Signals;
use crate::state_dir::{Places, StateDir};
use crate::terminal::{self, RawMode};
use error::system;
pub use error::{OWN_FAILURE, RunError};
use parts::{Parts, Secret, program};
use vm::Vm;

/// Number of the one session of this command.
const SESSION: u32 = 1;

/// Boots a VM, runs the command in it, and returns the exit code to end with.
///
/// # Errors
/// See [`RunError`].
pub fn run(args: &RunArgs) -> Result<u8, RunError> {
    let window = window(args)?;
    let parts = Parts::gather(args)?;
    let root = Places::of_process().root()?;
    let program = monitor_program(std::env::var_os(MONITOR_VARIABLE), program().as_deref());

    // From here on a signal is a reason to clean up, not to vanish.
    let signals = Signals::block().map_err(system("take over signals"))?;
    let state = StateDir::create(&root)?;
    let vm = Vm::start(&program, state, args, &parts)?;
    // The VM boots meanwhile. What is left behind by others is no reason to stop it.
    StateDir::sweep(&root).ok();

    let raw = Cell::new(None);
    // Until the command runs, Ctrl-C is for the keeper.
    let started = || {
        if args.tty && args.interactive {
            raw.set(RawMode::enter()?);
        }
        Ok(())
    };
    let ending = session::run(
        &vm.ends(args, &signals, &started),
        start(args, &parts.secrets, window),
        args.timeout,
    )
    .map_err(system("wait for the guest"))?;
    drop(raw);
    vm.finish(ending)
}

/// The size of the terminal that `-t` asks for.
fn window(args: &RunArgs) -> Result<Option<WindowSize>, RunError> {
    match args.tty {
        false => Ok(None),
        true => terminal::size().map(Some).ok_or(RunError::NoTerminal),
    }
}

fn start(args: &RunArgs, secrets: &[Secret], terminal: Option<WindowSize>) -> Start {
    let mut env = Vec::new();
    if terminal.is_some()
        && let Some(term) =
            std::env::var_os("TERM").and_then(|term| OsString::into_string(term).ok())
    {
        env.push(("TERM".to_owned(), term));
    }
    // Of a variable that is given twice the last one counts.
    env.extend(args.env.iter().cloned());
    Start {
        session: SESSION,
        root: args.rootfs.as_ref().map(|rootfs| match rootfs.read_only {
            true => Root::ReadOnly,
            false => Root::Overlay,
        }),
        argv: args.command.clone(),
        env,
        secret_env: secrets
            .iter()
            .filter(|secret| secret.exported)
            .map(|secret| secret.info.name.clone())
            .collect(),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        terminal,
        stdin: args.interactive,
    }
}
