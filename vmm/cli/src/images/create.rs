//! `cachot snapshot create`: the keeper's VM into an image, published whole or not at all.
//!
//! The command owns the image: it makes the files, has the monitor fill them by way of the keeper, signs and publishes.
//! Whatever ends it before that leaves nothing of the image, and the VM as it was.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use cachot_snapshot::image::{
    Contents, Disk, Guest, HostKey, ImageWriter, Manifest, PartName, memfd,
};
use cachot_vmm::protocol::{OnResidue as Order, SnapshotProgress, SnapshotReport, SnapshotRequest};
use serde::Serialize;

use super::steps::Steps;
use crate::args::{CreateArgs, OnResidue};
use crate::keeper::request::{Answer, Request, Stop};
use crate::keeper_client::KeeperClient;
use crate::state_dir::Places;
use crate::text;
use crate::vm::error::{RunError, system};
use crate::vm::existing::Existing;
use crate::vm::record::Record;

/// Context id that every guest has: its host side is a socket of its own.
const VSOCK_CID: u64 = cachot_devices::virtio::vsock::GUEST_CID;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Created<'a> {
    path: &'a std::path::Path,
    paused_us: u64,
    manifest: &'a Manifest,
}

/// Takes a snapshot and says what became of it.
///
/// # Errors
/// See [`RunError`].
pub fn create(args: &CreateArgs, output: &mut impl Write) -> Result<(), RunError> {
    let root = Places::of_process().root()?;
    let vm = Existing::running(&root, &args.name)?;
    let record = vm.record()?;
    let key = HostKey::load_or_create(&root)?;
    let mut writer = ImageWriter::create(&args.image_path, args.recipients.clone())?;
    if record.disk.as_ref().is_some_and(|disk| !disk.read_only) {
        writer.add_disk()?;
    }
    let keeper = KeeperClient::connect(&vm)?;
    let order = SnapshotRequest {
        on_residue: match (args.dangerously_keep_residue, args.on_residue) {
            (true, _) => Order::Keep,
            (false, OnResidue::Redact) => Order::Redact,
            (false, OnResidue::Refuse) => Order::Refuse,
        },
        commitment_key: *key.commitment_key(writer.id()),
        // Not by a pause of this command's own: if it is killed the VM goes on.
        hold: args.stop,
    };
    let report = fill(&keeper, &writer, order, args)?;
    let paused_us = report.paused_us;
    let manifest = writer.publish(contents(&record, report), &key)?;
    if args.stop {
        end(&keeper)?;
    }
    let print = || system("print what was done");
    if args.json {
        let created = Created {
            path: &args.image_path,
            paused_us,
            manifest: &manifest,
        };
        serde_json::to_writer_pretty(&mut *output, &created)
            .map_err(|error| print()(error.into()))?;
        writeln!(output).map_err(print())
    } else {
        describe(args, paused_us, &manifest, output).map_err(print())
    }
}

/// Has the monitor fill the parts.
fn fill(
    keeper: &KeeperClient,
    writer: &ImageWriter,
    request: SnapshotRequest,
    args: &CreateArgs,
) -> Result<Box<SnapshotReport>, RunError> {
    let part = |name| {
        let part = writer.part(name);
        part.expect("a new image has its four parts, and a disk that was added")
    };
    // What is encrypted is hashed as it is stored, and not here.
    let scratch;
    let digests: &File = if args.recipients.is_empty() {
        writer.digests()
    } else {
        scratch = memfd::create().map_err(|errno| system("make a memory file")(errno.into()))?;
        &scratch
    };
    let mut files: Vec<BorrowedFd<'_>> = [
        PartName::Memory,
        PartName::State,
        PartName::Plan,
        PartName::Needles,
    ]
    .map(|name| part(name).as_fd())
    .into();
    files.push(digests.as_fd());
    files.extend(writer.part(PartName::Disk(0)).map(AsFd::as_fd));
    let mut steps = Steps::default();
    order(
        keeper,
        request,
        args.quiesce_workload,
        &files,
        &mut |told| {
            steps.tell(told);
        },
    )
}

/// Has a VM's monitor fill files with a snapshot, and passes on how far that is.
///
/// # Errors
/// See [`RunError`].
pub fn order(
    keeper: &KeeperClient,
    request: SnapshotRequest,
    quiesce: bool,
    files: &[BorrowedFd<'_>],
    progress: &mut dyn FnMut(&SnapshotProgress),
) -> Result<Box<SnapshotReport>, RunError> {
    keeper.ask(&Request::Snapshot { request, quiesce }, files)?;
    loop {
        match keeper.answer()? {
            Answer::Written(report) => return Ok(report),
            Answer::Progress(told) => progress(&told),
            other => {
                return Err(RunError::Refused {
                    code: crate::run::OWN_FAILURE,
                    message: format!("the keeper answered something else: {other:?}"),
                });
            }
        }
    }
}

fn contents(record: &Record, report: Box<SnapshotReport>) -> Contents {
    let disks = record.disk.iter().map(|disk| Disk {
        source: disk.path.display().to_string(),
        read_only: disk.read_only,
        length: disk.length,
        part: (!disk.read_only).then_some(PartName::Disk(0)),
        blake3: None,
    });
    Contents {
        machine: report.machine,
        guest: Guest {
            name: record.name.clone(),
            cmdline: record.cmdline,
            disks: disks.collect(),
            vsock_cid: VSOCK_CID,
            keeper: serde_json::json!(record.workload),
        },
        secrets: record.secrets.clone(),
        receipt: report.receipt,
        lineage: record.lineage.clone(),
    }
}

/// Ends a VM that is held.
fn end(keeper: &KeeperClient) -> Result<(), RunError> {
    keeper.ask(&Request::Stop(Stop::Kill), &[])?;
    match keeper.answer() {
        // That the connection ends is the answer.
        Err(RunError::Gone(_)) => Ok(()),
        other => other.map(drop),
    }
}

fn describe(
    args: &CreateArgs,
    paused_us: u64,
    manifest: &Manifest,
    output: &mut impl Write,
) -> io::Result<()> {
    let receipt = &manifest.receipt;
    let sum = |numbers: &mut dyn Iterator<Item = u64>| numbers.sum::<u64>();
    writeln!(
        output,
        "{}: {} searched for in {} MiB, {} copies found, {} bytes left out, {} left in; paused {}.{:03} ms",
        args.image_path.display(),
        text::count(receipt.needles, "value"),
        receipt.bytes_scanned >> 20,
        sum(&mut receipt.hits.iter().map(|hits| hits.count)),
        sum(&mut receipt.redactions.iter().map(|one| one.bytes)),
        sum(&mut receipt.residue.iter().map(|hits| hits.count)),
        paused_us / 1000,
        paused_us % 1000,
    )
}
