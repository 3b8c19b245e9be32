//! Snapshots under bad conditions: files that take nothing, a machine that rests, a keeper that goes, limits. The
//! machine goes on as it did before, every time.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use cachot_secrets::SecretValue;
use cachot_vmm::protocol::{
    Config, FileRole, OnResidue, SNAPSHOT_FILES, SecretInfo, ToKeeper, ToMonitor, send,
};
use common::forget::{
    Guest, Parts, VALUE, copies_of, forget_config, holding_config, residue, residue_of, searchable,
};
use common::{Monitor, eventually, file, kvm, tiny};
use rustix::process::{Pid, Resource, Rlimit};
use serde_json::json;

fn failure(answer: ToKeeper) -> String {
    match answer {
        ToKeeper::SnapshotFailed { message } => message,
        other => panic!("{other:?}"),
    }
}

fn state(guest: &Guest) -> serde_json::Value {
    guest.monitor.request("GET", "/v1/state", "").1["state"].clone()
}

fn exits(guest: &Guest) -> u64 {
    let metrics = guest.monitor.request("GET", "/v1/metrics", "").1;
    metrics["exits"]["mmio_read"].as_u64().unwrap()
}

/// Its vCPU does something.
fn assert_runs(guest: &Guest) {
    assert_eq!(state(guest), "running");
    let before = exits(guest);
    eventually(|| exits(guest) > before);
}

fn assert_next_one_works(guest: &Guest) {
    let (parts, _) = guest.snapshot(OnResidue::Redact);
    assert_eq!(residue(&parts), 0);
    assert_runs(guest);
}

/// Limits the length of the files that the monitor writes.
fn limit_files(guest: &Guest, most: Option<u64>) {
    let limit = Rlimit {
        current: most,
        maximum: None,
    };
    let pid = Pid::from_child(&guest.monitor.child);
    rustix::process::prlimit(Some(pid), Resource::Fsize, limit).unwrap();
}

#[test]
fn test_part_that_takes_nothing_fails_the_snapshot_and_nothing_else() {
    let guest = Guest::boot(VALUE);
    // Before, while and after the machine rests.
    for name in ["needles", "state", "plan", "digests"] {
        let mut parts = Parts::new();
        let index = SNAPSHOT_FILES.iter().position(|part| *part == name);
        let full = File::options().read(true).write(true).open("/dev/full");
        parts.0[index.unwrap()] = full.unwrap();

        let message = failure(guest.snapshot_into(&parts, OnResidue::Redact));

        assert!(message.contains("No space left"), "{name}: {message}");
        assert_runs(&guest);
    }
    assert_next_one_works(&guest);
}

#[test]
fn test_files_over_the_limit_of_the_process_fail_the_snapshot_and_nothing_else() {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(64 << 20).unwrap();
    disk.write_all_at(&[1; 4096], 60 << 20).unwrap();
    let files = vec![(FileRole::Disk { read_only: false }, disk.into())];
    let guest = Guest::boot_with(forget_config(), VALUE, files);
    for (most, part) in [(1 << 20, "memory"), (48 << 20, "disk")] {
        limit_files(&guest, Some(most));

        let message = failure(guest.snapshot_into(&Parts::with_disk(), OnResidue::Redact));

        assert!(message.contains(&format!("snapshot's {part}")), "{message}");
        assert!(message.contains("File too large"), "{message}");
        assert_runs(&guest);
    }
    limit_files(&guest, None);
    let answer = guest.snapshot_into(&Parts::with_disk(), OnResidue::Redact);
    assert!(matches!(answer, ToKeeper::SnapshotWritten(_)), "{answer:?}");
}

#[test]
fn test_paused_machine_is_saved_and_stays_paused() {
    let guest = Guest::boot(VALUE);
    assert_eq!(guest.monitor.request("PUT", "/v1/pause", "").0, 204);
    let before = exits(&guest);

    let (parts, report) = guest.snapshot(OnResidue::Redact);
    let message = failure(guest.snapshot_into(&Parts::with_disk(), OnResidue::Redact));

    assert_eq!(residue(&parts), 0);
    assert_eq!(report.paused_us, 0, "it was not paused for this");
    assert!(message.contains("more or fewer files"), "{message}");
    assert_eq!(state(&guest), "paused");
    assert_eq!(exits(&guest), before);
    assert_eq!(guest.monitor.request("PUT", "/v1/resume", "").0, 204);
    assert_runs(&guest);
    let restored = Guest::restore(VALUE, &parts);
    assert_eq!(restored.finish(), copies_of(VALUE) + "tiny: done\n");
}

#[test]
fn test_machine_that_is_held_rests_until_it_is_released_or_ended() {
    let guest = Guest::boot(VALUE);
    let parts = Parts::new();
    guest.order_held(&parts, OnResidue::Redact, true);
    let answer = guest.outcome();
    let ToKeeper::SnapshotWritten(report) = answer else {
        panic!("{answer:?}");
    };

    assert!(report.paused_us > 0);
    assert_eq!(residue(&parts), 0);
    assert_eq!(state(&guest), "saving");
    let before = exits(&guest);
    let message = failure(guest.snapshot_into(&Parts::new(), OnResidue::Redact));
    assert!(message.contains("another snapshot"), "{message}");
    assert_eq!(guest.monitor.request("PUT", "/v1/resume", "").0, 409);
    assert_eq!(exits(&guest), before);

    guest.monitor.send(&ToMonitor::Release);
    eventually(|| state(&guest) == "running");
    assert_next_one_works(&guest);
}

#[test]
fn test_machine_that_is_to_be_held_goes_on_if_there_is_no_snapshot_or_it_is_released_before() {
    let guest = Guest::boot(VALUE);
    let mut parts = Parts::new();
    let full = File::options().read(true).write(true).open("/dev/full");
    // Of `digests`, which is written after the copy.
    parts.0[4] = full.unwrap();
    guest.order_held(&parts, OnResidue::Redact, true);
    failure(guest.outcome());
    assert_runs(&guest);

    guest.order_held(&Parts::new(), OnResidue::Redact, true);
    guest.monitor.send(&ToMonitor::Release);
    let answer = guest.outcome();
    assert!(matches!(answer, ToKeeper::SnapshotWritten(_)), "{answer:?}");
    assert_runs(&guest);
    // With nothing to be released.
    guest.monitor.send(&ToMonitor::Release);
    assert_next_one_works(&guest);

    assert_eq!(guest.monitor.request("PUT", "/v1/pause", "").0, 204);
    guest.order_held(&Parts::new(), OnResidue::Redact, true);
    guest.outcome();
    guest.monitor.send(&ToMonitor::Release);
    eventually(|| state(&guest) == "paused");
}

#[test]
fn test_keeper_gone_while_the_machine_is_held_lets_it_go_on() {
    let config = Config {
        outlive_keeper: true,
        ..forget_config()
    };
    let mut guest = Guest::boot_with(config, VALUE, Vec::new());
    guest.order_held(&Parts::new(), OnResidue::Redact, true);
    guest.outcome();
    assert_eq!(state(&guest), "saving");
    let (theirs, _) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut guest.monitor.socket, theirs.into()));

    eventually(|| state(&guest) == "running");

    let kill = json!({"mode": "kill"}).to_string();
    assert_eq!(guest.monitor.request("PUT", "/v1/stop", &kill).0, 204);
}

#[test]
fn test_second_snapshot_at_the_same_time_is_refused() {
    let guest = Guest::boot(VALUE);
    let (first, second) = (Parts::new(), Parts::new());
    // Both are there when it looks.
    guest.monitor.signal(libc::SIGSTOP);
    guest.order(&first, OnResidue::Redact);
    guest.order(&second, OnResidue::Redact);
    guest.monitor.signal(libc::SIGCONT);

    let message = failure(guest.outcome());
    let answer = guest.outcome();

    assert!(message.contains("another snapshot"), "{message}");
    assert!(matches!(answer, ToKeeper::SnapshotWritten(_)), "{answer:?}");
    assert_eq!(residue(&first), 0);
    assert!(second.bytes("memory").is_empty(), "nothing was written");
    assert_next_one_works(&guest);
}

#[test]
fn test_keeper_gone_during_a_snapshot_leaves_the_machine_running() {
    let config = Config {
        outlive_keeper: true,
        ..forget_config()
    };
    let mut guest = Guest::boot_with(config, VALUE, Vec::new());
    let parts = Parts::new();
    guest.monitor.signal(libc::SIGSTOP);
    guest.order(&parts, OnResidue::Redact);
    let (theirs, _) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut guest.monitor.socket, theirs.into()));
    guest.monitor.signal(libc::SIGCONT);

    // All but the answer is done.
    eventually(|| !parts.bytes("digests").is_empty());

    assert_runs(&guest);
    assert_eq!(residue(&parts), 0);
    assert_eq!(
        guest
            .monitor
            .request("PUT", "/v1/stop", &json!({"mode": "kill"}).to_string())
            .0,
        204
    );
}

/// A value of one generation.
fn value_of(generation: u8) -> Vec<u8> {
    let digits = letters_of(generation);
    digits.into_iter().cycle().take(VALUE.len()).collect()
}

/// Letters and digits that no other generation has in this order.
fn letters_of(generation: u8) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(generation) + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"[(state >> 58) as usize]
    };
    (0..VALUE.len()).map(|_| next()).collect()
}

#[test]
fn test_ten_generations_with_a_new_value_each_hold_none_of_them() {
    let values: Vec<_> = (0..=10).map(value_of).collect();
    let mut guest = Guest::boot_with(holding_config(), &values[0], Vec::new());
    for (generation, next) in values.iter().enumerate().skip(1) {
        let (kept, _) = guest.snapshot(OnResidue::Keep);
        let (parts, report) = guest.snapshot(OnResidue::Redact);

        let control = residue_of(&values[generation - 1], &searchable(&kept));
        assert!(control > 0, "the positive control");
        let saved = searchable(&parts);
        for value in &values {
            assert_eq!(residue_of(value, &saved), 0, "generation {generation}");
        }
        assert_eq!(report.receipt.needles, 1, "the values of its own life");
        guest = Guest::restore(next, &parts);
        eventually(|| guest.console().ends_with("holding\n"));
        assert_eq!(guest.console(), copies_of(next) + "holding\n");
    }
}

#[test]
fn test_more_copies_than_a_plan_holds_are_a_clear_refusal() {
    let source = Guest::boot_with(holding_config(), VALUE, Vec::new());
    let (parts, _) = source.snapshot(OnResidue::Redact);
    // Where the guest has nothing: a fragment and one byte, again and again.
    let fragment: Vec<_> = VALUE[..16].iter().chain(b"|").copied().collect();
    for (from, to) in [(4_u64 << 20, 15_usize << 20), (18 << 20, 32 << 20)] {
        let len = to - usize::try_from(from).unwrap();
        let copies: Vec<_> = fragment.iter().copied().cycle().take(len).collect();
        parts.part("memory").write_all_at(&copies, from).unwrap();
    }
    let guest = Guest::restore(VALUE, &parts);

    let message = failure(guest.snapshot_into(&Parts::new(), OnResidue::Redact));

    assert!(message.contains("more than 1048576 copies"), "{message}");
    assert!(message.contains("try again"), "{message}");
    assert_runs(&guest);
}

#[test]
fn test_more_bytes_of_values_than_can_be_searched_for_are_refused_before_the_guest_runs() {
    const LEN: usize = 1 << 20;
    let monitor = Monitor::start();
    let files = vec![(FileRole::Kvm, kvm()), (FileRole::Kernel, file(&tiny()))];
    monitor.configure(forget_config(), files);
    for number in 0..17_u8 {
        let sealed = SecretValue::copy_of(&[number; LEN])
            .unwrap()
            .seal()
            .unwrap();
        let info = SecretInfo {
            name: format!("S{number}"),
            mode: 0o400,
            uid: 0,
            gid: 0,
        };
        let message = ToMonitor::Secret(info);
        send(monitor.socket.as_fd(), &message, &[sealed.as_fd()]).unwrap();
    }
    monitor.send(&ToMonitor::Boot);

    let message = monitor.failure();

    assert!(message.contains("S16"), "{message}");
    assert!(message.contains("16777216 bytes"), "{message}");
}
