//! The cachot command: reads the command line, runs it, reports how it went.

use std::alloc::System;
use std::io;
use std::process::ExitCode;

use cachot::args::{Cli, Command, usage_line};
use cachot::bundle::{self, BundleCommandError};
use cachot::custody::{self, CustodyError};
use cachot::images::{self, ImagesError};
use cachot::run::{self, OWN_FAILURE};
use cachot::{doctor, restore, settings, vms};
use clap::Parser;
use zeroizing_alloc::ZeroAlloc;

/// Parsers and clients of others, which know nothing of locked memory, have values pass through the heap:
/// what is given back to it is wiped.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// Longest line of an error, in characters.
const MAX_LINE: usize = 1000;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // What was asked for, such as --help, is no error.
        Err(error) if !error.use_stderr() => {
            return match error.print() {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(OWN_FAILURE),
            };
        }
        Err(error) => {
            eprintln!("cachot: {}", usage_line(&error));
            return ExitCode::from(OWN_FAILURE);
        }
    };
    match execute(&cli) {
        Ok(code) => ExitCode::from(code),
        // Whoever read our output has had enough: end as SIGPIPE would have ended us.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(128 + 13),
        Err(error) => {
            let code = exit_code(&error);
            for line in format!("{error:#}").lines() {
                eprintln!("cachot: {}", printable(line));
            }
            ExitCode::from(code)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let of_run = error.downcast_ref().map(run::RunError::exit_code);
    let of_images = || error.downcast_ref().map(ImagesError::exit_code);
    let of_custody = || error.downcast_ref().map(CustodyError::exit_code);
    let of_bundle = || error.downcast_ref().map(BundleCommandError::exit_code);
    let known = of_run
        .or_else(of_images)
        .or_else(of_custody)
        .or_else(of_bundle);
    known.unwrap_or(OWN_FAILURE)
}

/// A line that may quote what a guest wrote: without control characters, and not without end.
fn printable(line: &str) -> String {
    let plain = line.chars().map(|character| match character {
        character if character.is_control() => ' ',
        character => character,
    });
    plain.take(MAX_LINE).collect()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Does what the command line says; the exit code to end with.
fn execute(cli: &Cli) -> anyhow::Result<u8> {
    // Before anything else: from here on this process may hold values.
    cachot_secrets::harden_process()?;
    settings::load()?;
    let output = &mut io::stdout().lock();
    let success = match &cli.command {
        Command::Run(args) => return Ok(run::run(args)?),
        Command::Exec(args) => return Ok(vms::exec::exec(args)?),
        Command::Restore(args) => return Ok(restore::restore(args)?),
        Command::Fork(args) => restore::fork::fork(args, output)?,
        Command::Ps(args) => vms::ps::ps(args, output).map(|()| true)?,
        Command::Logs(args) => vms::logs::logs(args, output).map(|()| true)?,
        Command::Stop(args) => vms::stop(args, output)?,
        Command::Rm(args) => vms::rm(args, output)?,
        Command::Pause(args) => vms::pause(args).map(|()| true)?,
        Command::Resume(args) => vms::resume(args).map(|()| true)?,
        Command::Secret(command) => match custody::secret::run(command, output) {
            // Told from a failure of the command itself when its reader is gone.
            Err(CustodyError::Output(error)) => return Err(error.into()),
            other => other?,
        },
        Command::Key(command) => match custody::key::run(command, output) {
            Err(CustodyError::Output(error)) => return Err(error.into()),
            other => other?,
        },
        Command::Bundle(command) => match bundle::run(command, output) {
            Err(BundleCommandError::Output(error)) => return Err(error.into()),
            other => other?,
        },
        Command::Snapshot(command) => match images::run(command, output) {
            Err(ImagesError::Output(error)) => return Err(error.into()),
            other => other?,
        },
        Command::Doctor(args) => doctor::doctor(args, output)?,
    };
    Ok(if success { 0 } else { 1 })
}
