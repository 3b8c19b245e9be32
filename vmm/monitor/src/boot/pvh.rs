//! `struct hvm_start_info`: what a kernel learns at its PVH entry (Xen, `docs/misc/pvh.pandoc` and
//! `xen/include/public/arch-x86/hvm/start_info.h`).

use cachot_devices::memory::GuestRam;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::Initrd;
use super::params::memory_map;
use crate::layout;

/// The version that has a memory map.
const VERSION: u32 = 1;

/// Where the list of modules is: behind the structure.
const MODULES: u64 = layout::START_INFO + 0x40;
/// Where the memory map is: behind the only module.
const MEMORY_MAP: u64 = MODULES + 0x20;

/// Writes the structure and what it points to.
pub fn write(
    mem: &GuestRam,
    initrd: Option<Initrd>,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp.0,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.len,
            ..Default::default()
        };
        mem.write_obj(module, GuestAddress(MODULES))?;
        info.modlist_paddr = MODULES;
        info.nr_modules = 1;
    }
    for (address, entry) in (MEMORY_MAP..).step_by(24).zip(memory_map(mem)) {
        // Its types are those of the BIOS function 0xe820.
        let entry = hvm_memmap_table_entry {
            addr: entry.addr,
            size: entry.size,
            type_: entry.r#type,
            reserved: 0,
        };
        mem.write_obj(entry, GuestAddress(address))?;
        info.memmap_entries += 1;
    }
    mem.write_obj(info, GuestAddress(layout::START_INFO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_devices::memory::Swap;

    #[test]
    fn test_write_fields_are_at_the_offsets_of_the_protocol() {
        let mem = GuestRam::new(16 << 20, Swap::Ignored).expect("memory");
        let initrd = Some(Initrd {
            address: 0xf0_0000,
            len: 0x1_2345,
        });

        write(&mem, initrd, GuestAddress(0xe_0000)).expect("it fits");

        let read = |at: u64| mem.read_obj::<u64>(GuestAddress(at)).expect("RAM");
        let info = |at: u64| read(layout::START_INFO + at);
        assert_eq!(info(0), 1 << 32 | 0x336e_c578);
        // No flags, one module.
        assert_eq!(info(8), 1 << 32);
        assert_eq!((read(info(16)), read(info(16) + 8)), (0xf0_0000, 0x1_2345));
        assert_eq!((info(24), info(32)), (layout::CMDLINE, 0xe_0000));
        assert_eq!(info(48), 3);
        assert_eq!(
            (read(info(40)), read(info(40) + 8), read(info(40) + 16)),
            (0, 0x9_fc00, 1)
        );
    }
}
