//! The cachot command: reads the command line, runs it, reports how it went.

use std::io;
use std::process::ExitCode;

use cachot::args::{Cli, Command, SecretCommand, usage_line};
use cachot::run::{self, OWN_FAILURE};
use cachot::{doctor, secret_check};
use clap::Parser;

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
            let code = error
                .downcast_ref::<run::RunError>()
                .map_or(OWN_FAILURE, run::RunError::exit_code);
            for line in format!("{error:#}").lines() {
                eprintln!("cachot: {}", printable(line));
            }
            ExitCode::from(code)
        }
    }
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
    let success = match &cli.command {
        Command::Run(args) => return Ok(run::run(args)?),
        Command::Secret(SecretCommand::Check(args)) => {
            secret_check::check(args, &mut io::stdout().lock())?
        }
        Command::Doctor(args) => doctor::doctor(args, &mut io::stdout().lock())?,
    };
    Ok(if success { 0 } else { 1 })
}
