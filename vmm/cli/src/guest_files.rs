//! Finding and opening what a guest is made of: kernel, initial RAM disk, root image.
//!
//! Each file is opened once, here, with the invoking user's permissions, and looked at no further
//! than it takes to tell a wrong file from a right one before anything boots.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// Folder of the guest's files, if not one that is known from this program's own place.
pub const GUEST_VARIABLE: &str = "CACHOT_GUEST";

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An ELF image or a bzImage for x86-64.
    Kernel,
    /// A cpio archive, compressed or not.
    Initrd,
    /// A file system image, ext2 to ext4.
    Rootfs,
}

impl Role {
    /// The option that names such a file, without its hyphens, which is what messages call the file.
    fn option(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Rootfs => "rootfs",
        }
    }

    /// What the file is called where there is a default.
    fn file_name(self) -> &'static str {
        match self {
            Self::Kernel => "vmlinux",
            other => other.option(),
        }
    }

    fn is_one(self, file: &File) -> io::Result<bool> {
        match self {
            Self::Kernel => Ok(is_elf(file)? || is_bzimage(file)?),
            Self::Initrd => is_archive(file),
            Self::Rootfs => has_bytes(file, EXT_MAGIC_OFFSET, &EXT_MAGIC),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Kernel => "neither an ELF image nor a bzImage for x86-64",
            Self::Initrd => "no cpio archive, compressed or not",
            Self::Rootfs => "no ext4 file system (make one with `mkfs.ext4 -d FOLDER IMAGE SIZE`)",
        }
    }
}

/// Why a file of the guest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestFileError {
    /// No folder has the default file.
    #[error(
        "there is no guest {} in {}: build it with `make guest`, or name a file with --{}",
        .role.option(),
        folders(.searched),
        .role.option()
    )]
    NotBuilt {
        /// What was looked for.
        role: Role,
        /// Where.
        searched: Vec<PathBuf>,
    },
    /// Opening or reading failed.
    #[error("cannot read the {} {path:?}, check the path and its permissions (--{0})", .role.option())]
    Unreadable {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("the {} {path:?} is not a regular file: name one that is (--{0})", .role.option())]
    NotRegular {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// Another VM writes to it, or has it open while this one wants to write.
    #[error("the {} {path:?} is in use by another VM: stop that one, or use a copy of the file", .role.option())]
    InUse {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// Some other kind of file, or an empty one.
    #[error("the {} {path:?} is {}: name another file (--{0})", .role.option(), .role.expected())]
    WrongKind {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// Kernel and initial RAM disk leave no room.
    #[error(
        "kernel and initrd have {needed} MiB, too much for {memory} MiB of guest memory: raise --memory"
    )]
    Memory {
        /// Their sizes together, in MiB, rounded up.
        needed: u64,
        /// Guest memory, in MiB.
        memory: u64,
    },
}

fn folders(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| format!("{path:?}")).collect();
    paths.join(" or ")
}

/// A file of the guest, open for reading.
#[derive(Debug)]
pub struct GuestFile {
    /// The file.
    pub file: File,
    /// What it was opened as.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

/// Folders in which the guest's files may be, best first.
pub fn guest_folders(variable: Option<OsString>, program: Option<&Path>) -> Vec<PathBuf> {
    if let Some(folder) = variable.filter(|folder| !folder.is_empty()) {
        return vec![folder.into()];
    }
    let above = program.and_then(Path::parent).and_then(Path::parent);
    above
        .map(|above| vec![above.join("guest"), above.join("share/cachot")])
        .unwrap_or_default()
}

/// Opens the file that the user named, or the default in the first folder that has it.
///
/// # Errors
/// See [`GuestFileError`].
pub fn open_or_default(
    role: Role,
    named: Option<&Path>,
    folders: &[PathBuf],
) -> Result<GuestFile, GuestFileError> {
    if let Some(path) = named {
        return open(role, path);
    }
    let found = folders
        .iter()
        .map(|folder| folder.join(role.file_name()))
        .find(|path| path.exists());
    match found {
        Some(path) => open(role, &path),
        None => Err(GuestFileError::NotBuilt {
            role,
            searched: folders.to_vec(),
        }),
    }
}

/// Opens a file and makes sure that it can be what it is meant for. Nobody opens it with [`open_writable`] as long
/// as it is open.
///
/// # Errors
/// See [`GuestFileError`].
pub fn open(role: Role, path: &Path) -> Result<GuestFile, GuestFileError> {
    open_as(role, path, FlockOperation::NonBlockingLockShared)
}

/// The same for a file that a guest may write to: nobody else has it open meanwhile.
///
/// # Errors
/// See [`GuestFileError`].
pub fn open_writable(role: Role, path: &Path) -> Result<GuestFile, GuestFileError> {
    open_as(role, path, FlockOperation::NonBlockingLockExclusive)
}

fn open_as(role: Role, path: &Path, lock: FlockOperation) -> Result<GuestFile, GuestFileError> {
    let unreadable = |source| GuestFileError::Unreadable {
        role,
        path: path.to_owned(),
        source,
    };
    // A pipe without a writer would hold up a plain open for ever.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options()
        .read(true)
        .write(lock == FlockOperation::NonBlockingLockExclusive)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(GuestFileError::NotRegular {
            role,
            path: path.to_owned(),
        });
    }
    match flock(&file, lock) {
        Err(Errno::WOULDBLOCK) => {
            return Err(GuestFileError::InUse {
                role,
                path: path.to_owned(),
            });
        }
        other => other.map_err(|errno| unreadable(errno.into()))?,
    }
    if !role.is_one(&file).map_err(unreadable)? {
        return Err(GuestFileError::WrongKind {
            role,
            path: path.to_owned(),
        });
    }
    Ok(GuestFile {
        file,
        path: path.to_owned(),
        len: metadata.len(),
    })
}

/// Makes sure that a guest of `memory` bytes can hold the kernel and the initial RAM disk; the guest
/// itself finds out what it needs on top of that.
///
/// # Errors
/// [`GuestFileError::Memory`].
pub fn check_memory(
    memory: u64,
    kernel: &GuestFile,
    initrd: Option<&GuestFile>,
) -> Result<(), GuestFileError> {
    let needed = kernel
        .len
        .saturating_add(initrd.map_or(0, |initrd| initrd.len));
    if needed < memory {
        return Ok(());
    }
    Err(GuestFileError::Memory {
        needed: needed.div_ceil(1 << 20),
        memory: memory >> 20,
    })
}

/// Position of the magic number in an ext2, ext3 or ext4 image: superblock at 1024, field at 0x38.
const EXT_MAGIC_OFFSET: u64 = 1024 + 0x38;
const EXT_MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();

/// First bytes of what Linux unpacks as an initial RAM disk: cpio "newc" without and with checksums,
/// gzip, bzip2, LZMA, XZ, LZO, LZ4 (legacy frame), Zstandard (`lib/decompress.c`).
const ARCHIVE_MAGICS: [&[u8]; 9] = [
    b"070701",
    b"070702",
    &[0x1f, 0x8b],
    b"BZh",
    &[0x5d, 0x00, 0x00],
    &[0xfd, b'7', b'z', b'X', b'Z', 0x00],
    &[0x89, b'L', b'Z', b'O'],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
];

/// 64-bit little-endian ELF (`e_ident`) for x86-64 (`e_machine`, at 18).
fn is_elf(file: &File) -> io::Result<bool> {
    Ok(has_bytes(file, 0, b"\x7fELF\x02\x01")? && has_bytes(file, 18, &62_u16.to_le_bytes())?)
}

/// Boot sector signature and `HdrS` of the x86 boot protocol, with a 64-bit entry point
/// (`XLF_KERNEL_64` in `xloadflags`, at 0x236).
fn is_bzimage(file: &File) -> io::Result<bool> {
    let mut flags = [0];
    Ok(has_bytes(file, 0x1fe, &[0x55, 0xaa])?
        && has_bytes(file, 0x202, b"HdrS")?
        && read_at(file, 0x236, &mut flags)?
        && flags[0] & 1 != 0)
}

fn is_archive(file: &File) -> io::Result<bool> {
    for magic in ARCHIVE_MAGICS {
        if has_bytes(file, 0, magic)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_bytes(file: &File, offset: u64, expected: &[u8]) -> io::Result<bool> {
    let mut found = [0; 8];
    let found = &mut found[..expected.len()];
    Ok(read_at(file, offset, found)? && found == expected)
}

/// Fills `into`; `false` if the file ends before.
fn read_at(file: &File, offset: u64, into: &mut [u8]) -> io::Result<bool> {
    match file.read_exact_at(into, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn elf() -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(18, 0);
        bytes.extend([62, 0]);
        bytes
    }

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x236] = 1;
        bytes
    }

    fn ext4() -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
        bytes
    }

    #[test]
    fn test_open_right_kind_is_accepted() {
        let folder = tempfile::tempdir().expect("a folder");
        for (role, bytes) in [
            (Role::Kernel, elf()),
            (Role::Kernel, bzimage()),
            (Role::Initrd, b"070701...".to_vec()),
            (Role::Initrd, vec![0x1f, 0x8b, 8]),
            (Role::Rootfs, ext4()),
        ] {
            let path = folder.path().join("file");
            fs::write(&path, &bytes).expect("written");
            let opened = open(role, &path).expect("the right kind");
            assert_eq!(opened.len, bytes.len() as u64);
        }
    }

    #[test]
    fn test_open_wrong_kind_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut elf32 = elf();
        elf32[4] = 1;
        let mut real_mode = bzimage();
        real_mode[0x236] = 0;
        for (role, bytes) in [
            (Role::Kernel, Vec::new()),
            (Role::Kernel, b"#!/bin/sh\n".to_vec()),
            (Role::Kernel, elf32),
            (Role::Kernel, real_mode),
            (Role::Kernel, elf()[..18].to_vec()),
            (Role::Initrd, Vec::new()),
            (Role::Initrd, elf()),
            (Role::Rootfs, vec![0; 4096]),
            (Role::Rootfs, vec![0; 100]),
        ] {
            let path = folder.path().join("file");
            fs::write(&path, &bytes).expect("written");
            let opened = open(role, &path);
            assert!(
                matches!(opened, Err(GuestFileError::WrongKind { .. })),
                "{role:?} {opened:?}"
            );
        }
    }

    #[test]
    fn test_open_pipe_or_folder_is_refused_without_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("a pipe");
        for path in [folder.path(), &pipe] {
            let opened = open(Role::Kernel, path);
            assert!(
                matches!(opened, Err(GuestFileError::NotRegular { .. })),
                "{opened:?}"
            );
        }
        let missing = open(Role::Kernel, &folder.path().join("missing"));
        assert!(
            matches!(missing, Err(GuestFileError::Unreadable { .. })),
            "{missing:?}"
        );
    }

    #[test]
    fn test_default_is_searched_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("bin/cachot");
        let folders = guest_folders(None, Some(&program));

        let missing = open_or_default(Role::Kernel, None, &folders)
            .expect_err("nothing there")
            .to_string();
        assert!(
            missing.contains("make guest") && missing.contains("share/cachot"),
            "{missing}"
        );

        for place in ["share/cachot", "guest"] {
            fs::create_dir_all(folder.path().join(place)).expect("made");
            let path = folder.path().join(place).join("vmlinux");
            fs::write(&path, elf()).expect("written");
            let found = open_or_default(Role::Kernel, None, &folders).expect("found");
            assert_eq!(found.path, path);
        }
        assert_eq!(
            guest_folders(Some("/elsewhere".into()), Some(&program)),
            [PathBuf::from("/elsewhere")]
        );
    }

    #[test]
    fn test_check_memory_too_small_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vmlinux");
        fs::write(&path, elf()).expect("written");
        let mut kernel = open(Role::Kernel, &path).expect("a kernel");
        assert!(check_memory(16 << 20, &kernel, None).is_ok());
        kernel.len = 16 << 20;
        let error = check_memory(16 << 20, &kernel, None)
            .expect_err("too small")
            .to_string();
        assert!(
            error.contains("16 MiB of guest memory: raise --memory"),
            "{error}"
        );
    }
}
