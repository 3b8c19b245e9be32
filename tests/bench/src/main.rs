//! Times, exits and memory of cachot, beside Firecracker's where it is given. Every figure is measured
//! in the run that prints it; peers take turns, and ratios are taken of turns.

mod audit;
mod firecracker;
mod linux;
mod memory;
mod native;
mod process;
mod scan;
mod secrets;
mod snapshot;
mod stats;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// On this machine's /dev/kvm: from exec to the first byte of a bare-metal guest, and the monitor's memory
    Native {
        /// Folder of `cachot` and `cachot-vmm`
        #[arg(long)]
        programs: PathBuf,
        /// Folder of the guest artefacts
        #[arg(long)]
        guest: PathBuf,
        /// Firecracker's program
        #[arg(long)]
        peer: Option<PathBuf>,
        #[arg(long, default_value_t = 21)]
        runs: usize,
    },
    /// From exec to user space of Linux, each in a fresh lab
    Linux {
        /// The program `lab`
        #[arg(long)]
        lab: PathBuf,
        /// Firecracker's program
        #[arg(long)]
        peer: Option<PathBuf>,
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// The search for residue beside memcpy, on one core
    Scan {
        /// Bytes to search, in MiB: much more than the caches
        #[arg(long, default_value_t = 256)]
        mib: usize,
        #[arg(long, default_value_t = 21)]
        runs: usize,
    },
    /// On this machine's /dev/kvm: how long snapshots pause and take, and how fast machines come out of one
    Snapshot {
        /// Folder of `cachot-vmm`
        #[arg(long)]
        programs: PathBuf,
        /// Folder of the guest artefacts
        #[arg(long)]
        guest: PathBuf,
        /// Where snapshots are written: a folder of the file system to measure
        #[arg(long, default_value = ".")]
        folder: PathBuf,
        #[arg(long, default_value_t = 15)]
        runs: usize,
        /// Children of one image that are there at the same time
        #[arg(long, default_value_t = 1000)]
        children: usize,
    },
    /// The host's side of secrets: resolves a second, the rotation of a store's key, appends to audit logs
    Secrets {
        /// Where stores and logs are made: a folder of the file system to measure
        #[arg(long, default_value = ".")]
        folder: PathBuf,
        /// Secrets of the larger store
        #[arg(long, default_value_t = 10_000)]
        secrets: usize,
        #[arg(long, default_value_t = 15)]
        runs: usize,
    },
    /// What `linux` runs in a lab: prints one JSON object
    #[command(hide = true)]
    Inside {
        /// Firecracker's program, to measure instead of cachot
        #[arg(long)]
        peer: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Native {
            programs,
            guest,
            peer,
            runs,
        } => native::bench(&programs, &guest, peer.as_deref(), runs),
        Command::Linux { lab, peer, runs } => linux::bench(&lab, peer.as_deref(), runs),
        Command::Scan { mib, runs } => scan::bench(mib, runs),
        Command::Snapshot {
            programs,
            guest,
            folder,
            runs,
            children,
        } => {
            let host = snapshot::Host {
                monitor: programs.join("cachot-vmm"),
                tiny: guest.join("tiny"),
            };
            snapshot::create::bench(&host, &folder, runs)?;
            snapshot::restore::bench(&host, runs)?;
            snapshot::fork::bench(&host, children)
        }
        Command::Secrets {
            folder,
            secrets,
            runs,
        } => {
            secrets::bench(&folder, secrets, runs)?;
            audit::bench(&folder, runs)
        }
        Command::Inside { peer } => linux::inside(peer.as_deref()),
    }
}
