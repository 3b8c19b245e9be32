//! Tiny guests run and end; impossible ones are refused.
#![allow(clippy::unwrap_used)]

mod common;

use cachot_vmm::protocol::{StopReason, ToKeeper};
use common::{Monitor, config, elf, power_off, print};

fn stopped(reason: StopReason) -> ToKeeper {
    ToKeeper::Stopped { reason }
}

#[test]
fn test_boot_guest_prints_and_powers_off() {
    let code = [print("hello\n"), power_off()].concat();
    let mut monitor = Monitor::boot(config(), &elf(&code));

    assert_eq!(monitor.message(), ToKeeper::Running);
    assert_eq!(monitor.message(), stopped(StopReason::PowerOff));
    assert_eq!(monitor.wait().code(), Some(0));
    assert_eq!(monitor.console(), "hello\n");
}
