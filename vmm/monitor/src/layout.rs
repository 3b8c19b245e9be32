//! Where things are in the guest's address spaces.
//!
//! | guest-physical address | holds |
//! |---|---|
//! | `0x0500` | GDT of the entry state |
//! | `0x6000` | `hvm_start_info`, where the kernel is entered by its PVH entry |
//! | `0x7000` | `boot_params`, the "zero page" |
//! | `0x8000-0x8fff` | first stack |
//! | `0x9000-0xefff` | page tables of the entry state |
//! | `0x2_0000` | kernel command line |
//! | `0xe_0000-0xf_efff` | ACPI tables, not RAM for the guest |
//! | `0xf_f000` | the VM generation identifier, likewise |
//! | `0x10_0000` | kernels that may be placed anywhere |
//! | under `0xc000_0000` | RAM; the initial RAM disk lies at its end or under 2 GiB |
//! | `0xd000_0000` | virtio-mmio slots |
//! | `0xfec0_0000`, `0xfee0_0000` | I/O APIC, local APICs |
//! | `0xfffb_c000` | pages that KVM needs for itself on Intel |
//! | from `0x1_0000_0000` | the rest of RAM |

/// Global descriptor table of the entry state.
pub const GDT: u64 = 0x500;
/// `struct hvm_start_info` of the PVH boot protocol.
pub const START_INFO: u64 = 0x6000;
/// `struct boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer; the stack grows down from here.
pub const STACK_TOP: u64 = 0x8ff0;
/// First of the six page-table pages of the entry state.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes, with its terminating zero: `COMMAND_LINE_SIZE` of Linux on x86.
pub const CMDLINE_MAX: usize = 2048;
/// End of conventional memory: what follows belongs to firmware on a PC, and kernels expect that.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// First byte of the ACPI tables: the area that kernels search for the RSDP.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the area for ACPI tables.
pub const ACPI_END: u64 = 0xf_f000;
/// The 16 bytes of the VM generation identifier, in a page of their own behind the tables.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Where memory above the first megabyte begins.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// First virtio-mmio slot.
pub const MMIO_START: u64 = 0xd000_0000;
/// Interrupt (GSI) of the first virtio-mmio slot; those of the others follow.
pub const MMIO_GSI: u32 = 5;
/// Most virtio-mmio slots: their interrupts end before [`POWER_BUTTON_GSI`].
pub const MMIO_SLOTS: usize = 15;
/// Interrupt of the generic event device that says that the power button was pressed.
pub const POWER_BUTTON_GSI: u32 = 20;
/// Interrupt of the generic event device that says that the VM generation identifier has changed.
pub const GENERATION_GSI: u32 = 21;

/// I/O APIC registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages for KVM's own use on Intel (`KVM_SET_TSS_ADDR`), where no device and no RAM is.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page for KVM's own use on Intel (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Interrupt of the serial console.
pub const CONSOLE_GSI: u32 = 4;
