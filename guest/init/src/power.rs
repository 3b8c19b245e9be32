//! The power button, and the end of the machine.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};
use rustix::system::{RebootCommand, reboot};

use crate::root;

/// Size of `struct input_event` on x86-64, in bytes: time (16), type (2), code (2), value (4).
const EVENT: usize = 24;

/// Event type of keys (`EV_KEY`).
const KEYS: u16 = 1;

/// Code of the power button (`KEY_POWER`).
const POWER: u16 = 116;

/// How long processes may take to die of SIGKILL, and how often to look.
const DEATH_WAIT: Duration = Duration::from_secs(2);
const DEATH_PAUSE: Duration = Duration::from_millis(2);

/// Opens every input device; a kernel without any has no power button.
pub fn buttons() -> Vec<File> {
    let Ok(entries) = std::fs::read_dir("/dev/input") else {
        return Vec::new();
    };
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"event"))
        .filter_map(|entry| {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags);
            options.open(entry.path()).ok()
        })
        .collect()
}

/// Whether the power button has been pressed; a device that fails is dropped.
pub fn pressed(buttons: &mut Vec<File>) -> bool {
    let mut pressed = false;
    buttons.retain_mut(|button| {
        let mut events = [0; 16 * EVENT];
        loop {
            match button.read(&mut events) {
                Ok(0) => return false,
                Ok(read) => pressed |= events[..read].chunks_exact(EVENT).any(is_power),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    });
    pressed
}

fn is_power(event: &[u8]) -> bool {
    let field = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    // The value's low half tells a press (1) from a release (0).
    field(16) == KEYS && field(18) == POWER && field(20) == 1
}

/// Ends everything that still runs, writes out what is cached, and switches the machine off.
pub fn off() -> ! {
    // From PID 1 this reaches every other process; that there is none is no error.
    kill_process_group(Pid::INIT, Signal::KILL).ok();
    await_silence();
    rustix::fs::sync();
    if let Err(message) = root::leave() {
        eprintln!("cachot-init: {message}");
    }
    loop {
        // It returns only if the kernel cannot; then nothing is left to do but to wait.
        reboot(RebootCommand::PowerOff).ok();
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Reaps until there is no other process: one that is dying may still have files open for writing.
fn await_silence() {
    let deadline = Instant::now() + DEATH_WAIT;
    while Instant::now() < deadline {
        match wait(WaitOptions::NOHANG) {
            Err(Errno::CHILD) => return,
            Ok(None) => std::thread::sleep(DEATH_PAUSE),
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut event = vec![0; 16];
        event.extend(kind.to_ne_bytes());
        event.extend(code.to_ne_bytes());
        event.extend(value.to_ne_bytes());
        event
    }

    #[test]
    fn test_is_power_only_for_a_press_of_the_power_button() {
        assert!(is_power(&event(KEYS, POWER, 1)));
        assert!(!is_power(&event(KEYS, POWER, 0)));
        assert!(!is_power(&event(KEYS, POWER + 1, 1)));
        assert!(!is_power(&event(0, POWER, 1)));
    }
}
