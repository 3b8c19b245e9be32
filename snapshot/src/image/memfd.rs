//! Files in memory.

use std::fs::File;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

/// Makes a file in memory that can be sealed and not be executed.
pub(super) fn create() -> rustix::io::Result<File> {
    const NAME: &str = "cachot-image";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know that flag.
    match rustix::fs::memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        other => other,
    }
    .map(File::from)
}
