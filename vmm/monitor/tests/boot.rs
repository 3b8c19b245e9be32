//! Tiny guests run and end.
#![allow(clippy::unwrap_used)]

mod common;

use cachot_vmm::protocol::{Config, FileRole, StopReason, ToKeeper};
use common::{Monitor, config, elf, file, out, power_off, print, pvh_elf, spin};

fn stopped(reason: StopReason) -> ToKeeper {
    ToKeeper::Stopped { reason }
}

/// Runs a guest to its end.
fn run(config: Config, code: &[u8]) -> (ToKeeper, String) {
    let mut monitor = Monitor::boot(config, &elf(code));
    assert_eq!(monitor.message(), ToKeeper::Running);
    let end = monitor.message();
    assert_eq!(
        monitor.wait().code(),
        Some(i32::from(matches!(end, ToKeeper::Failed { .. })))
    );
    (end, monitor.console())
}

#[test]
fn test_boot_guest_prints_and_powers_off() {
    let code = [print("hello\n"), power_off()].concat();

    let (end, console) = run(config(), &code);

    assert_eq!(end, stopped(StopReason::PowerOff));
    assert_eq!(console, "hello\n");
}

#[test]
fn test_boot_every_way_to_end_has_its_reason() {
    // ud2, without a handler.
    let (end, _) = run(config(), &[0x0f, 0x0b]);
    assert_eq!(end, stopped(StopReason::TripleFault));
    let (end, _) = run(config(), &[out(0x604, 1), spin()].concat());
    assert_eq!(end, stopped(StopReason::Reset));
}

#[test]
fn test_boot_sizes_up_to_memory_above_the_hole() {
    for memory in [16 << 20, 128 << 20, 3 << 30, 5 << 30] {
        let config = Config { memory, ..config() };
        let (end, console) = run(config, &[print("x"), power_off()].concat());
        assert_eq!(
            (end, console),
            (stopped(StopReason::PowerOff), "x".into()),
            "{memory}"
        );
    }
}

#[test]
fn test_boot_several_vcpus() {
    let config = Config {
        cpus: 4,
        ..config()
    };
    let (end, console) = run(config, &[print("x"), power_off()].concat());
    assert_eq!((end, console), (stopped(StopReason::PowerOff), "x".into()));
}

#[test]
fn test_boot_memory_can_be_locked() {
    let config = Config {
        allow_swap: false,
        ..config()
    };
    let (end, _) = run(config, &power_off());
    assert_eq!(end, stopped(StopReason::PowerOff));
}

#[test]
fn test_boot_command_line_and_initrd_are_where_the_zero_page_says() {
    // Prints the first byte of each, through the pointers at 0x228 and 0x218 of the page in rsi.
    let code = [
        // mov dx, 0x3f8
        &[0x66, 0xba, 0xf8, 0x03][..],
        // mov ecx, [rsi + 0x228]; mov al, [rcx]; out dx, al
        &[0x8b, 0x8e, 0x28, 0x02, 0, 0, 0x8a, 0x01, 0xee],
        // mov ecx, [rsi + 0x218]; mov al, [rcx]; out dx, al
        &[0x8b, 0x8e, 0x18, 0x02, 0, 0, 0x8a, 0x01, 0xee],
        &power_off(),
    ]
    .concat();
    let config = Config {
        cmdline: "Line".into(),
        ..config()
    };
    let files = vec![
        (FileRole::Kernel, file(&elf(&code))),
        (FileRole::Initrd, file(b"Disk")),
    ];

    let mut monitor = Monitor::boot_with(config, files);

    assert_eq!(monitor.message(), ToKeeper::Running);
    assert_eq!(monitor.message(), stopped(StopReason::PowerOff));
    assert!(monitor.wait().success());
    assert_eq!(monitor.console(), "LD");
}

#[test]
fn test_boot_kernel_with_only_a_pvh_entry_starts_in_32_bit_mode() {
    let code = [
        // xor eax, eax; inc eax (only a prefix in 64-bit mode); mov edx, 0x3f8
        &[0x31, 0xc0, 0x40, 0xba, 0xf8, 0x03, 0, 0][..],
        // add al, '0'; out dx, al
        &[0x04, b'0', 0xee],
        // mov al, [ebx]; out dx, al: the first byte of the magic number is 'x'
        &[0x8a, 0x03, 0xee],
        // mov eax, [ebx + 24]; mov al, [eax]; out dx, al: the command line
        &[0x8b, 0x43, 24, 0x8a, 0x00, 0xee],
        // mov edx, 0x600; mov al, 0x34; out dx, al
        &[0xba, 0x00, 0x06, 0, 0, 0xb0, 0x34, 0xee],
    ]
    .concat();
    let config = Config {
        cmdline: "Line".into(),
        ..config()
    };
    let mut monitor = Monitor::boot(config, &pvh_elf(&code));

    assert_eq!(monitor.message(), ToKeeper::Running);
    assert_eq!(monitor.message(), stopped(StopReason::PowerOff));
    assert!(monitor.wait().success());
    assert_eq!(monitor.console(), "1xL");
}
