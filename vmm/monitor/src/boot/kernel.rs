//! Kernel images: ELF and bzImage.
//!
//! A Linux image is entered in 64-bit mode (64-bit Linux boot protocol), and not at the PVH entry that
//! its notes may name: that one starts in 32-bit mode, and a kernel spends thousands of instructions on
//! getting back to where the 64-bit entry begins. PVH is for kernels that have nothing else (FreeBSD,
//! unikernels): the entry point of their ELF header is not a physical address.

use std::fs::File;
use std::os::unix::fs::FileExt;

use cachot_devices::memory::GuestRam;
use linux_loader::bootparam::setup_header;
use linux_loader::loader::bzimage::{self, BzImage};
use linux_loader::loader::elf::{self, Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use vm_memory::GuestAddress;

use super::{BootError, Entry};
use crate::layout;

/// A kernel in guest memory.
pub struct Kernel {
    /// How it is entered.
    pub entry: Entry,
    /// First byte behind the memory that the kernel needs before it knows what else there is.
    pub end: u64,
    /// The setup header of a bzImage.
    pub header: Option<setup_header>,
}

/// Bytes that are needed to tell what a file is: to the end of the bzImage's setup header.
const HEAD_LEN: usize = 0x268;

/// ELF identification (`e_ident`), type and machine (System V ABI, "ELF Header"; `elf.h`).
const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_TYPES: [u16; 2] = [2, 3];
const ELF_X86_64: u16 = 62;

/// Offsets in a bzImage (`Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header").
const BZIMAGE_MAGIC_AT: usize = 0x202;
const BZIMAGE_MAGIC: &[u8] = b"HdrS";
/// First protocol version with `init_size` and `pref_address` (2.10) and 64-bit entry (2.12).
const BZIMAGE_VERSION: u16 = 0x020c;
/// `xloadflags`: there is a 64-bit entry point, this far behind the first byte.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

impl Kernel {
    /// Recognises and loads the image in `file`; `ram_end` is the end of the RAM below the hole.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn load(mem: &GuestRam, mut file: File, ram_end: u64) -> Result<Self, BootError> {
        let mut head = [0; HEAD_LEN];
        let read = file
            .read_at(&mut head, 0)
            .map_err(|source| BootError::Read {
                what: "kernel",
                source,
            })?;
        let head = &head[..read];
        let kernel = if head.starts_with(ELF_MAGIC) {
            check_elf(head)?;
            load_elf(mem, &mut file, ram_end)?
        } else if head.get(BZIMAGE_MAGIC_AT..BZIMAGE_MAGIC_AT + 4) == Some(BZIMAGE_MAGIC) {
            load_bzimage(mem, &mut file, ram_end)?
        } else {
            return Err(BootError::NotKernel);
        };
        if kernel.end > ram_end {
            return Err(BootError::KernelTooBig { need: kernel.end });
        }
        Ok(kernel)
    }
}

/// Checks what the loader takes for granted.
fn check_elf(head: &[u8]) -> Result<(), BootError> {
    let half = |at| Some(u16::from_le_bytes([*head.get(at)?, *head.get(at + 1)?]));
    if head.get(4) != Some(&ELF_CLASS_64) || half(18) != Some(ELF_X86_64) {
        return Err(BootError::Unsuitable("it is not for 64-bit x86"));
    }
    if !half(16).is_some_and(|kind| ELF_TYPES.contains(&kind)) {
        return Err(BootError::Unsuitable(
            "it is an ELF file, but not a program",
        ));
    }
    Ok(())
}

fn load_elf(mem: &GuestRam, file: &mut File, ram_end: u64) -> Result<Kernel, BootError> {
    let loaded = Elf::load(mem, None, file, None).map_err(|error| match error {
        // The loader says the same of a file that is too short and of RAM that is.
        loader::Error::Elf(elf::Error::ReadKernelImage) => {
            let file_len = file.metadata().map_or(0, |metadata| metadata.len());
            if file_len.saturating_add(layout::HIGH_RAM_START) > ram_end {
                BootError::KernelTooBig {
                    need: file_len + layout::HIGH_RAM_START,
                }
            } else {
                BootError::Damaged(error)
            }
        }
        error => BootError::Damaged(error),
    })?;
    let address = loaded.kernel_load;
    let entry = match loaded.pvh_boot_cap {
        _ if (layout::HIGH_RAM_START..loaded.kernel_end).contains(&address.0) => {
            Entry::Linux64(address)
        }
        PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh(address),
        _ => {
            return Err(BootError::Unsuitable(
                "its entry point is not in what it loads above 1 MiB, and it has no PVH entry",
            ));
        }
    };
    Ok(Kernel {
        entry,
        end: loaded.kernel_end,
        header: None,
    })
}

fn load_bzimage(mem: &GuestRam, file: &mut File, ram_end: u64) -> Result<Kernel, BootError> {
    let start = GuestAddress(layout::HIGH_RAM_START);
    let loaded = BzImage::load(mem, Some(start), file, None).map_err(|error| match error {
        loader::Error::Bzimage(bzimage::Error::ReadBzImageCompressedKernel) => {
            let need = file.metadata().map_or(0, |metadata| metadata.len()) + start.0;
            BootError::KernelTooBig { need }
        }
        error => BootError::Damaged(error),
    })?;
    let Some(header) = loaded.setup_header else {
        return Err(BootError::NotKernel);
    };
    if header.version < BZIMAGE_VERSION || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::Unsuitable("it has no 64-bit entry point"));
    }
    // The kernel unpacks itself to its preferred address, and needs `init_size` bytes there.
    let pref_address = header.pref_address;
    let end = pref_address
        .max(start.0)
        .checked_add(header.init_size.into())
        .map(|end| end.max(loaded.kernel_end))
        .ok_or(BootError::KernelTooBig { need: ram_end })?;
    Ok(Kernel {
        entry: Entry::Linux64(GuestAddress(loaded.kernel_load.0 + ENTRY_64)),
        end,
        header: Some(header),
    })
}
