//! The serial console: a 16550 whose output goes to a file, up to a limit.
//!
//! The console has no input: the workload's streams run over vsock.

use std::fmt;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// First I/O port of the console, COM1.
pub const PORT: u16 = 0x3f8;

/// Number of I/O ports.
pub const PORTS: u16 = 8;

/// Bytes of output that are kept. What follows is dropped: the guest must not fill the host's disk.
pub const MAX_OUTPUT: u64 = 16 << 20;

const DROPPED: &[u8] = b"\n[console output over the limit of 16 MiB is dropped]\n";

/// The console. `W` writes without waiting long, because a vCPU waits for it.
pub struct Console<W: Write> {
    uart: Serial<Line, NoEvents, Bounded<W>>,
}

/// What a snapshot holds of a console: the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are SerialState's")]
pub struct ConsoleState {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub in_buffer: Vec<u8>,
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The interrupt's eventfd cannot be made.
    #[error("cannot make the console's interrupt line")]
    Line(#[source] io::Error),
    /// The saved state has more input than the device's queue holds.
    #[error("the console's saved state is not valid: its input is longer than the queue")]
    Input,
}

impl<W: Write> Console<W> {
    /// A console after power-on.
    ///
    /// # Errors
    /// [`ConsoleError::Line`].
    pub fn new(out: W) -> Result<Self, ConsoleError> {
        Self::from_registers(&SerialState::default(), out)
    }

    /// A console as it was saved. An interrupt that was pending is raised again.
    ///
    /// # Errors
    /// See [`ConsoleError`].
    pub fn restore(state: ConsoleState, out: W) -> Result<Self, ConsoleError> {
        Self::from_registers(&SerialState::from(state), out)
    }

    fn from_registers(state: &SerialState, out: W) -> Result<Self, ConsoleError> {
        let line =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(ConsoleError::Line)?;
        let out = Bounded {
            out,
            left: MAX_OUTPUT,
        };
        let uart =
            Serial::from_state(state, Line(line), NoEvents, out).map_err(|error| match error {
                vm_superio::serial::Error::FullFifo => ConsoleError::Input,
                vm_superio::serial::Error::Trigger(error)
                | vm_superio::serial::Error::IOError(error) => ConsoleError::Line(error),
            })?;
        Ok(Self { uart })
    }

    /// The interrupt line, for `KVM_IRQFD`.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.uart.interrupt_evt().0
    }

    /// Guest read of the register `offset` ports after [`PORT`].
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// Guest write of the register `offset` ports after [`PORT`].
    pub fn write(&mut self, offset: u8, value: u8) {
        // The output never fails and the line is an eventfd, so what is left is a full input queue in
        // loopback mode, where a real device loses the byte as well.
        drop(self.uart.write(offset, value));
    }

    /// The console as data.
    pub fn save(&self) -> ConsoleState {
        self.uart.state().into()
    }
}

impl<W: Write> fmt::Debug for Console<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("state", &self.save())
            .finish()
    }
}

impl From<SerialState> for ConsoleState {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl From<ConsoleState> for SerialState {
    fn from(state: ConsoleState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

/// The interrupt line: an eventfd that KVM watches.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full: the line is raised already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

/// Passes on a limited number of bytes, then says so and drops the rest. Never fails: a full disk, a full pipe or one
/// that nobody reads must not stop the guest.
struct Bounded<W> {
    out: W,
    left: u64,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left > 0 {
            let fits = usize::try_from(self.left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.left -= fits as u64;
            drop(self.out.write_all(&bytes[..fits]));
            if self.left == 0 {
                drop(self.out.write_all(DROPPED));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        drop(self.out.flush());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u8 = 0;
    const IER: u8 = 1;
    const IIR: u8 = 2;
    const MCR: u8 = 4;
    const LSR: u8 = 5;
    const LOOPBACK: u8 = 0x10;

    fn raised(console: &Console<impl Write>) -> bool {
        console.line().read().is_ok()
    }

    #[test]
    fn test_write_data_reaches_the_output() {
        let mut out = Vec::new();
        let mut console = Console::new(&mut out).expect("an eventfd");
        for byte in b"hello\n" {
            assert_eq!(console.read(LSR) & 0x20, 0x20, "the transmitter is empty");
            console.write(DATA, *byte);
        }
        drop(console);
        assert_eq!(out, b"hello\n");
    }

    #[test]
    fn test_write_interrupt_enabled_raises_the_line() {
        let mut console = Console::new(Vec::new()).expect("an eventfd");
        console.write(DATA, b'a');
        assert!(!raised(&console));

        console.write(IER, 2);
        console.write(DATA, b'a');

        assert!(raised(&console));
        assert_eq!(console.read(IIR) & 0x0f, 2, "transmitter empty");
    }

    #[test]
    fn test_write_failing_output_is_dropped() {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("the device exists");
        let mut console = Console::new(full).expect("an eventfd");
        console.write(DATA, b'a');
        assert_eq!(console.read(LSR) & 0x20, 0x20);
    }

    #[test]
    fn test_write_what_a_pipe_does_not_take_is_dropped() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let flags = rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&writer, flags).expect("a flag");
        let mut bounded = Bounded {
            out: writer,
            left: MAX_OUTPUT,
        };
        let sent = 2 << 20;

        for _ in 0..sent / 512 {
            bounded.write_all(&[b'a'; 512]).expect("never fails");
        }

        let mut taken = [0; 64];
        io::Read::read_exact(&mut reader, &mut taken).expect("the pipe holds more");
        assert_eq!(taken, [b'a'; 64]);
        drop(reader);
        bounded.write_all(b"b").expect("never fails");
    }

    #[test]
    fn test_write_over_the_limit_is_dropped_with_a_notice() {
        let mut out = Vec::new();
        let mut bounded = Bounded {
            out: &mut out,
            left: 5,
        };
        for part in [&b"abc"[..], b"defg", b"hij"] {
            bounded.write_all(part).expect("never fails");
        }
        assert_eq!(out, [b"abcde", DROPPED].concat());
        let notice = String::from_utf8_lossy(DROPPED);
        assert!(notice.contains(&format!("{} MiB", MAX_OUTPUT >> 20)));
    }

    #[test]
    fn test_save_restore_round_trip() {
        let mut console = Console::new(Vec::new()).expect("an eventfd");
        console.write(MCR, LOOPBACK);
        console.write(DATA, b'x');
        console.write(MCR, 0x08);
        console.write(IER, 3);
        console.write(7, 0x5a);
        console.write(DATA, b'a');
        let state = console.save();
        assert_eq!(
            (state.in_buffer.as_slice(), state.scratch),
            (&b"x"[..], 0x5a)
        );

        let text = serde_json::to_string(&state).expect("plain data");
        let state: ConsoleState = serde_json::from_str(&text).expect("it reads back");
        let mut restored = Console::restore(state, Vec::new()).expect("a valid state");

        assert_eq!(restored.save(), console.save());
        assert!(raised(&restored), "the pending interrupt is raised again");
        assert_eq!(restored.read(DATA), b'x');
    }

    #[test]
    fn test_restore_too_much_input_is_refused() {
        let mut state = Console::new(Vec::new()).expect("an eventfd").save();
        state.in_buffer = vec![0; 64];
        assert!(Console::restore(state.clone(), Vec::new()).is_ok());
        state.in_buffer = vec![0; 65];
        let restored = Console::restore(state, Vec::new());
        assert!(matches!(restored, Err(ConsoleError::Input)));
    }

    #[test]
    fn test_restore_any_registers_do_not_panic() {
        for value in 0..=u8::MAX {
            let state = ConsoleState {
                baud_divisor_low: value,
                baud_divisor_high: value,
                interrupt_enable: value,
                interrupt_identification: value,
                line_control: value,
                line_status: value,
                modem_control: value,
                modem_status: value,
                scratch: value,
                in_buffer: vec![value; 64],
            };
            let mut console = Console::restore(state, Vec::new()).expect("any byte is a register");
            for offset in 0..=u8::MAX {
                console.read(offset);
                console.write(offset, value);
            }
        }
    }
}
