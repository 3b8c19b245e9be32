//! Changes from the initramfs into the file system on the first block device.
//!
//! `pivot_root` refuses to leave the initramfs, so the new root is moved over `/` and entered with
//! `chroot`. This program keeps running from the old one, which nothing can reach any more.

use std::ffi::CStr;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cachot_control::Root;
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};

use crate::mounts::{CARRIED, kernel_has, make_directory};

/// The block device with the root file system.
const DISK: &str = "/dev/vda";

/// The only file system that is tried: guessing would run more parsers on the image.
const KIND: &str = "ext4";

/// What `statfs` says of it (`EXT4_SUPER_MAGIC`, linux/magic.h).
const EXT4: i64 = 0xef53;

/// Where the new root is put together.
const NEW_ROOT: &str = "/newroot";

/// Where the image is mounted when it is under an overlay.
const LOWER: &str = "/lower";

/// Where the overlay's own files are kept: a tmpfs.
const UPPER: &str = "/upper";

/// Directories of [`UPPER`] and [`LOWER`] as the overlay wants them named.
const OVERLAY_OPTIONS: &CStr = c"lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work";

/// How long the disk may take to appear, and how often to look.
const DISK_WAIT: Duration = Duration::from_secs(5);
const DISK_PAUSE: Duration = Duration::from_millis(5);

/// Changes into the root file system.
///
/// # Errors
/// A message that says what failed, on what, and what to do.
pub fn change(root: Root) -> Result<(), String> {
    wait_for_disk()?;
    match root {
        Root::Writable => mount_disk(NEW_ROOT, MountFlags::empty())?,
        Root::ReadOnly => mount_disk(NEW_ROOT, MountFlags::RDONLY)?,
        Root::Overlay => {
            mount_disk(LOWER, MountFlags::RDONLY)?;
            mount_overlay()?;
        }
    }
    for point in CARRIED {
        carry(point, root)?;
    }
    enter().map_err(|error| format!("cannot change into the root file system: {error}"))
}

/// Writes the root file system out and closes it, so that its image is consistent, where it was mounted for
/// writing. Nothing may have a file of it open for writing.
///
/// # Errors
/// A message that says why its journal will have to be replayed.
pub fn leave() -> Result<(), String> {
    let failed = |error: Errno| {
        let error = io::Error::from(error);
        format!("cannot close the root file system, whose journal has to be replayed: {error}")
    };
    // An overlay, the initramfs and a read-only root have nothing to close.
    let is_disk = rustix::fs::statfs("/").map_err(failed)?.f_type == EXT4;
    let is_writable = !rustix::fs::statvfs("/")
        .map_err(failed)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY);
    if is_disk && is_writable {
        mount_remount("/", MountFlags::RDONLY | MountFlags::NODEV, c"").map_err(failed)?;
    }
    Ok(())
}

fn wait_for_disk() -> Result<(), String> {
    let deadline = Instant::now() + DISK_WAIT;
    while !Path::new(DISK).exists() {
        if Instant::now() >= deadline {
            return Err(format!(
                "the disk {DISK} did not appear within {} s; does the kernel have virtio_blk?",
                DISK_WAIT.as_secs()
            ));
        }
        sleep(DISK_PAUSE);
    }
    Ok(())
}

fn mount_disk(at: &str, access: MountFlags) -> Result<(), String> {
    make_directory(Path::new(at)).map_err(|error| format!("cannot create {at}: {error}"))?;
    mount(DISK, at, KIND, access | MountFlags::NODEV, c"")
        .map_err(|error| disk_error(error, kernel_has(KIND)))
}

/// Says what is wrong with the image, from what `mount` reports.
fn disk_error(error: Errno, kernel_has_kind: bool) -> String {
    let reason = match error {
        Errno::NODEV | Errno::INVAL if !kernel_has_kind => {
            return format!("cannot mount the root file system: the kernel has no {KIND}");
        }
        Errno::INVAL => format!("it is not an {KIND} file system, or its superblock is damaged"),
        Errno::UCLEAN | Errno::BADMSG | Errno::IO => {
            "it is damaged; repair it with e2fsck -f".to_owned()
        }
        Errno::ROFS => {
            "the disk is read-only, and it is to be written to, or its journal has to be replayed; attach it \
             for writing, or run e2fsck -f on the image"
                .to_owned()
        }
        error => io::Error::from(error).to_string(),
    };
    format!("cannot mount the root file system, the image on {DISK}: {reason}")
}

fn mount_overlay() -> Result<(), String> {
    let create = |path: &str| {
        make_directory(Path::new(path)).map_err(|error| format!("cannot create {path}: {error}"))
    };
    create(UPPER)?;
    let failed = |error| {
        let error = io::Error::from(error);
        format!("cannot put an overlay over the root file system: {error}")
    };
    mount("tmpfs", UPPER, "tmpfs", MountFlags::NODEV, c"mode=755").map_err(failed)?;
    for path in ["/upper/files", "/upper/work", NEW_ROOT] {
        create(path)?;
    }
    mount(
        "overlay",
        NEW_ROOT,
        "overlay",
        MountFlags::NODEV,
        OVERLAY_OPTIONS,
    )
    .map_err(|error| match error {
        Errno::NODEV => "cannot put an overlay over the root file system: the kernel has no \
                         overlay; boot the image read-only"
            .to_owned(),
        error => failed(error),
    })
}

/// Moves one of the initramfs's mounts to the same place in the new root.
fn carry(point: &str, root: Root) -> Result<(), String> {
    let target = format!("{NEW_ROOT}{point}");
    let directory = Path::new(&target);
    match make_directory(directory) {
        Ok(()) if directory.is_dir() => {}
        Ok(()) => return Err(format!("the image's {point} is not a directory")),
        Err(error)
            if root == Root::ReadOnly && error.kind() == io::ErrorKind::ReadOnlyFilesystem =>
        {
            return Err(format!(
                "the image has no directory {point} to mount on and is read-only; create it in \
                 the image or boot it under an overlay"
            ));
        }
        Err(error) => {
            return Err(format!(
                "cannot create {point} in the root file system: {error}; is the image damaged?"
            ));
        }
    }
    mount_move(point, &target).map_err(|error| {
        let error = io::Error::from(error);
        format!("cannot move {point} into the root file system: {error}")
    })
}

fn enter() -> io::Result<()> {
    rustix::process::chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_disk_error_tells_a_foreign_image_from_a_damaged_one_and_a_lacking_kernel() {
        let foreign = disk_error(Errno::INVAL, true);
        let damaged = disk_error(Errno::UCLEAN, true);
        let lacking = disk_error(Errno::NODEV, false);

        assert!(foreign.contains("not an ext4 file system"), "{foreign}");
        assert!(damaged.contains("e2fsck"), "{damaged}");
        assert!(lacking.contains("the kernel has no ext4"), "{lacking}");
    }
}
