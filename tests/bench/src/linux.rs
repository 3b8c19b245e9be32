//! From exec to user space of Linux, each VM in a fresh lab: a host that has just booted is the same
//! for everyone.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::firecracker::{self, Machine};
use crate::memory;
use crate::process::{Stream, Timed};
use crate::stats::Samples;

/// Guest RAM of every VM here, in MiB.
const MEMORY_MIB: u32 = 256;

/// The peer's kernel command line: as quiet as ours.
const PEER_CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=k pci=off 8250.nr_uarts=1";

/// What one lab found out.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// From exec to user space, in milliseconds.
    user_space_ms: f64,
    /// The monitor's private memory beyond guest RAM, in KiB.
    own_kib: u64,
    /// vCPU exits to the monitor, as its control socket counts them; absent for a peer.
    exits: Option<serde_json::Value>,
}

/// Runs labs in turn and prints medians and ratios.
pub fn bench(lab: &Path, peer: Option<&Path>, runs: usize) -> anyhow::Result<()> {
    println!("exec to user space of Linux, {MEMORY_MIB} MiB, a fresh lab each; peers in turn:");
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for turn in 1..=runs {
        eprintln!("lab {turn} of {runs}");
        own.push(one(lab, None)?);
        if let Some(peer) = peer {
            other.push(one(lab, Some(peer))?);
        }
    }
    let times = |reports: &[Report]| Samples(reports.iter().map(|r| r.user_space_ms).collect());
    println!(
        "  cachot, to the first byte of the workload, in ms: {}",
        times(&own)
    );
    if peer.is_some() {
        println!(
            "  firecracker, to the greeting of PID 1, in ms: {}",
            times(&other)
        );
        println!("  ratio: {}", times(&own).ratios(&times(&other)));
        println!("  firecracker's own memory, in KiB: {}", kib(&other));
    }
    println!(
        "  monitor's private memory beyond guest RAM, in KiB: {}",
        kib(&own)
    );
    if let Some(exits) = own.iter().rev().find_map(|report| report.exits.as_ref()) {
        println!("  exits of the last VM until then: {exits}");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "kibibytes of a process")]
fn kib(reports: &[Report]) -> Samples {
    Samples(reports.iter().map(|report| report.own_kib as f64).collect())
}

fn one(lab: &Path, peer: Option<&Path>) -> anyhow::Result<Report> {
    let script = tempfile::NamedTempFile::new()?;
    let option = peer
        .and_then(Path::file_name)
        .map(|name| format!("--peer {}", name.display()));
    writeln!(
        &script,
        "exec cachot-bench inside {}",
        option.unwrap_or_default()
    )?;
    let mut command = Command::new(lab);
    // Firecracker does not start without XSAVE; both get the same host.
    command.arg("run").arg(script.path()).arg("--xsave");
    command.arg("--program").arg(std::env::current_exe()?);
    if let Some(peer) = peer {
        command.arg("--program").arg(peer);
    }
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", lab.display()))?;
    ensure!(
        output.status.success(),
        "the lab failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("the lab printed no report")
}

/// Boots one VM on this host and prints what it took.
pub fn inside(peer: Option<&Path>) -> anyhow::Result<()> {
    let report = match peer {
        Some(program) => firecracker_here(program)?,
        None => cachot_here()?,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn guest() -> anyhow::Result<PathBuf> {
    Ok(std::env::var_os("CACHOT_GUEST")
        .context("CACHOT_GUEST is not set")?
        .into())
}

fn cachot_here() -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("cachot");
    command.env("CACHOT_STATE", folder.path());
    command.args(["run", "--memory", &format!("{MEMORY_MIB}M"), "--"]);
    command.args(["sh", "-c", "echo x; exec sleep 1000"]);
    let mut vm = Timed::start(command, Stream::Stdout)?;
    let time = vm.first_byte()?;
    let state = fs::read_dir(folder.path().join("vms"))?
        .next()
        .context("no VM is there")??;
    Ok(Report {
        user_space_ms: time.as_secs_f64() * 1e3,
        own_kib: memory::own_kib(memory::monitor_of(vm.child.id())?)?,
        exits: Some(metrics(&state.path().join("api.sock"))?["exits"].take()),
    })
}

fn metrics(socket: &Path) -> anyhow::Result<serde_json::Value> {
    let mut api = UnixStream::connect(socket)?;
    api.write_all(b"GET /v1/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    api.read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no body")?;
    Ok(serde_json::from_str(body)?)
}

fn firecracker_here(program: &Path) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    let guest = guest()?;
    let (kernel, initrd) = (guest.join("vmlinux"), guest.join("initrd"));
    let vsock = folder.path().join("vsock");
    let machine = Machine {
        kernel: &kernel,
        initrd: Some(&initrd),
        memory_mib: MEMORY_MIB,
        cmdline: PEER_CMDLINE,
        vsock: Some(vsock.clone()),
    };
    // PID 1 greets its keeper here.
    let listener = UnixListener::bind(vsock.with_file_name("vsock_1024"))?;
    let command = firecracker::command(program, &machine, folder.path())?;
    let vm = Timed::start(command, Stream::Stdout)?;
    let mut ready = [PollFd::new(&listener, PollFlags::IN)];
    let patience = Timespec::try_from(Duration::from_secs(60))?;
    ensure!(
        poll(&mut ready, Some(&patience))? == 1,
        "the peer's guest did not reach user space within 60 s"
    );
    let (mut control, _) = listener.accept()?;
    control.read_exact(&mut [0])?;
    let time = vm.elapsed();
    Ok(Report {
        user_space_ms: time.as_secs_f64() * 1e3,
        own_kib: memory::own_kib(vm.child.id())?,
        exits: None,
    })
}
