//! Commands about VMs that there are: listed, watched, paused, ended, removed.

pub mod exec;
pub mod logs;
pub mod ps;

use std::io::{self, Write};

use crate::api_client;
use crate::args::{NameArgs, RmArgs, StopArgs};
use crate::keeper::request::{Request, Stop};
use crate::keeper_client::KeeperClient;
use crate::state_dir::{Places, StateError};
use crate::vm::error::RunError;
use crate::vm::existing::Existing;
use crate::vm_name::VmName;

/// The running VM of this name.
///
/// # Errors
/// [`RunError::State`].
pub fn running(name: &VmName) -> Result<Existing, RunError> {
    Ok(Existing::running(&Places::of_process().root()?, name)?)
}

/// `cachot pause`.
///
/// # Errors
/// See [`RunError`].
pub fn pause(args: &NameArgs) -> Result<(), RunError> {
    api_client::request(&running(&args.name)?, "PUT", "/v1/pause")?;
    Ok(())
}

/// `cachot resume`.
///
/// # Errors
/// See [`RunError`].
pub fn resume(args: &NameArgs) -> Result<(), RunError> {
    api_client::request(&running(&args.name)?, "PUT", "/v1/resume")?;
    Ok(())
}

/// `cachot stop`: all VMs are asked before the first one is waited for. False if one could not be ended.
///
/// # Errors
/// See [`RunError`].
pub fn stop(args: &StopArgs, output: &mut impl Write) -> Result<bool, RunError> {
    end_all(&args.names, output, |vm| {
        ask_to_end(&vm, args.time).map(Some)
    })
}

/// `cachot rm`. False if one could not be removed.
///
/// # Errors
/// See [`RunError`].
pub fn rm(args: &RmArgs, output: &mut impl Write) -> Result<bool, RunError> {
    let root = Places::of_process().root()?;
    if args.force {
        let running: Vec<_> = args
            .names
            .iter()
            .filter(|name| Existing::running(&root, name).is_ok())
            .cloned()
            .collect();
        end_all(&running, &mut io::sink(), |vm| ask_to_end(&vm, 0).map(Some))?;
    }
    let mut all = true;
    for name in &args.names {
        let removed = match Existing::find(&root, name) {
            // A forced end may have taken all of it away.
            Err(StateError::NoVm(_)) if args.force => Ok(()),
            found => found.and_then(Existing::remove),
        };
        all &= report(name, removed.map_err(RunError::from), output)?;
    }
    Ok(all)
}

/// Whether a VM rests; one that cannot be asked does not.
fn is_paused(vm: &Existing) -> bool {
    api_client::request(vm, "GET", "/v1/state").is_ok_and(|state| state["state"] == "paused")
}

/// Asks a VM to end.
fn ask_to_end(vm: &Existing, seconds: u32) -> Result<KeeperClient, RunError> {
    let how = match seconds {
        0 => Stop::Kill,
        // A paused workload hears nothing.
        _ if is_paused(vm) => Stop::Kill,
        seconds => Stop::Terminate(seconds),
    };
    let keeper = KeeperClient::connect(vm)?;
    keeper.ask(&Request::Stop(how), &[])?;
    Ok(keeper)
}

fn end_all(
    names: &[VmName],
    output: &mut impl Write,
    ask: impl Fn(Existing) -> Result<Option<KeeperClient>, RunError>,
) -> Result<bool, RunError> {
    let asked: Vec<_> = names
        .iter()
        .map(|name| (name, running(name).and_then(&ask)))
        .collect();
    let mut all = true;
    for (name, keeper) in asked {
        let ended = keeper.and_then(|keeper| match keeper.map(|keeper| keeper.answer()) {
            // That the connection ends is the answer.
            None | Some(Err(RunError::Gone(_))) => Ok(()),
            Some(Err(error)) => Err(error),
            Some(Ok(other)) => Err(RunError::Refused {
                code: crate::run::OWN_FAILURE,
                message: format!("the keeper answered something else: {other:?}"),
            }),
        });
        all &= report(name, ended, output)?;
    }
    Ok(all)
}

/// Prints the name, or, on standard error, why not.
fn report(
    name: &VmName,
    result: Result<(), RunError>,
    output: &mut impl Write,
) -> Result<bool, RunError> {
    match result {
        Ok(()) => {
            let print = |error| crate::vm::error::system("print")(error);
            writeln!(output, "{name}").map_err(print)?;
            Ok(true)
        }
        Err(error) => {
            eprintln!("cachot: {}", crate::vm::error::one_line(&error));
            Ok(false)
        }
    }
}
