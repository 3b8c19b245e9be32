//! What the whole-system tests run inside a guest, and beside a VM on its host: values with every
//! byte, all the ways to read them, and a search through the memory of a process.

mod device;
mod hold;
mod pattern;
mod process;
mod read;
mod scan;
mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a value of LEN bytes, made of SEED, to standard output
    Pattern { seed: u64, len: usize },
    /// Read PATH in every way a program can and compare each with the value of SEED and LEN
    Verify {
        path: PathBuf,
        seed: u64,
        len: usize,
    },
    /// Compare PATH with the value of SEED and LEN through a mapping alone, which copies nothing
    Look {
        path: PathBuf,
        seed: u64,
        len: usize,
    },
    /// Try to change PATH in every way a program can; all of them must fail
    RefusesWrites { path: PathBuf },
    /// Ask /dev/secrets for the secret NAME in every way and compare with the value of SEED and LEN
    VerifyDevice { name: String, seed: u64, len: usize },
    /// Print length and digest of PATH
    Digest { path: PathBuf },
    /// Keep the secret PATH open and print, now and at every event, what the file and the name give
    Watch {
        path: PathBuf,
        /// Print what a mapping of its first page gives instead
        #[arg(long)]
        mapping: bool,
    },
    /// Print the mappings of process PID that hold the content of the file NEEDLE
    ScanProcess { pid: u32, needle: PathBuf },
    /// Keep copies of a secret in all kinds of places, and see later what became of them
    Hold(hold::Options),
    /// Sleep; what `hold` starts with the secret in its environment
    #[command(name = hold::environment::COMMAND, hide = true)]
    HoldEnvironment,
    /// Print where files, and files in folders, have residue of the content of NEEDLE, in any encoding; exit code 1
    /// if there is some, 2 after an error
    Scan {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[arg(long = "needle", required = true)]
        needles: Vec<PathBuf>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Pattern { seed, len } => {
            io::stdout().write_all(&pattern::bytes(seed, len))?;
        }
        Command::Verify { path, seed, len } => {
            let ways = read::verify(&path, &pattern::bytes(seed, len))?;
            println!("same bytes by {}", ways.join(", "));
        }
        Command::Look { path, seed, len } => {
            read::look(&path, seed, len)?;
            println!("same bytes by mmap");
        }
        Command::RefusesWrites { path } => {
            for (way, errno) in read::refuses_writes(&path)? {
                println!("{way}: {errno}");
            }
        }
        Command::VerifyDevice { name, seed, len } => {
            device::verify(&name, &pattern::bytes(seed, len))?;
            println!("/dev/secrets has the same");
        }
        Command::Digest { path } => println!("{}", watch::digest(&std::fs::read(path)?)),
        Command::Watch {
            path,
            mapping: false,
        } => watch::watch(&path)?,
        Command::Watch {
            path,
            mapping: true,
        } => watch::watch_mapping(&path)?,
        Command::ScanProcess { pid, needle } => {
            let needle = std::fs::read(needle)?;
            let scan = process::scan(pid, &needle)?;
            for hit in &scan.hits {
                println!("hit {:#x} in {}", hit.address, hit.mapping);
            }
            println!("scanned {} bytes, {} hits", scan.bytes, scan.hits.len());
        }
        Command::Hold(options) => hold::hold(&options)?,
        Command::HoldEnvironment => hold::environment::sleep()?,
        Command::Scan { paths, needles } => {
            return Ok(match scan::scan(&paths, &needles, &mut io::stdout()) {
                Ok(0) => ExitCode::SUCCESS,
                Ok(_) => ExitCode::FAILURE,
                Err(error) => {
                    eprintln!("Error: {error:?}");
                    ExitCode::from(2)
                }
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}
