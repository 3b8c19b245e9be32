//! Disks that a guest only reads: they are in no image, and a copy of the VM has to have the very same one.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use cachot_snapshot::image::{Digest, digest_of};

use super::error::{RunError, system};
use super::record::Disk;
use crate::guest_files::{self, Role};

/// Longest disk whose digest is computed, in bytes: what takes some seconds, at a snapshot and at a restore.
pub const LONGEST_DIGESTED: u64 = 4 << 30;

/// Device and inode number of a file.
///
/// # Errors
/// What the kernel said.
pub fn inode_of(file: &File) -> io::Result<[u64; 2]> {
    let metadata = file.metadata()?;
    Ok([metadata.dev(), metadata.ino()])
}

impl Disk {
    /// Opens a read-only disk by its path, if that is still the same file as far as is known.
    ///
    /// # Errors
    /// [`RunError::OtherDisk`], and those of opening it.
    pub fn open_same(&self) -> Result<File, RunError> {
        let other = |what| RunError::OtherDisk(self.path.clone(), what);
        let file = guest_files::open(Role::Rootfs, &self.path)?;
        if file.len != self.length {
            return Err(other("length"));
        }
        let inode = inode_of(&file.file).map_err(system("examine the disk"))?;
        if self.inode.is_some_and(|recorded| recorded != inode) {
            return Err(other("inode number"));
        }
        Ok(file.file)
    }

    /// BLAKE3 of the disk, which is this file; none if that would take too long.
    ///
    /// # Errors
    /// [`RunError::System`].
    pub fn digest(&self, file: &File) -> Result<Option<Digest>, RunError> {
        if self.length > LONGEST_DIGESTED {
            return Ok(None);
        }
        let digest = digest_of(file, self.length).map_err(system("read the disk"))?;
        Ok(Some(digest))
    }

    /// Compares the disk, which is this file, with the digest that an image has of it, if it has one.
    ///
    /// # Errors
    /// [`RunError::OtherDisk`] or [`RunError::System`].
    pub fn compare(&self, file: &File, digest: Option<&Digest>) -> Result<(), RunError> {
        match digest {
            Some(digest) if self.digest(file)?.as_ref() != Some(digest) => {
                Err(RunError::OtherDisk(self.path.clone(), "content"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// What looks like an ext4 file system: its magic number.
    fn write(path: &Path, byte: u8) {
        let mut bytes = vec![byte; 8192];
        bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
        fs::write(path, bytes).expect("written");
    }

    fn refused<T: std::fmt::Debug>(result: Result<T, RunError>) -> &'static str {
        match result {
            Err(RunError::OtherDisk(_, what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn test_disk_that_is_another_one_is_refused_by_what_tells_it_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        write(&path, 1);
        let mut disk = Disk {
            path: path.clone(),
            read_only: true,
            length: 8192,
            inode: None,
        };
        let file = disk.open_same().expect("the same");
        disk.inode = Some(inode_of(&file).expect("a file"));
        let digest = disk.digest(&file).expect("readable");
        disk.compare(&file, digest.as_ref()).expect("the same");
        disk.compare(&file, None).expect("nothing is known");

        // The same file, with another byte.
        write(&path, 2);
        let file = disk.open_same().expect("the same as far as is known");
        assert_eq!(refused(disk.compare(&file, digest.as_ref())), "content");
        let aside = folder.path().join("aside");
        fs::rename(&path, &aside).expect("renamed");
        write(&path, 1);
        assert_eq!(refused(disk.open_same()), "inode number");
        disk.inode = None;
        let file = disk.open_same().expect("the same as far as is known");
        disk.compare(&file, digest.as_ref()).expect("the same");
        disk.length = 8191;
        assert_eq!(refused(disk.open_same()), "length");
    }

    #[test]
    fn test_digest_of_a_disk_that_is_too_long_is_none() {
        let file = tempfile::tempfile().expect("a file");
        let disk = Disk {
            path: "/nowhere".into(),
            read_only: true,
            length: LONGEST_DIGESTED + 1,
            inode: None,
        };
        file.set_len(disk.length).expect("a hole");
        assert!(disk.digest(&file).expect("not read").is_none());
    }
}
