//! FADT and MADT: registers, processors and interrupt controllers.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use cachot_devices::power;
use vm_memory::GuestAddress;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// `IAPC_BOOT_ARCH` (table 5.11): neither VGA (bit 2) nor a CMOS clock (bit 5), nor, as their bits are
/// clear, legacy devices or a keyboard controller.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// The fixed description table of a hardware-reduced machine.
pub fn fadt(dsdt: GuestAddress) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .dsdt_64(dsdt.0);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(power::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn port(number: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        number.into(),
    )
}

/// One local APIC a vCPU, and the I/O APIC.
pub fn madt(cpus: u8) -> MADT {
    let controller = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, controller);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::bytes;

    #[test]
    fn test_fadt_registers_are_at_the_offsets_of_the_specification() {
        let fadt = bytes(&fadt(GuestAddress(0xe_1234)));

        let flags = u32::from_le_bytes(fadt[112..116].try_into().expect("four bytes"));
        assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 4 | 1 << 5);
        assert_eq!(fadt[109..111], [0x24, 0]);
        // RESET_REG, RESET_VALUE, then SLEEP_CONTROL_REG and SLEEP_STATUS_REG: I/O space, 8 bits, bytes.
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 0x04, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[128], 1);
        assert_eq!(fadt[140..148], [0x34, 0x12, 0xe, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 6, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn test_madt_lists_every_processor() {
        let madt = bytes(&madt(2));

        assert_eq!(madt[36..40], layout::LOCAL_APIC.to_le_bytes());
        assert_eq!(madt[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
        assert_eq!(madt[52..60], [0, 8, 1, 1, 1, 0, 0, 0]);
        assert_eq!(madt[60..72], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(madt.len(), 72);
    }
}
