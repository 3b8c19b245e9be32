//! The ACPI tables: what a kernel finds instead of PCI and legacy devices (ACPI specification 6.5).
//!
//! The machine is a hardware-reduced one: no fixed power-management registers and no system control interrupt,
//! but sleep and reset registers in I/O space and a generic event device for the power button.

mod dsdt;
mod fixed;
pub mod generation;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::layout;

const OEM_ID: [u8; 6] = *b"CACHOT";
const OEM_TABLE_ID: [u8; 8] = *b"CACHOTVM";
const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this, as the RSDP must.
const ALIGNMENT: u64 = 16;

/// Failures of [`write_tables`].
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// There are more tables than room for them.
    #[error("the ACPI tables take more than their {} KiB: give the guest fewer vCPUs (--cpus)",
        (layout::ACPI_END - layout::ACPI_START) >> 10)]
    TooLong,
    /// The area is not RAM.
    #[error("the ACPI tables do not fit guest memory")]
    Memory(#[from] GuestMemoryError),
    /// No random bytes.
    #[error("the host has no random bytes for the VM generation identifier")]
    Random(#[source] std::io::Error),
}

/// Writes the tables of a machine with `cpus` vCPUs and `slots` virtio-mmio devices, and returns the
/// address of the RSDP.
///
/// # Errors
/// See [`AcpiError`].
pub fn write_tables<M: GuestMemory>(
    mem: &M,
    cpus: u8,
    slots: usize,
) -> Result<GuestAddress, AcpiError> {
    let rsdp = GuestAddress(layout::ACPI_START);
    let mut writer = Writer {
        mem,
        next: layout::ACPI_START + Rsdp::len() as u64,
    };
    let dsdt = writer.append(&dsdt::table(slots))?;
    let fadt = writer.append(&fixed::fadt(dsdt))?;
    let madt = writer.append(&fixed::madt(cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.0);
    xsdt.add_entry(madt.0);
    let xsdt = writer.append(&xsdt)?;
    mem.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt.0)), rsdp)?;
    generation::renew(mem)?;
    Ok(rsdp)
}

struct Writer<'a, M> {
    mem: &'a M,
    next: u64,
}

impl<M: GuestMemory> Writer<'_, M> {
    fn append(&mut self, table: &dyn Aml) -> Result<GuestAddress, AcpiError> {
        let table = bytes(table);
        let start = self.next.next_multiple_of(ALIGNMENT);
        let end = start + table.len() as u64;
        if end > layout::ACPI_END {
            return Err(AcpiError::TooLong);
        }
        self.mem.write_slice(&table, GuestAddress(start))?;
        self.next = end;
        Ok(GuestAddress(start))
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_devices::memory::{GuestRam, Swap};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn read(mem: &GuestRam, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        mem.read_slice(&mut bytes, GuestAddress(address))
            .expect("in RAM");
        bytes
    }

    fn table(mem: &GuestRam, address: u64) -> Vec<u8> {
        let header = read(mem, address, 36);
        let len = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        read(mem, address, len.try_into().expect("short"))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn test_write_tables_link_and_sum_to_zero() {
        let mem = GuestRam::new(16 << 20, Swap::Ignored).expect("memory");

        let rsdp = write_tables(&mem, 4, 3).expect("they fit");

        let root = read(&mem, rsdp.0, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
        let xsdt = table(&mem, u64_at(&root, 24));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&mem, u64_at(&xsdt, 36));
        assert_eq!((&fadt[..4], sum(&fadt)), (&b"FACP"[..], 0));
        let madt = table(&mem, u64_at(&xsdt, 44));
        assert_eq!((&madt[..4], sum(&madt)), (&b"APIC"[..], 0));
        // X_DSDT is at offset 140.
        let dsdt = table(&mem, u64_at(&fadt, 140));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
    }

    #[test]
    fn test_write_tables_largest_machine_fits() {
        let mem = GuestRam::new(16 << 20, Swap::Ignored).expect("memory");

        assert!(write_tables(&mem, u8::MAX, layout::MMIO_SLOTS).is_ok());
    }
}
