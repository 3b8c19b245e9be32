//! Who answers when the guest touches a port or a device's memory.
//!
//! Addresses that nobody answers read as all ones, and writes to them are lost, as on a PC.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use cachot_devices::power::{self, PowerRequest};
use cachot_devices::serial::{self, Console, ConsoleState};
use cachot_devices::virtio::mmio::{MmioSlot, SLOT_SIZE};

use crate::layout;
use crate::metrics::{Milestone, Timeline};

/// Where console output goes.
pub type Output = Box<dyn Write + Send>;

/// Ports and device memory of one machine, shared by its vCPUs.
pub struct Bus {
    console: Mutex<Console<Output>>,
    slots: Vec<MmioSlot>,
    timeline: Arc<Timeline>,
}

impl Bus {
    /// A bus with a console at COM1 and virtio-mmio devices from slot 0 on.
    #[must_use]
    pub fn new(console: Console<Output>, slots: Vec<MmioSlot>, timeline: Arc<Timeline>) -> Self {
        Self {
            console: Mutex::new(console),
            slots,
            timeline,
        }
    }

    /// The console as data. vCPUs rest.
    #[must_use]
    pub fn save_console(&self) -> ConsoleState {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.save()
    }

    /// Guest read of a port. Several bytes are a string instruction's, or one wide access, which
    /// devices with byte registers answer in the same way.
    pub fn io_read(&self, port: u16, data: &mut [u8]) {
        match serial_register(port) {
            Some(register) => {
                let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
                data.fill_with(|| console.read(register));
            }
            None if port == power::SLEEP_CONTROL_PORT || port == power::SLEEP_STATUS_PORT => {
                data.fill(0);
            }
            None => data.fill(0xff),
        }
    }

    /// Guest write to a port; returns what it asks of the machine.
    pub fn io_write(&self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        let Some(register) = serial_register(port) else {
            return data.iter().find_map(|byte| power::write(port, *byte));
        };
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in data {
            console.write(register, *byte);
        }
        if register == 0 {
            self.timeline.reach(Milestone::FirstOutput);
        }
        None
    }

    /// Guest read of an address that is not RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.slot(address) {
            Some((slot, offset)) => slot.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Guest write to an address that is not RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.slot(address) {
            slot.write(offset, data);
        }
    }

    fn slot(&self, address: u64) -> Option<(&MmioSlot, u64)> {
        let offset = address.checked_sub(layout::MMIO_START)?;
        let slot = self.slots.get(usize::try_from(offset / SLOT_SIZE).ok()?)?;
        Some((slot, offset % SLOT_SIZE))
    }
}

fn serial_register(port: u16) -> Option<u8> {
    let offset = port.checked_sub(serial::PORT)?;
    if offset < serial::PORTS {
        u8::try_from(offset).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn bus() -> (Bus, Shared) {
        let out = Shared::default();
        let console = Console::new(Box::new(out.clone()) as Output).expect("an eventfd");
        (
            Bus::new(console, Vec::new(), Arc::new(Timeline::begin())),
            out,
        )
    }

    #[test]
    fn test_unknown_addresses_read_as_ones_and_lose_writes() {
        let (bus, out) = bus();
        let mut data = [0; 4];
        bus.io_read(0x80, &mut data);
        assert_eq!(data, [0xff; 4]);
        let mut data = [0; 8];
        for address in [0, layout::MMIO_START, layout::MMIO_START + 0x1000, u64::MAX] {
            bus.mmio_read(address, &mut data);
            assert_eq!(data, [0xff; 8]);
            bus.mmio_write(address, &data);
        }
        assert_eq!(bus.io_write(0x80, b"x"), None);
        assert!(out.0.lock().expect("no panic").is_empty());
    }

    #[test]
    fn test_console_string_output_arrives_in_order() {
        let (bus, out) = bus();
        assert_eq!(bus.timeline.report().first_output, None);

        bus.io_write(serial::PORT, b"hello");

        assert_eq!(*out.0.lock().expect("no panic"), b"hello");
        assert!(bus.timeline.report().first_output.is_some());
    }

    #[test]
    fn test_power_ports_ask_for_off_and_reset() {
        let (bus, _) = bus();
        assert_eq!(bus.io_write(0x600, &[0x34]), Some(PowerRequest::Off));
        assert_eq!(bus.io_write(0x604, &[1]), Some(PowerRequest::Reset));
        let mut status = [0xff];
        bus.io_read(0x601, &mut status);
        assert_eq!(status, [0]);
    }
}
