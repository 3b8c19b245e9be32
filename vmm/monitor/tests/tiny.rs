//! `guest/tiny` on the real monitor: it boots, reads its secrets, and nothing it tries brings the device down.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Seek};
use std::os::fd::AsFd;

use cachot_secrets::SecretValue;
use cachot_vmm::protocol::{Config, FileRole, SecretInfo, StopReason, ToKeeper, ToMonitor, send};
use common::{Monitor, config, file, kvm, tiny};

/// Runs a scenario to its end with these secrets; what it printed, and why the machine stopped.
fn run(scenario: &str, secrets: &[(&str, &[u8])]) -> (String, ToKeeper) {
    let mut monitor = Monitor::start();
    let mut console = tempfile::tempfile().unwrap();
    let config = Config {
        cmdline: format!("console=ttyS0 tiny={scenario}"),
        ..config()
    };
    let files = vec![
        (FileRole::Kvm, kvm()),
        (FileRole::Console, console.try_clone().unwrap().into()),
        (FileRole::Kernel, file(&tiny())),
    ];
    monitor.configure(config, files);
    for (name, value) in secrets {
        let info = SecretInfo {
            name: (*name).to_owned(),
            mode: 0o400,
            uid: 7,
            gid: 9,
        };
        let sealed = SecretValue::copy_of(value).unwrap().seal().unwrap();
        let message = ToMonitor::Secret(info);
        send(monitor.socket.as_fd(), &message, &[sealed.as_fd()]).unwrap();
    }
    monitor.send(&ToMonitor::Boot);
    assert_eq!(monitor.message(), ToKeeper::Running);
    let end = monitor.message();
    assert!(monitor.wait().success());
    let mut printed = String::new();
    console.rewind().unwrap();
    console.read_to_string(&mut printed).unwrap();
    (printed, end)
}

fn stopped(reason: StopReason) -> ToKeeper {
    ToKeeper::Stopped { reason }
}

#[test]
fn test_tiny_hello_prints_and_powers_off() {
    let (console, end) = run("hello", &[]);

    assert_eq!(console, "\nhello\ntiny: done\n");
    assert_eq!(end, stopped(StopReason::PowerOff));
}

#[test]
fn test_tiny_reset_ends_the_machine_as_reset() {
    let (console, end) = run("reset", &[]);

    assert_eq!(console, "\nresetting\n");
    assert_eq!(end, stopped(StopReason::Reset));
}

#[test]
fn test_tiny_touch_uses_all_the_memory_asked_for() {
    let (console, _) = run("touch mib=16", &[]);

    assert_eq!(console, "\ntouched 16 MiB\ntiny: done\n");
}

#[test]
fn test_tiny_read_gets_every_byte_and_attribute() {
    let bytes: Vec<u8> = (0..=255).cycle().take(4097).collect();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();

    let (console, _) = run("read", &[("A", b"x"), ("LONG_1", &bytes)]);

    assert_eq!(
        console,
        format!(
            "\n2 secrets\n\
             A version=1 length=1 mode=100 uid=7 gid=9 value=78\n\
             LONG_1 version=1 length=4097 mode=100 uid=7 gid=9 value={hex}\n\
             tiny: done\n"
        )
    );
}

#[test]
fn test_tiny_conformance_every_hostile_request_ends_as_specified() {
    let (console, end) = run(
        "conformance",
        &[("SHORT", b"0123456789abcdef"), ("LONG", &[7; 5000])],
    );

    assert!(
        console.ends_with(" checks, 0 failed\ntiny: done\n"),
        "{console}"
    );
    assert!(console.matches("\nok ").count() > 80, "{console}");
    assert_eq!(end, stopped(StopReason::PowerOff));
}
