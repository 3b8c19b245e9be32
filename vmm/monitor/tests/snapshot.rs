//! Snapshots of `guest/tiny`, which keeps copies of a secret in memory and registers.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use cachot_snapshot::image::{CHUNK_LEN, Place};
use cachot_vmm::protocol::{FileRole, OnResidue, ToKeeper, ToMonitor};
use common::forget::{Guest, OTHER, Parts, VALUE, all_of, forget_config, hex, residue, windows_of};
use common::kvm;

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
fn test_restored_with_a_value_that_does_not_fit_copies_stay_zero_and_are_counted() {
    let guest = Guest::boot(VALUE);
    let (parts, _) = guest.snapshot(OnResidue::Redact);
    let shorter = &OTHER[..OTHER.len() - 1];

    let child = Guest::prepare(forget_config(), shorter, parts.image());
    child.monitor.send(&ToMonitor::Boot);

    let ToKeeper::LeftZero { secret, copies } = child.monitor.message() else {
        panic!("nothing is told of copies");
    };
    assert_eq!(
        (secret.as_str(), child.monitor.message()),
        ("TOKEN", ToKeeper::Running)
    );
    assert!(copies > 3, "{copies}");
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

/// A disk with the value at four places: across the edge of a chunk too, and in hexadecimal.
fn disk_with_value() -> (File, [u64; 4]) {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let places = [512, 8192 + 77, CHUNK_LEN as u64 - 20, 700_000];
    for place in places {
        disk.write_all_at(VALUE, place).unwrap();
    }
    disk.write_all_at(hex(VALUE).as_bytes(), places[3]).unwrap();
    (disk, places)
}

fn with_disk(disk: &File, read_only: bool) -> Guest {
    let disk = disk.try_clone().unwrap();
    Guest::boot_with(
        forget_config(),
        VALUE,
        vec![(FileRole::Disk { read_only }, disk.into())],
    )
}

#[test]
fn test_value_on_a_writable_disk_refuses_the_snapshot_and_names_the_places() {
    let (disk, places) = disk_with_value();
    let guest = with_disk(&disk, false);
    let (parts, refused) = (Parts::with_disk(), Parts::with_disk());

    let answer = guest.snapshot_into(&refused, OnResidue::Redact);

    let ToKeeper::SnapshotFailed { message } = answer else {
        panic!("{answer:?}");
    };
    for place in &places[..3] {
        assert!(message.contains(&format!("at byte {place}")), "{message}");
    }
    assert!(!message.contains(&places[3].to_string()), "{message}");
    assert!(
        message.contains("/dev/vda") && message.contains("overwrite"),
        "{message}"
    );
    assert!(!message.contains("tk-"), "{message}");

    // The machine runs on, and can be saved as soon as the disk is clean.
    for place in places {
        disk.write_all_at(&[b'.'; 120], place).unwrap();
    }
    let answer = guest.snapshot_into(&parts, OnResidue::Redact);
    let ToKeeper::SnapshotWritten(report) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(report.receipt.residue, []);
    assert!(report.receipt.bytes_scanned >= 2 * CHUNK_LEN as u64);
    assert!(content(&parts.0[5]) == content(&disk));
    assert_eq!(residue(&parts), 0);
}

#[test]
fn test_value_on_a_writable_disk_is_kept_and_told_where_residue_is_kept() {
    let (disk, _) = disk_with_value();
    let guest = with_disk(&disk, false);
    let parts = Parts::with_disk();

    let answer = guest.snapshot_into(&parts, OnResidue::Keep);

    let ToKeeper::SnapshotWritten(report) = answer else {
        panic!("{answer:?}");
    };
    let on_disk = report.receipt.residue.iter();
    let on_disk = on_disk.filter(|hits| hits.place == Place::Disk);
    assert!(on_disk.map(|hits| hits.count).sum::<u64>() >= 4);
    assert!(content(&parts.0[5]) == content(&disk));
}

#[test]
fn test_snapshot_takes_a_file_more_exactly_if_a_disk_is_writable() {
    let (disk, _) = disk_with_value();
    for (guest, right, wrong) in [
        (with_disk(&disk, true), Parts::new(), Parts::with_disk()),
        (Guest::boot(VALUE), Parts::new(), Parts::with_disk()),
    ] {
        let answer = guest.snapshot_into(&wrong, OnResidue::Redact);
        assert!(
            matches!(answer, ToKeeper::SnapshotFailed { .. }),
            "{answer:?}"
        );
        let answer = guest.snapshot_into(&right, OnResidue::Redact);
        assert!(matches!(answer, ToKeeper::SnapshotWritten(_)), "{answer:?}");
    }
    let guest = with_disk(&disk, false);
    let answer = guest.snapshot_into(&Parts::new(), OnResidue::Keep);
    assert!(
        matches!(answer, ToKeeper::SnapshotFailed { .. }),
        "{answer:?}"
    );
}

fn content(file: &File) -> Vec<u8> {
    let len = file.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn test_host_cpu_has_all_that_a_machine_of_this_host_needs() {
    let guest = Guest::boot(VALUE);
    let (_, report) = guest.snapshot(OnResidue::Redact);

    let host = cachot_vmm::host_cpu(&kvm().into()).unwrap();

    let saved = report.machine.cpu;
    assert_eq!(saved.vendor, host.vendor);
    assert!(!saved.features.is_empty());
    let missing: Vec<_> = saved.features.difference(&host.features).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let other = cachot_vmm::host_cpu(&File::open("/dev/null").unwrap());
    assert!(other.is_err(), "this is no KVM");
}
