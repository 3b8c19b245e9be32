//! What cannot become a machine is refused with a message that says what to do, and nothing is left running.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use cachot_secrets::SecretValue;
use cachot_vmm::protocol::{Config, FileRole, SecretInfo, ToMonitor, send};
use common::{Monitor, config, elf, file, kvm, spin};

/// The failure that a machine with these files ends in.
fn refused(config: Config, files: Vec<(FileRole, OwnedFd)>) -> String {
    Monitor::boot_with(config, files).failure()
}

/// The same for a good kernel.
fn refused_config(config: Config) -> String {
    refused(config, vec![(FileRole::Kernel, file(&elf(&spin())))])
}

/// The same for this kernel.
fn refused_kernel(image: &[u8]) -> String {
    refused(config(), vec![(FileRole::Kernel, file(image))])
}

/// `bytes` with some of them replaced.
fn patched(bytes: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

/// A bzImage as far as its header: protocol 2.15, loaded high, no 64-bit entry unless patched.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x211] = 1;
    image
}

#[test]
fn test_kernel_of_another_kind_is_refused() {
    assert!(refused_kernel(b"#!/bin/sh\n").contains("is not a kernel"));
    assert!(refused_kernel(b"").contains("is not a kernel"));
    let good = elf(&spin());
    for (at, patch, expected) in [
        (4, &[1][..], "not for 64-bit x86"),
        (18, &[183], "not for 64-bit x86"),
        (16, &[1], "not a program"),
        (24, &[0; 8], "entry point"),
        (54, &[32], "damaged"),
    ] {
        let message = refused_kernel(&patched(&good, at, patch));
        assert!(message.contains(expected), "{at}: {message}");
    }
    let message = refused_kernel(&bzimage());
    assert!(message.contains("no 64-bit entry point"), "{message}");
}

#[test]
fn test_kernel_cut_short_is_refused() {
    let good = elf(&spin());
    for len in [4, 63, 100, good.len() - 1] {
        let message = refused_kernel(&good[..len]);
        assert!(
            !message.is_empty() && !message.contains("--memory"),
            "{len}: {message}"
        );
    }
}

#[test]
fn test_kernel_larger_than_memory_is_refused() {
    let good = elf(&spin());
    // The memory size of the program header is at 104, its address at 88.
    let message = refused_kernel(&patched(&good, 104, &(64_u64 << 20).to_le_bytes()));
    assert!(
        message.contains("needs 65 MiB") && message.contains("--memory"),
        "{message}"
    );
    let message = refused_kernel(&patched(&good, 88, &u64::MAX.to_le_bytes()));
    assert!(!message.is_empty());

    let mut image = bzimage();
    image[0x236] = 1;
    // init_size of 1 GiB.
    image[0x263] = 0x40;
    let message = refused_kernel(&image);
    assert!(message.contains("needs 1025 MiB"), "{message}");
}

#[test]
fn test_initrd_empty_or_too_large_is_refused() {
    let kernel = || (FileRole::Kernel, file(&elf(&spin())));
    let message = refused(config(), vec![kernel(), (FileRole::Initrd, file(b""))]);
    assert!(message.contains("empty"), "{message}");
    let large = tempfile::tempfile().unwrap();
    large.set_len(config().memory).unwrap();
    let message = refused(config(), vec![kernel(), (FileRole::Initrd, large.into())]);
    assert!(
        message.contains("RAM disk of 32 MiB") && message.contains("--memory"),
        "{message}"
    );
}

#[test]
fn test_configuration_out_of_bounds_is_refused() {
    for (changed, expected) in [
        (
            Config {
                cpus: 0,
                ..config()
            },
            "0 vCPUs",
        ),
        (
            Config {
                cpus: 255,
                ..config()
            },
            "255 vCPUs",
        ),
        (
            Config {
                memory: 0,
                ..config()
            },
            "16 MiB",
        ),
        (
            Config {
                memory: (32 << 20) + 4096,
                ..config()
            },
            "multiple of 2 MiB",
        ),
        (
            Config {
                memory: u64::MAX,
                ..config()
            },
            "GiB",
        ),
        (
            Config {
                cmdline: "x".repeat(2048),
                ..config()
            },
            "limit is 2047",
        ),
        (
            Config {
                cmdline: "a\0b".into(),
                ..config()
            },
            "zero bytes",
        ),
    ] {
        let message = refused_config(changed);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn test_files_missing_twice_or_not_what_they_should_be_are_refused() {
    let kernel = || (FileRole::Kernel, file(&elf(&spin())));
    assert!(refused(config(), vec![]).contains("kernel is missing"));
    assert!(refused(config(), vec![kernel(), kernel()]).contains("two for the same purpose"));

    let monitor = Monitor::start();
    monitor.configure(config(), vec![kernel()]);
    assert!(monitor.failure().contains("/dev/kvm is missing"));

    let monitor = Monitor::start();
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    monitor.configure(config(), vec![kernel(), (FileRole::Kvm, null)]);
    monitor.send(&ToMonitor::Boot);
    assert!(monitor.failure().contains("not KVM"));

    let empty = (FileRole::Disk { read_only: true }, file(b""));
    assert!(refused(config(), vec![kernel(), empty]).contains("disk image"));
}

#[test]
fn test_messages_out_of_order_are_refused() {
    let monitor = Monitor::start();
    monitor.send(&ToMonitor::Boot);
    assert!(monitor.failure().contains("out of order"));

    let monitor = Monitor::start();
    let files = || {
        vec![
            (FileRole::Kvm, kvm()),
            (FileRole::Kernel, file(&elf(&spin()))),
        ]
    };
    monitor.configure(config(), files());
    monitor.configure(config(), files());
    assert!(monitor.failure().contains("out of order"));
}

#[test]
fn test_secrets_malformed_are_refused_without_their_value() {
    const VALUE: &[u8] = b"tk-0123456789abcdef";
    let info = |name: &str, mode| {
        ToMonitor::Secret(SecretInfo {
            name: name.into(),
            mode,
            uid: 0,
            gid: 0,
        })
    };
    let sealed = || SecretValue::copy_of(VALUE).unwrap().seal().unwrap();
    let plain = file(VALUE);

    for (message, expected) in [(info("9", 0o400), "illegal"), (info("A", 0o600), "illegal")] {
        let monitor = Monitor::start();
        monitor.configure(
            config(),
            vec![(FileRole::Kvm, kvm()), (FileRole::Kernel, file(b"x"))],
        );
        send(monitor.socket.as_fd(), &message, &[sealed().as_fd()]).unwrap();
        let failure = monitor.failure();
        assert!(failure.contains(expected), "{failure}");
    }

    let monitor = Monitor::start();
    monitor.configure(
        config(),
        vec![(FileRole::Kvm, kvm()), (FileRole::Kernel, file(b"x"))],
    );
    send(
        monitor.socket.as_fd(),
        &info("A", 0o400),
        &[sealed().as_fd()],
    )
    .unwrap();
    send(
        monitor.socket.as_fd(),
        &info("A", 0o400),
        &[sealed().as_fd()],
    )
    .unwrap();
    assert!(monitor.failure().contains("sent before"));

    let monitor = Monitor::start();
    monitor.configure(
        config(),
        vec![(FileRole::Kvm, kvm()), (FileRole::Kernel, file(b"x"))],
    );
    send(monitor.socket.as_fd(), &info("A", 0o400), &[plain.as_fd()]).unwrap();
    let failure = monitor.failure();
    assert!(
        failure.contains("secret A") && !failure.contains("tk-0123"),
        "{failure}"
    );
}

#[test]
fn test_keeper_gone_before_boot_ends_the_monitor() {
    let mut monitor = Monitor::start();
    monitor.configure(
        config(),
        vec![(FileRole::Kvm, kvm()), (FileRole::Kernel, file(b"x"))],
    );
    let (theirs, _) = std::os::unix::net::UnixStream::pair().unwrap();

    drop(std::mem::replace(&mut monitor.socket, theirs.into()));

    assert_eq!(monitor.wait().code(), Some(1));
}

#[test]
fn test_started_by_hand_says_who_starts_it() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cachot-vmm"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("started by `cachot`"), "{message}");
}
