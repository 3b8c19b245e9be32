//! The DSDT: devices that cannot be found by asking.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use cachot_devices::power::SLEEP_TYPE_OFF;
use cachot_devices::serial;
use cachot_devices::virtio::mmio::SLOT_SIZE;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::layout;

/// Notification value of a pressed button (ACPI, "Power Button Notification Values").
const BUTTON_PRESSED: u8 = 0x80;
/// Notification value of a changed identifier (Microsoft, "Virtual Machine Generation ID").
const GENERATION_CHANGED: u8 = 0x80;

/// Length of a table's header.
const HEADER_LEN: u32 = 36;
/// Revision 2 and later: integers have 64 bits.
const REVISION: u8 = 6;

/// Describes COM1, the power button, the generation identifier, the event device of both, and `slots` virtio-mmio devices.
pub fn table(slots: usize) -> Sdt {
    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_LEN,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    // Soft-off: what the driver writes to the sleep control register as SLP_TYP.
    dsdt.append_slice(&bytes(&Name::new(
        "_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_OFF]),
    )));
    dsdt.append_slice(&bytes(&Scope::new(
        "\\_SB_".into(),
        vec![&SerialPort, &PowerButton, &GenerationId, &EventDevice],
    )));
    for slot in 0..slots.min(layout::MMIO_SLOTS) {
        dsdt.append_slice(&bytes(&Scope::new(
            "\\_SB_".into(),
            vec![&VirtioMmio(slot)],
        )));
    }
    dsdt
}

/// An interrupt that is raised by an edge, active high, and not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &0_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &IO::new(serial::PORT, serial::PORT, 1, SERIAL_PORTS),
                        &edge(layout::CONSOLE_GSI),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(
            "PWRB".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                &Name::new("_UID".into(), &0_u8),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Tells the guest that it is a copy of another one: 16 bytes in memory that are new then, and an event.
struct GenerationId;

impl Aml for GenerationId {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(
            "VGEN".into(),
            vec![
                &Name::new("_HID".into(), &"CACH0001"),
                // What drivers look for.
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new(
                    "ADDR".into(),
                    &Package::new(vec![&GENERATION_ID_LOW, &0_u32]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The generic event device: each of its interrupts is an event of one device.
struct EventDevice;

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &0_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &edge(layout::POWER_BUTTON_GSI),
                        &edge(layout::GENERATION_GSI),
                    ]),
                ),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![
                        &If::new(
                            &Equal::new(&Arg(0), &layout::POWER_BUTTON_GSI),
                            vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &BUTTON_PRESSED)],
                        ),
                        &If::new(
                            &Equal::new(&Arg(0), &layout::GENERATION_GSI),
                            vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &GENERATION_CHANGED)],
                        ),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The virtio-mmio device in one slot. `LNRO0005` is the id that Linux's driver looks for.
struct VirtioMmio(usize);

impl Aml for VirtioMmio {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let number = u32::try_from(self.0).expect("there are under 16 slots");
        let base = mmio_base(number);
        Device::new(
            Path::new(&format!("VR{number:02}")),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &number),
                // The device is coherent with the processors' caches.
                &Name::new("_CCA".into(), &1_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, base, SLOT_LEN),
                        &edge(layout::MMIO_GSI + number),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

// All of these are constants that fit.
#[allow(clippy::cast_possible_truncation)]
const SERIAL_PORTS: u8 = serial::PORTS as u8;
#[allow(clippy::cast_possible_truncation)]
const GENERATION_ID_LOW: u32 = layout::GENERATION_ID as u32;
#[allow(clippy::cast_possible_truncation)]
const SLOT_LEN: u32 = SLOT_SIZE as u32;
#[allow(clippy::cast_possible_truncation)]
const fn mmio_base(number: u32) -> u32 {
    layout::MMIO_START as u32 + number * SLOT_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(haystack: &[u8], needle: &[u8]) -> bool {
        haystack
            .windows(needle.len())
            .any(|window| window == needle)
    }

    #[test]
    fn test_table_names_every_device_once() {
        let dsdt = bytes(&table(4));

        for name in [
            &b"COM1"[..],
            b"GED_",
            b"VR00",
            b"VR03",
            b"LNRO0005",
            b"ACPI0013",
            b"VM_Gen_Counter",
            b"_S5_",
        ] {
            assert!(contains(&dsdt, name), "{}", String::from_utf8_lossy(name));
        }
        assert!(!contains(&dsdt, b"VR04"));
        assert_eq!(
            dsdt.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
    }

    #[test]
    fn test_virtio_mmio_resources_of_slot_two() {
        let device = bytes(&VirtioMmio(2));

        // Memory32Fixed (6.4.3.4): writable, base, length.
        let memory = [0x86, 9, 0, 1, 0x00, 0x20, 0x00, 0xd0, 0x00, 0x10, 0, 0];
        // Extended interrupt (6.4.3.6): consumer, edge, active high, exclusive; one number.
        let interrupt = [0x89, 6, 0, 0b0011, 1, 7, 0, 0, 0];
        assert!(contains(&device, &memory), "{device:x?}");
        assert!(contains(&device, &interrupt), "{device:x?}");
    }
}
