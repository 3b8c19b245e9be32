//! Files in memory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// Makes a file in memory that can be sealed and not be executed.
///
/// # Errors
/// What the kernel said.
pub fn create() -> rustix::io::Result<File> {
    const NAME: &str = "cachot-image";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know that flag.
    match rustix::fs::memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        other => other,
    }
    .map(File::from)
}

/// These bytes as a file in memory that nothing can change any more.
///
/// # Errors
/// What the kernel said.
pub fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = create()?;
    file.write_all_at(bytes, 0)?;
    seal(&file)?;
    Ok(file.into())
}

/// Keeps a file from being changed.
///
/// # Errors
/// What the kernel said.
pub fn seal(file: &File) -> rustix::io::Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file, seals)
}
