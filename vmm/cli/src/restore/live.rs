//! Copies of a running VM: its snapshot in files without names, which no other process can change.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use cachot_snapshot::image::memfd;
use cachot_vmm::protocol::{OnResidue, SNAPSHOT_FILES, SnapshotRequest};
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use super::source::{Source, SourceDisk, nameless};
use crate::images::create::order;
use crate::keeper_client::KeeperClient;
use crate::vm::error::{RunError, system};
use crate::vm::existing::Existing;

/// Takes a snapshot of a running VM, without the values of its secrets, into memory.
///
/// # Errors
/// See [`RunError`].
pub fn source(vm: &Existing, quiesce: bool, root: &Path) -> Result<Source, RunError> {
    let record = vm.record()?;
    let failed = |errno: rustix::io::Errno| system("make a memory file")(errno.into());
    let mut key = Zeroizing::new([0; 32]);
    getrandom(&mut *key, GetRandomFlags::empty()).map_err(failed)?;
    let files = SNAPSHOT_FILES
        .iter()
        .map(|_| memfd::create().map_err(failed))
        .collect::<Result<Vec<File>, _>>()?;
    let disk = match record.disk {
        None => None,
        Some(disk) if disk.read_only => Some(SourceDisk {
            record: disk,
            copy: None,
        }),
        Some(disk) => Some(SourceDisk {
            record: disk,
            copy: Some(nameless(root).map_err(system("make a file for the disk"))?),
        }),
    };
    let copy = disk.iter().filter_map(|disk| disk.copy.as_ref());
    let descriptors: Vec<BorrowedFd<'_>> = files.iter().chain(copy).map(AsFd::as_fd).collect();
    let request = SnapshotRequest {
        on_residue: OnResidue::Redact,
        commitment_key: *key,
        hold: false,
    };
    // No bar: it has a thread, and what comes next makes processes of this one.
    let keeper = KeeperClient::connect(vm)?;
    let report = order(&keeper, request, quiesce, &descriptors, &mut |_| {})?;
    let mut parts = files.into_iter().map(|file| -> Result<OwnedFd, RunError> {
        memfd::seal(&file).map_err(failed)?;
        Ok(file.into())
    });
    let mut part = || parts.next().expect("there are five files");
    Ok(Source {
        memory: part()?,
        state: part()?,
        plan: part()?,
        key: Some(key),
        machine: report.machine,
        cmdline: record.cmdline,
        disk,
        secrets: record.secrets,
        workload: record.workload,
        lineage: record.lineage,
        parent: Some(record.name),
    })
}
