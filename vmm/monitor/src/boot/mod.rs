//! From a kernel file to a guest that can start: image, initial RAM disk, command line and boot parameters
//! in guest memory.

mod kernel;
mod params;
mod pvh;

use std::fs::File;
use std::io::{self, Seek};

use cachot_devices::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::layout;
use kernel::Kernel;

/// Highest address that the last byte of an initial RAM disk may have: the limit that Linux states for itself
/// (`initrd_addr_max`), and has had on x86 since boot protocol 2.03.
const INITRD_ADDR_MAX: u64 = 0x7fff_ffff;

/// Why a guest cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither an ELF file nor a bzImage.
    #[error(
        "the kernel file is not a kernel: give an uncompressed ELF image (vmlinux) or a bzImage (vmlinuz)"
    )]
    NotKernel,
    /// An ELF file or bzImage of another kind.
    #[error("the kernel cannot be used: {0}")]
    Unsuitable(&'static str),
    /// The file contradicts itself or is shorter than it says.
    #[error("the kernel file is damaged: {0}")]
    Damaged(linux_loader::loader::Error),
    /// The kernel's memory ends behind RAM.
    #[error("the kernel needs {} MiB of memory: give the guest more (--memory)", need.div_ceil(1 << 20))]
    KernelTooBig {
        /// Bytes of RAM that are needed at the least.
        need: u64,
    },
    /// The initial RAM disk does not fit behind the kernel.
    #[error(
        "an initial RAM disk of {} MiB does not fit behind the kernel: give the guest more memory (--memory) or a smaller one",
        len.div_ceil(1 << 20)
    )]
    InitrdTooBig {
        /// Its length in bytes.
        len: u64,
    },
    /// There are no bytes in the initial RAM disk.
    #[error("the initial RAM disk is an empty file")]
    InitrdEmpty,
    /// The command line is longer than the kernel reads, or has a zero byte in it.
    #[error(
        "the kernel command line has {0} bytes: the limit is {limit}, without zero bytes",
        limit = layout::CMDLINE_MAX - 1
    )]
    Cmdline(usize),
    /// A file cannot be read.
    #[error("cannot read the {what}")]
    Read {
        /// Which file.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A structure does not fit.
    #[error("the boot parameters do not fit guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// How a kernel is entered, and the address of its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode, with `boot_params`.
    Linux64(GuestAddress),
    /// In 32-bit protected mode without paging, with `hvm_start_info`.
    Pvh(GuestAddress),
}

/// Loads everything, and says how the kernel is entered.
///
/// # Errors
/// See [`BootError`].
pub fn load(
    mem: &GuestRam,
    kernel: File,
    initrd: Option<File>,
    cmdline: &str,
    rsdp: GuestAddress,
) -> Result<Entry, BootError> {
    let low_ram_end = mem
        .iter()
        .next()
        .map_or(0, |region| region.start_addr().0 + region.len());
    let kernel = Kernel::load(mem, kernel, low_ram_end)?;
    let initrd = initrd
        .map(|file| load_initrd(mem, file, kernel.end, low_ram_end))
        .transpose()?;
    write_cmdline(mem, cmdline)?;
    match kernel.entry {
        Entry::Linux64(_) => params::write(mem, &kernel, initrd, cmdline.len(), rsdp)?,
        Entry::Pvh(_) => pvh::write(mem, initrd, rsdp)?,
    }
    Ok(kernel.entry)
}

/// Where the initial RAM disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    address: u64,
    len: u64,
}

/// Loads the initial RAM disk as high as it may lie, so that the kernel's own early allocations and its
/// decompressor stay away from it.
fn load_initrd(
    mem: &GuestRam,
    mut file: File,
    kernel_end: u64,
    low_ram_end: u64,
) -> Result<Initrd, BootError> {
    const PAGE: u64 = 0x1000;
    let read = |source| BootError::Read {
        what: "initial RAM disk",
        source,
    };
    let len = file.metadata().map_err(read)?.len();
    if len == 0 {
        return Err(BootError::InitrdEmpty);
    }
    let too_big = || BootError::InitrdTooBig { len };
    let top = low_ram_end.min(INITRD_ADDR_MAX + 1);
    let address = top.checked_sub(len).ok_or_else(too_big)? & !(PAGE - 1);
    if address < kernel_end || u32::try_from(len).is_err() {
        return Err(too_big());
    }
    file.rewind().map_err(read)?;
    let count = usize::try_from(len).map_err(|_| too_big())?;
    mem.read_exact_volatile_from(GuestAddress(address), &mut file, count)
        .map_err(|error| read(io::Error::other(error)))?;
    Ok(Initrd { address, len })
}

fn write_cmdline(mem: &GuestRam, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= layout::CMDLINE_MAX || cmdline.contains('\0') {
        return Err(BootError::Cmdline(cmdline.len()));
    }
    mem.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    let end = layout::CMDLINE + cmdline.len() as u64;
    Ok(mem.write_obj(0_u8, GuestAddress(end))?)
}
