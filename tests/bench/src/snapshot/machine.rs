//! A monitor process and what a keeper says to it.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cachot_secrets::{SealedValue, SecretValue};
use cachot_vmm::protocol::{
    Config, FileRole, OnResidue, SNAPSHOT_FILES, SOCKET_FD, SecretInfo, SnapshotReport,
    SnapshotRequest, ToKeeper, ToMonitor, receive, send,
};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::Host;

/// How long a monitor may take to sleep at its socket, or a guest to print something.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a machine is made of.
pub struct Machine<'a> {
    /// MiB of RAM.
    pub memory_mib: u64,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Values of its secrets.
    pub values: &'a [Vec<u8>],
}

impl Machine<'_> {
    /// The configuration, with these files, and its secrets.
    pub fn config(&self, files: &[(FileRole, OwnedFd)]) -> Config {
        Config {
            name: "bench".into(),
            memory: self.memory_mib << 20,
            cpus: 1,
            cmdline: self.cmdline.into(),
            files: files.iter().map(|(role, _)| *role).collect(),
            outlive_keeper: false,
            allow_swap: true,
            commitment_key: Some([7; 32]),
        }
    }

    /// What goes with [`ToMonitor::Secret`], prepared beforehand as a keeper does.
    pub fn sealed(&self) -> anyhow::Result<Vec<SealedValue>> {
        let values = self.values.iter();
        values
            .map(|value| Ok(SecretValue::copy_of(value)?.seal()?))
            .collect()
    }
}

/// A monitor process; killed and reaped when dropped.
pub struct Monitor {
    child: Child,
    socket: OwnedFd,
}

impl Monitor {
    /// Starts the process.
    pub fn start(host: &Host) -> anyhow::Result<Self> {
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(&host.monitor);
        command.env_clear().stdin(Stdio::null()).process_group(0);
        let raw = theirs.as_raw_fd();
        // SAFETY: dup2 and fcntl may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let socket = rustix::fd::BorrowedFd::borrow_raw(raw);
                if raw == SOCKET_FD {
                    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
                } else {
                    let mut place = std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(SOCKET_FD));
                    rustix::io::dup2(socket, &mut place)?;
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", host.monitor.display()))?;
        Ok(Self { child, socket })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it sleeps, waiting for what it is told.
    pub fn settle(&self) -> anyhow::Result<()> {
        let path = format!("/proc/{}/stat", self.pid());
        let start = Instant::now();
        while start.elapsed() < TIMEOUT {
            let stat = std::fs::read_to_string(&path)?;
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.chars().next());
            if state == Some('S') {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        bail!("the monitor does not come to rest")
    }

    /// Says everything up to the order to boot, and waits until vCPUs are about to run; how long that took.
    pub fn run(
        &self,
        machine: &Machine<'_>,
        files: &[(FileRole, OwnedFd)],
    ) -> anyhow::Result<Duration> {
        let config = machine.config(files);
        let fds: Vec<_> = files.iter().map(|(_, fd)| fd.as_fd()).collect();
        let sealed = machine.sealed()?;
        let start = Instant::now();
        send(self.socket.as_fd(), &ToMonitor::Configure(config), &fds)?;
        for (number, value) in sealed.iter().enumerate() {
            let info = SecretInfo {
                name: format!("S{number}"),
                mode: 0o400,
                uid: 0,
                gid: 0,
            };
            send(
                self.socket.as_fd(),
                &ToMonitor::Secret(info),
                &[value.as_fd()],
            )?;
        }
        send(self.socket.as_fd(), &ToMonitor::Boot, &[])?;
        let message = self.message()?;
        let elapsed = start.elapsed();
        ensure!(message == ToKeeper::Running, "{message:?}");
        Ok(elapsed)
    }

    /// Takes a snapshot into these files.
    pub fn snapshot(&self, files: &[File]) -> anyhow::Result<Box<SnapshotReport>> {
        let request = ToMonitor::Snapshot(SnapshotRequest {
            on_residue: OnResidue::Redact,
            commitment_key: [7; 32],
            hold: false,
        });
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(self.socket.as_fd(), &request, &fds)?;
        loop {
            match self.message()? {
                ToKeeper::SnapshotProgress(_) => {}
                ToKeeper::SnapshotWritten(report) => return Ok(report),
                other => bail!("no snapshot: {other:?}"),
            }
        }
    }

    fn message(&self) -> anyhow::Result<ToKeeper> {
        Ok(receive(self.socket.as_fd())?.0)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A console, and the end that it writes to.
pub fn console() -> anyhow::Result<(PipeReader, (FileRole, OwnedFd))> {
    let (reader, writer) = std::io::pipe()?;
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK)?;
    Ok((reader, (FileRole::Console, writer.into())))
}

/// Reads until `text` was printed.
pub fn read_until(console: &mut PipeReader, text: &str) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    while !seen.ends_with(text.as_bytes()) {
        let mut byte = [0];
        console.read_exact(&mut byte)?;
        seen.extend(byte);
    }
    Ok(())
}

/// `/dev/kvm`.
pub fn kvm() -> anyhow::Result<(FileRole, OwnedFd)> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    Ok((FileRole::Kvm, kvm.into()))
}

/// A file in memory with these bytes.
pub fn memfd(bytes: &[u8]) -> anyhow::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("bench", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    std::io::Seek::rewind(&mut file)?;
    Ok(file)
}

/// An image as the keeper hands it over: RAM in sealed memory, the rest in files.
pub struct Image {
    memory: File,
    state: Vec<u8>,
    plan: Vec<u8>,
}

impl Image {
    /// Boots `machine` and takes a snapshot of it as soon as it has printed `ready`.
    pub fn of(host: &Host, machine: &Machine<'_>, ready: &str) -> anyhow::Result<Self> {
        let monitor = Monitor::start(host)?;
        let (mut output, console) = console()?;
        let kernel = File::open(&host.tiny)?;
        let files = [kvm()?, console, (FileRole::Kernel, kernel.into())];
        monitor.run(machine, &files)?;
        read_until(&mut output, ready)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let parts = SNAPSHOT_FILES.map(|name| rustix::fs::memfd_create(name, flags));
        let mut files = Vec::new();
        for part in parts {
            files.push(File::from(part?));
        }
        monitor.snapshot(&files)?;
        let [memory, state, plan, ..] = <[File; SNAPSHOT_FILES.len()]>::try_from(files)
            .ok()
            .context("as many as there are names")?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&memory, seals)?;
        Ok(Self {
            memory,
            state: read_all(state)?,
            plan: read_all(plan)?,
        })
    }

    /// What a restored machine is made of, without a console.
    pub fn files(&self) -> anyhow::Result<Vec<(FileRole, OwnedFd)>> {
        Ok(vec![
            kvm()?,
            (FileRole::ImageMemory, self.memory.try_clone()?.into()),
            (FileRole::ImageState, memfd(&self.state)?.into()),
            (FileRole::ImagePlan, memfd(&self.plan)?.into()),
        ])
    }
}

fn read_all(mut file: File) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
