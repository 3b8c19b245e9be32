//! On this machine's `/dev/kvm`: from exec to the first byte that a bare-metal guest sends to its console.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::firecracker::{self, Machine};
use crate::memory;
use crate::process::{Stream, Timed};
use crate::stats::Samples;

/// Sizes of the guest, in MiB.
const MEMORY_MIB: [u32; 3] = [128, 512, 1024];

/// Prints exec-to-first-byte for each size, and the monitor's own memory.
pub fn bench(
    programs: &Path,
    guest: &Path,
    peer: Option<&Path>,
    runs: usize,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let tiny = guest.join("tiny");
    let cachot = |memory_mib: u32| {
        let mut command = Command::new(programs.join("cachot"));
        command.env("CACHOT_STATE", folder.path().join("state"));
        command.env("CACHOT_GUEST", guest);
        command.args([
            "run",
            "--console",
            "--initrd",
            "none",
            "--cmdline",
            "tiny=spin",
            "--kernel",
        ]);
        command.arg(&tiny);
        command.args(["--memory", &format!("{memory_mib}M"), "--", "spin"]);
        command
    };
    println!(
        "exec to the first byte of a bare-metal guest on this machine's KVM, in ms; peers in turn:"
    );
    for memory_mib in MEMORY_MIB {
        let machine = Machine {
            kernel: &tiny,
            initrd: None,
            memory_mib,
            cmdline: "tiny=spin",
            vsock: None,
        };
        let (mut own, mut other, mut kib) =
            (Samples::default(), Samples::default(), Samples::default());
        // The first turn warms caches and is not counted.
        for turn in 0..=runs {
            let (time, memory) = first_byte_and_memory(cachot(memory_mib), folder.path())?;
            let peer = peer
                .map(|peer| {
                    let command = firecracker::command(peer, &machine, folder.path())?;
                    first_byte(command, Stream::Stdout)
                })
                .transpose()?;
            if turn > 0 {
                own.push(time);
                #[expect(clippy::cast_precision_loss, reason = "kibibytes of a process")]
                kib.0.push(memory as f64);
                peer.into_iter().for_each(|time| other.push(time));
            }
        }
        println!("  {memory_mib} MiB: cachot {own}");
        if peer.is_some() {
            println!("  {memory_mib} MiB: firecracker {other}");
            println!("  {memory_mib} MiB: ratio {}", own.ratios(&other));
        }
        println!("  {memory_mib} MiB: monitor's private memory beyond guest RAM, in KiB: {kib}");
    }
    Ok(())
}

/// Starts one VM, and ends it after its first byte.
fn first_byte(command: Command, stream: Stream) -> anyhow::Result<Duration> {
    Timed::start(command, stream)?.first_byte()
}

/// The same for cachot, with the memory of its monitor while the guest spins.
fn first_byte_and_memory(command: Command, folder: &Path) -> anyhow::Result<(Duration, u64)> {
    let mut vm = Timed::start(command, Stream::Stderr)?;
    let time = vm.first_byte()?;
    let kib = memory::own_kib(memory::monitor_of(vm.child.id())?)?;
    drop(vm);
    // The monitor ends by itself when its keeper is gone; the next turn must not run beside it.
    memory::wait_until_empty(&folder.join("state/vms"))?;
    Ok((time, kib))
}
