//! Snapshots of `guest/tiny`, which keeps copies of a secret in memory and registers.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use cachot_secrets::SecretValue;
use cachot_vmm::protocol::{
    Config, FileRole, OnResidue, SNAPSHOT_FILES, SecretInfo, SnapshotReport, SnapshotRequest,
    ToKeeper, ToMonitor, send,
};
use common::{Monitor, config, eventually, file, kvm, tiny};

const VALUE: &[u8; 60] = b"tk-7Qm2Zr9XcVbN4aKsLp0WtYeHgUdJf6IoC1Ty8GhRn3MwEqSxDzAvBk5Pu";
const OTHER: &[u8; 60] = b"another-value-of-the-same-length-for-the-child-of-a-snapshot";

/// A snapshot's files.
struct Parts(Vec<File>);

impl Parts {
    fn new() -> Self {
        Self(SNAPSHOT_FILES.map(|_| tempfile::tempfile().unwrap()).into())
    }

    fn part(&self, name: &str) -> &File {
        let index = SNAPSHOT_FILES.iter().position(|part| *part == name);
        &self.0[index.unwrap()]
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let mut file = self.part(name).try_clone().unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn fd(&self, name: &str) -> OwnedFd {
        let mut file = self.part(name).try_clone().unwrap();
        file.rewind().unwrap();
        file.into()
    }
}

/// A machine that runs `forget`, or goes on with it.
struct Guest {
    monitor: Monitor,
    console: File,
}

impl Guest {
    fn start(value: &[u8], mut files: Vec<(FileRole, OwnedFd)>) -> Self {
        let monitor = Monitor::start();
        let console = tempfile::tempfile().unwrap();
        let config = Config {
            cmdline: "console=ttyS0 tiny=forget".into(),
            ..config()
        };
        files.push((FileRole::Kvm, kvm()));
        files.push((FileRole::Console, console.try_clone().unwrap().into()));
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
        monitor.send(&ToMonitor::Boot);
        assert_eq!(monitor.message(), ToKeeper::Running);
        Self { monitor, console }
    }

    fn boot(value: &[u8]) -> Self {
        let guest = Self::start(value, vec![(FileRole::Kernel, file(&tiny()))]);
        eventually(|| guest.console().contains("holding\n"));
        guest
    }

    fn restore(value: &[u8], parts: &Parts) -> Self {
        let files = vec![
            (FileRole::ImageMemory, parts.fd("memory")),
            (FileRole::ImageState, parts.fd("state")),
            (FileRole::ImagePlan, parts.fd("plan")),
        ];
        Self::start(value, files)
    }

    fn console(&self) -> String {
        let len = self.console.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.console.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// What it prints when it has noticed that it was restored.
    fn finish(&self) -> String {
        eventually(|| self.console().contains("tiny: done\n"));
        self.console()
    }

    fn snapshot(&self, on_residue: OnResidue) -> (Parts, Box<SnapshotReport>) {
        match self.try_snapshot(on_residue) {
            (parts, ToKeeper::SnapshotWritten(report)) => (parts, report),
            (_, other) => panic!("{other:?}"),
        }
    }

    fn try_snapshot(&self, on_residue: OnResidue) -> (Parts, ToKeeper) {
        let parts = Parts::new();
        let request = ToMonitor::Snapshot(SnapshotRequest {
            on_residue,
            commitment_key: [7; 32],
        });
        let files: Vec<_> = parts.0.iter().map(AsFd::as_fd).collect();
        send(self.monitor.socket.as_fd(), &request, &files).unwrap();
        loop {
            match self.monitor.message() {
                ToKeeper::SnapshotProgress(_) => {}
                message => return (parts, message),
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `forget` prints when everything of this value is in its place.
fn all_of(value: &[u8]) -> String {
    format!(
        "page {all}\ncopy {all}\nsplit {all}\nhex {twice}\nfragment {fragment}\nregisters {registers}\ntiny: done\n",
        all = hex(value),
        twice = hex(hex(value).as_bytes()),
        fragment = hex(&value[13..]),
        registers = hex(&value[..40]),
    )
}

/// How often a run of `len` bytes of `value` is in `bytes`.
fn windows_of(value: &[u8], len: usize, bytes: &[u8]) -> usize {
    let finders = value.windows(len).map(memchr::memmem::Finder::new);
    finders.map(|finder| finder.find_iter(bytes).count()).sum()
}

/// Every form of the value that `forget` leaves.
fn residue(parts: &Parts) -> usize {
    ["memory", "state", "plan", "needles"]
        .iter()
        .map(|name| parts.bytes(name))
        .map(|bytes| windows_of(VALUE, 8, &bytes) + windows_of(hex(VALUE).as_bytes(), 16, &bytes))
        .sum()
}

#[test]
fn test_snapshot_has_nothing_of_the_value_and_restores_every_copy() {
    let guest = Guest::boot(VALUE);

    let (parts, report) = guest.snapshot(OnResidue::Redact);

    assert_eq!(residue(&parts), 0);
    assert_eq!(report.receipt.needles, 1);
    assert_eq!(report.receipt.residue, []);
    assert!(!report.receipt.residue_kept);
    let restored = Guest::restore(VALUE, &parts);
    assert_eq!(restored.finish(), all_of(VALUE));
    // The source has noticed nothing.
    assert_eq!(guest.console(), "\nholding\n");
}

#[test]
fn test_snapshot_that_keeps_residue_has_every_form_of_the_value() {
    let guest = Guest::boot(VALUE);

    let (parts, report) = guest.snapshot(OnResidue::Keep);

    // The positive control of the test above: attached page, two copies, fragment.
    let memory = parts.bytes("memory");
    assert!(windows_of(VALUE, 40, &memory) > 20 * 3);
    assert!(windows_of(hex(VALUE).as_bytes(), 100, &memory) > 0);
    assert!(windows_of(VALUE, 8, &parts.bytes("state")) > 0);
    assert!(report.receipt.residue_kept);
    assert!(!report.receipt.residue.is_empty());
    let restored = Guest::restore(VALUE, &parts);
    assert_eq!(restored.finish(), all_of(VALUE));
}

#[test]
fn test_restored_with_another_value_every_copy_is_the_new_one() {
    let guest = Guest::boot(VALUE);
    let (parts, _) = guest.snapshot(OnResidue::Redact);

    let children = [VALUE, OTHER].map(|value| (value, Guest::restore(value, &parts)));

    for (value, child) in children {
        assert_eq!(child.finish(), all_of(value));
    }
}

#[test]
fn test_refused_residue_leaves_the_machine_running() {
    let guest = Guest::boot(VALUE);

    let (_, answer) = guest.try_snapshot(OnResidue::Refuse);

    let ToKeeper::SnapshotFailed { message } = answer else {
        panic!("{answer:?}");
    };
    assert!(message.contains("--on-residue refuse"), "{message}");
    assert!(!message.contains("tk-"), "{message}");
    let (parts, _) = guest.snapshot(OnResidue::Redact);
    assert_eq!(residue(&parts), 0);
}
