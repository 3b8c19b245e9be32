//! `struct boot_params`: what the kernel learns at its entry (`Documentation/arch/x86/boot.rst`,
//! `Documentation/arch/x86/zero-page.rst`).

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion};

use cachot_devices::memory::GuestRam;
use vm_memory::GuestMemoryBackend;

use super::Initrd;
use super::kernel::Kernel;
use crate::layout;

/// `boot_flag`, `header`: magic numbers of the setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// `type_of_loader`: a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Memory types of the BIOS function 0xe820.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes the zero page.
pub fn write(
    mem: &GuestRam,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    cmdline_len: usize,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params {
        acpi_rsdp_addr: rsdp.0,
        ..Default::default()
    };
    if let Some(header) = kernel.header {
        params.hdr = header;
    }
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low(layout::CMDLINE);
    params.hdr.cmdline_size = low(cmdline_len as u64);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.address);
        params.hdr.ramdisk_size = low(initrd.len);
    }
    for (slot, entry) in params.e820_table.iter_mut().zip(memory_map(mem)) {
        *slot = entry;
        params.e820_entries += 1;
    }
    mem.write_obj(params, GuestAddress(layout::ZERO_PAGE))
}

/// All that is put into 32-bit fields lies below 4 GiB, which its callers have checked.
fn low(number: u64) -> u32 {
    u32::try_from(number).expect("the address or length was checked to be below 4 GiB")
}

/// RAM, without the firmware's part of the first megabyte.
pub fn memory_map(mem: &GuestRam) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, kind| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: kind,
    };
    let mut map = vec![
        entry(0, layout::LOW_RAM_END, E820_RAM),
        entry(layout::LOW_RAM_END, layout::HIGH_RAM_START, E820_RESERVED),
    ];
    for region in mem.iter() {
        let start = region.start_addr().0.max(layout::HIGH_RAM_START);
        map.push(entry(start, region.start_addr().0 + region.len(), E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Entry;
    use cachot_devices::memory::Swap;

    fn ram(size: u64) -> GuestRam {
        GuestRam::new(size, Swap::Ignored).expect("memory")
    }

    fn map(size: u64) -> Vec<(u64, u64, u32)> {
        memory_map(&ram(size))
            .iter()
            .map(|entry| (entry.addr, entry.addr + entry.size, entry.r#type))
            .collect()
    }

    #[test]
    fn test_memory_map_small_and_around_the_hole() {
        let first = [(0, 0x9_fc00, 1), (0x9_fc00, 0x10_0000, 2)];
        assert_eq!(
            map(128 << 20),
            [&first[..], &[(0x10_0000, 128 << 20, 1)]].concat()
        );
        assert_eq!(
            map(4 << 30),
            [
                &first[..],
                &[(0x10_0000, 0xc000_0000, 1), (1 << 32, 5 << 30, 1)]
            ]
            .concat()
        );
    }

    #[test]
    fn test_write_fields_are_at_the_offsets_of_the_protocol() {
        let mem = ram(16 << 20);
        let kernel = Kernel {
            entry: Entry::Linux64(GuestAddress(0x10_0000)),
            end: 0x20_0000,
            header: None,
        };
        let initrd = Some(Initrd {
            address: 0xf0_0000,
            len: 0x1_2345,
        });

        write(&mem, &kernel, initrd, 7, GuestAddress(0xe_0000)).expect("it fits");

        let read = |at: u64| {
            mem.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE + at))
                .expect("RAM")
        };
        assert_eq!(read(0x70), 0xe_0000);
        assert_eq!(read(0x1e8) & 0xff, 3);
        assert_eq!(read(0x202), HEADER_MAGIC);
        assert_eq!(read(0x210) & 0xff, 0xff);
        assert_eq!(read(0x218), 0xf0_0000);
        assert_eq!(read(0x21c), 0x1_2345);
        assert_eq!(read(0x228), 0x2_0000);
        assert_eq!(read(0x238), 7);
        assert_eq!(read(0x2d0), 0);
        assert_eq!(read(0x2d8), 0x9_fc00);
        assert_eq!(read(0x2e0), E820_RAM);
    }
}
