//! `tiny=forget`, which keeps copies of a secret in memory and registers, and snapshots of it.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use cachot_secrets::SecretValue;
use cachot_vmm::protocol::{
    API_SOCKET, Config, FileRole, OnResidue, SNAPSHOT_FILES, SecretInfo, SnapshotReport,
    SnapshotRequest, ToKeeper, ToMonitor, send,
};

use super::{Monitor, config, eventually, file, kvm, tiny};

/// A value.
pub const VALUE: &[u8; 60] = b"tk-7Qm2Zr9XcVbN4aKsLp0WtYeHgUdJf6IoC1Ty8GhRn3MwEqSxDzAvBk5Pu";
/// Another one.
pub const OTHER: &[u8; 60] = b"another-value-of-the-same-length-for-the-child-of-a-snapshot";

/// A machine that runs `forget` once.
pub fn forget_config() -> Config {
    Config {
        cmdline: "console=ttyS0 tiny=forget".into(),
        ..config()
    }
}

/// A machine that goes on with it after every restore.
pub fn holding_config() -> Config {
    Config {
        cmdline: "console=ttyS0 tiny=forget hold=1".into(),
        ..config()
    }
}

/// A snapshot's files.
pub struct Parts(pub Vec<File>);

impl Parts {
    pub fn new() -> Self {
        Self(SNAPSHOT_FILES.map(|_| tempfile::tempfile().unwrap()).into())
    }

    /// With a file for the copy of a writable disk.
    pub fn with_disk() -> Self {
        let mut parts = Self::new();
        parts.0.push(tempfile::tempfile().unwrap());
        parts
    }

    pub fn part(&self, name: &str) -> &File {
        let index = SNAPSHOT_FILES.iter().position(|part| *part == name);
        &self.0[index.unwrap()]
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let mut file = self.part(name).try_clone().unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// What a machine is restored from.
    pub fn image(&self) -> Vec<(FileRole, OwnedFd)> {
        vec![
            (FileRole::ImageMemory, self.fd("memory")),
            (FileRole::ImageState, self.fd("state")),
            (FileRole::ImagePlan, self.fd("plan")),
        ]
    }

    pub fn fd(&self, name: &str) -> OwnedFd {
        let mut file = self.part(name).try_clone().unwrap();
        file.rewind().unwrap();
        file.into()
    }
}

/// A machine that runs `forget`, or goes on with it; with a control socket.
pub struct Guest {
    pub monitor: Monitor,
    console: File,
}

impl Guest {
    /// Starts a monitor and says all but the order to boot.
    pub fn prepare(config: Config, value: &[u8], mut files: Vec<(FileRole, OwnedFd)>) -> Self {
        let monitor = Monitor::start();
        let api = UnixListener::bind(monitor.dir.path().join(API_SOCKET)).unwrap();
        let console = tempfile::tempfile().unwrap();
        files.push((FileRole::Kvm, kvm()));
        files.push((FileRole::Console, console.try_clone().unwrap().into()));
        files.push((FileRole::ApiListener, api.into()));
        monitor.configure(config, files);
        let info = SecretInfo {
            name: "TOKEN".into(),
            mode: 0o400,
            uid: 0,
            gid: 0,
        };
        let sealed = SecretValue::copy_of(value).unwrap().seal().unwrap();
        let message = ToMonitor::Secret(info);
        send(monitor.socket.as_fd(), &message, &[sealed.as_fd()]).unwrap();
        Self { monitor, console }
    }

    fn start(config: Config, value: &[u8], files: Vec<(FileRole, OwnedFd)>) -> Self {
        let guest = Self::prepare(config, value, files);
        guest.monitor.send(&ToMonitor::Boot);
        assert_eq!(guest.monitor.message(), ToKeeper::Running);
        guest
    }

    pub fn boot(value: &[u8]) -> Self {
        Self::boot_with(forget_config(), value, Vec::new())
    }

    /// With these files beside the kernel.
    pub fn boot_with(config: Config, value: &[u8], mut files: Vec<(FileRole, OwnedFd)>) -> Self {
        files.push((FileRole::Kernel, file(&tiny())));
        let guest = Self::start(config, value, files);
        eventually(|| guest.console().contains("holding\n"));
        guest
    }

    pub fn restore(value: &[u8], parts: &Parts) -> Self {
        Self::start(forget_config(), value, parts.image())
    }

    pub fn console(&self) -> String {
        let len = self.console.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.console.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// What it prints when it has noticed that it was restored.
    pub fn finish(&self) -> String {
        eventually(|| self.console().contains("tiny: done\n"));
        self.console()
    }

    pub fn snapshot(&self, on_residue: OnResidue) -> (Parts, Box<SnapshotReport>) {
        match self.try_snapshot(on_residue) {
            (parts, ToKeeper::SnapshotWritten(report)) => (parts, report),
            (_, other) => panic!("{other:?}"),
        }
    }

    pub fn try_snapshot(&self, on_residue: OnResidue) -> (Parts, ToKeeper) {
        let parts = Parts::new();
        let message = self.snapshot_into(&parts, on_residue);
        (parts, message)
    }

    /// Asks for a snapshot into these files, and waits for what comes of it.
    pub fn snapshot_into(&self, parts: &Parts, on_residue: OnResidue) -> ToKeeper {
        self.order(parts, on_residue);
        self.outcome()
    }

    /// Asks for a snapshot.
    pub fn order(&self, parts: &Parts, on_residue: OnResidue) {
        self.order_held(parts, on_residue, false);
    }

    /// Asks for a snapshot after which the machine is held or not.
    pub fn order_held(&self, parts: &Parts, on_residue: OnResidue, hold: bool) {
        let request = ToMonitor::Snapshot(SnapshotRequest {
            on_residue,
            commitment_key: [7; 32],
            hold,
        });
        let files: Vec<_> = parts.0.iter().map(AsFd::as_fd).collect();
        send(self.monitor.socket.as_fd(), &request, &files).unwrap();
    }

    /// The next message but for those of progress.
    pub fn outcome(&self) -> ToKeeper {
        loop {
            match self.monitor.message() {
                ToKeeper::SnapshotProgress(_) => {}
                message => return message,
            }
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `forget` prints when everything of this value is in its place, and then ends.
pub fn all_of(value: &[u8]) -> String {
    copies_of(value) + "tiny: done\n"
}

/// What `forget` prints when everything of this value is in its place.
pub fn copies_of(value: &[u8]) -> String {
    format!(
        "page {all}\ncopy {all}\nsplit {all}\nhex {twice}\nfragment {fragment}\nregisters {registers}\n",
        all = hex(value),
        twice = hex(hex(value).as_bytes()),
        fragment = hex(&value[13..]),
        registers = hex(&value[..40]),
    )
}

/// How often a run of `len` bytes of `value` is in `bytes`.
pub fn windows_of(value: &[u8], len: usize, bytes: &[u8]) -> usize {
    let finders = value.windows(len).map(memchr::memmem::Finder::new);
    finders.map(|finder| finder.find_iter(bytes).count()).sum()
}

/// What there is to search in a snapshot, without pages of zeros.
pub fn searchable(parts: &Parts) -> Vec<u8> {
    let all = ["memory", "state", "plan", "needles"].map(|name| parts.bytes(name));
    let pages = all.iter().flat_map(|bytes| bytes.chunks(4096));
    let pages = pages.filter(|page| **page != [0; 4096][..page.len()]);
    pages.collect::<Vec<_>>().concat()
}

/// Every form of this value that `forget` leaves.
pub fn residue_of(value: &[u8], searchable: &[u8]) -> usize {
    windows_of(value, 8, searchable) + windows_of(hex(value).as_bytes(), 16, searchable)
}

/// Every form of [`VALUE`] that `forget` leaves.
pub fn residue(parts: &Parts) -> usize {
    residue_of(VALUE, &searchable(parts))
}
