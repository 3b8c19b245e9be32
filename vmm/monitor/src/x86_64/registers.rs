//! The first vCPU's registers at the kernel's entry point, and the tables in guest memory that they refer
//! to (Linux, `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"; Xen, `docs/misc/pvh.pandoc`).

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::boot::Entry;
use crate::layout;

/// Control register bits (Intel SDM, volume 3A, "Control Registers" and "Extended Feature Enable Register").
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Page-table entry bits: present, writable, a 2 MiB page.
const PTE_PRESENT: u64 = 1;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_HUGE: u64 = 1 << 7;

/// Selectors that Linux asks for: `__BOOT_CS` and `__BOOT_DS`; the task state's is the next.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Failures of setting a vCPU up.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// KVM refused.
    #[error("KVM refused the registers of a vCPU")]
    Kvm(#[from] kvm_ioctls::Error),
    /// The tables are not in RAM.
    #[error("the tables of the entry state do not fit guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// Sets the floating-point state that the ABI expects: what `FNINIT` sets, and all SSE exceptions masked.
///
/// # Errors
/// When KVM refuses.
pub fn set_fpu(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    })
}

/// Sets the first vCPU up for the kernel's first instruction.
///
/// # Errors
/// See [`RegisterError`].
pub fn set_entry<M: GuestMemory>(
    vcpu: &VcpuFd,
    mem: &M,
    entry: Entry,
) -> Result<(), RegisterError> {
    let (address, code) = match entry {
        Entry::Linux64(address) => (address, flat_segment(CODE_SELECTOR, 0xb, true)),
        Entry::Pvh(address) => (address, flat_segment(CODE_SELECTOR, 0xb, false)),
    };
    let data = flat_segment(DATA_SELECTOR, 0x3, false);
    let task = kvm_segment {
        selector: TASK_SELECTOR,
        limit: 0x67,
        // A busy 64-bit task state segment.
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    let gdt = [
        0,
        0,
        descriptor(&code),
        descriptor(&data),
        descriptor(&task),
        0,
    ];
    for (address, entry) in (layout::GDT..).step_by(8).zip(gdt) {
        mem.write_obj(entry, GuestAddress(address))?;
    }

    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 8 * 6 - 1;
    // No interrupt descriptors: an exception before the kernel has its own is a triple fault.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = task;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
    // Interrupts are off. Bit 1 of the flags is always set.
    let mut regs = kvm_regs {
        rflags: 2,
        rip: address.0,
        ..Default::default()
    };
    match entry {
        Entry::Linux64(_) => {
            write_page_tables(mem)?;
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rsp = layout::STACK_TOP;
            regs.rbp = layout::STACK_TOP;
            regs.rsi = layout::ZERO_PAGE;
        }
        Entry::Pvh(_) => regs.rbx = layout::START_INFO,
    }
    vcpu.set_sregs(&sregs)?;
    Ok(vcpu.set_regs(&regs)?)
}

/// A segment over all of memory; bits of `type_` are those of a descriptor, `long` is for 64-bit code.
fn flat_segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        selector,
        base: 0,
        limit: u32::MAX,
        type_,
        present: 1,
        s: 1,
        l: long.into(),
        db: (!long).into(),
        g: 1,
        ..Default::default()
    }
}

/// The descriptor of a segment with base 0 (Intel SDM, volume 3A, "Segment Descriptors").
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    limit & 0xffff
        | u64::from(segment.type_) << 40
        | u64::from(segment.s) << 44
        | u64::from(segment.dpl) << 45
        | u64::from(segment.present) << 47
        | (limit >> 16 & 0xf) << 48
        | u64::from(segment.l) << 53
        | u64::from(segment.db) << 54
        | u64::from(segment.g) << 55
}

/// Four levels that map the first 4 GiB to themselves in 2 MiB pages: RAM, and the devices in the hole.
fn write_page_tables<M: GuestMemory>(mem: &M) -> Result<(), GuestMemoryError> {
    const PAGE: u64 = 0x1000;
    const DIRECTORIES: u64 = 4;
    let directory_pointers = layout::PAGE_TABLES + PAGE;
    let first_directory = directory_pointers + PAGE;
    let link = |to| to | PTE_PRESENT | PTE_WRITABLE;

    mem.write_obj(link(directory_pointers), GuestAddress(layout::PAGE_TABLES))?;
    for n in 0..DIRECTORIES {
        let entry = link(first_directory + n * PAGE);
        mem.write_obj(entry, GuestAddress(directory_pointers + n * 8))?;
    }
    let mut pages = Vec::with_capacity(4 * 0x1000);
    for n in 0..DIRECTORIES * 512 {
        pages.extend_from_slice(&(link(n << 21) | PTE_HUGE).to_le_bytes());
    }
    mem.write_slice(&pages, GuestAddress(first_directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_devices::memory::{GuestRam, Swap};

    #[test]
    fn test_descriptor_matches_linux_boot_descriptors() {
        // What Linux itself uses for __BOOT_CS (64-bit) and __BOOT_DS.
        assert_eq!(
            descriptor(&flat_segment(CODE_SELECTOR, 0xb, true)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat_segment(DATA_SELECTOR, 0x3, false)),
            0x00cf_9300_0000_ffff
        );
    }

    #[test]
    fn test_write_page_tables_maps_every_address_to_itself() {
        let mem = GuestRam::new(16 << 20, Swap::Ignored).expect("memory");

        write_page_tables(&mem).expect("they fit");

        for address in [
            0_u64,
            0x20_0000,
            0x1234_5678,
            0xc000_0000,
            0xd000_0000,
            0xffff_ffff,
        ] {
            let mut table = layout::PAGE_TABLES;
            for shift in [39, 30] {
                let index = address >> shift & 0x1ff;
                let entry: u64 = mem
                    .read_obj(GuestAddress(table + 8 * index))
                    .expect("in RAM");
                assert_eq!(entry & 0xfff, PTE_PRESENT | PTE_WRITABLE);
                table = entry & !0xfff;
            }
            let entry: u64 = mem
                .read_obj(GuestAddress(table + 8 * (address >> 21 & 0x1ff)))
                .expect("in RAM");
            assert_eq!(
                entry,
                address & !0x1f_ffff | PTE_HUGE | PTE_WRITABLE | PTE_PRESENT
            );
        }
        let beyond: u64 = mem
            .read_obj(GuestAddress(layout::PAGE_TABLES + 0x6000))
            .expect("in RAM");
        assert_eq!(beyond, 0);
    }
}
