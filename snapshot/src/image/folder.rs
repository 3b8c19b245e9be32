//! Files and folders whose content decides what is trusted: opened without following links, checked to
//! be this user's, and removed without leaving the folder.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::error::ImageError;

/// What the names of folders begin with that are being written or removed. Whoever does that holds an
/// exclusive `flock` on the folder; one whose lock is free was left by a process that was killed.
pub(super) const TEMPORARY_PREFIX: &str = ".cachot-image-";

/// A path taken apart: the folder that it is in, open, and the name in it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: OsString,
    pub(super) path: PathBuf,
}

impl Place {
    /// # Errors
    /// [`ImageError::NoName`], or [`ImageError::System`] if the folder above does not exist.
    pub(super) fn of(path: &Path) -> Result<Self, ImageError> {
        let name = path
            .file_name()
            .ok_or_else(|| ImageError::NoName(path.to_owned()))?;
        let above = match path.parent() {
            Some(above) if above != Path::new("") => above,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(above, flags, Mode::empty())
            .map_err(ImageError::system("open the folder", above))?;
        Ok(Self {
            parent,
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }
}

/// Opens a folder that only this user, or root, can have filled; the last component of the path is not a link.
pub(super) fn open_private(path: &Path) -> Result<OwnedFd, ImageError> {
    let folder = match Place::of(path) {
        Ok(place) => open_at(&place.parent, &place.name),
        // "." and "/" are no links.
        Err(ImageError::NoName(_)) => rustix::fs::open(path, FOLDER_FLAGS, Mode::empty()),
        Err(error) => return Err(error),
    };
    let folder = match folder {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return Err(ImageError::Refused {
                path: path.to_owned(),
                what: "not a folder, or a symbolic link: give the path of the folder itself",
            });
        }
        other => other.map_err(ImageError::system("open the folder", path))?,
    };
    let stat = rustix::fs::fstat(&folder).map_err(ImageError::system("examine", path))?;
    check_owner(&stat, path)?;
    Ok(folder)
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a folder in a folder.
pub(super) fn open_at(parent: &impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, FOLDER_FLAGS, Mode::empty())
}

/// Opens a regular file of this user, or of root, for reading; `path` is for messages.
pub(super) fn open_file(
    folder: &impl AsFd,
    name: impl AsRef<OsStr>,
    path: &Path,
) -> Result<File, ImageError> {
    let refused = |what| ImageError::Refused {
        path: path.to_owned(),
        what,
    };
    // Nothing but a regular file may make the opening wait or have an effect.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name.as_ref(), flags, Mode::empty()) {
        Err(Errno::LOOP) => return Err(refused("a symbolic link, not a file")),
        // A socket, or a device without a driver.
        Err(Errno::NXIO | Errno::NODEV) => return Err(refused("not a regular file")),
        other => other.map_err(ImageError::system("open", path))?,
    };
    let stat = rustix::fs::fstat(&file).map_err(ImageError::system("examine", path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused("not a regular file"));
    }
    check_owner(&stat, path)?;
    Ok(file.into())
}

fn check_owner(stat: &Stat, path: &Path) -> Result<(), ImageError> {
    let refused = |what| {
        Err(ImageError::Refused {
            path: path.to_owned(),
            what,
        })
    };
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return refused("another user's: `chown` it if you trust what is in it");
    }
    if stat.st_mode & 0o022 != 0 {
        return refused("writable by others: `chmod go-w` it if you trust what is in it");
    }
    Ok(())
}

/// The names in a folder.
pub(super) fn entries(folder: &impl AsFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Reads until `into` is full or the file ends; returns the number of bytes.
pub(super) fn read_up_to(file: &File, into: &mut [u8]) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Fills `into` with random bytes.
pub(super) fn random(into: &mut [u8]) -> rustix::io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        done += rustix::rand::getrandom(&mut into[done..], flags)?;
    }
    Ok(())
}

/// A folder under a temporary name, locked by this process.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) name: OsString,
    pub(super) folder: OwnedFd,
}

/// A name for a temporary folder that no other has.
fn temporary_name() -> rustix::io::Result<OsString> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(format!("{TEMPORARY_PREFIX}{}", hex::encode(bytes)).into())
}

impl Temporary {
    /// Makes an empty folder, mode 0700.
    pub(super) fn create(parent: &impl AsFd) -> rustix::io::Result<Self> {
        loop {
            let name = temporary_name()?;
            match rustix::fs::mkdirat(parent, &name, Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                other => other?,
            }
            let made = lock_new(parent, &name);
            match made {
                Ok(Some(folder)) => return Ok(Self { name, folder }),
                // A sweeper found it before it was locked, and removes it.
                Ok(None) => {}
                Err(error) => {
                    // Empty: if it cannot be removed the next sweep does it.
                    rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR).ok();
                    return Err(error);
                }
            }
        }
    }

    /// Gives a folder a temporary name, so that from now on it is nothing but rubbish.
    pub(super) fn take(
        parent: &impl AsFd,
        name: &OsStr,
        folder: OwnedFd,
    ) -> rustix::io::Result<Self> {
        // So that a sweeper knows it, if this process is killed while it removes it.
        rustix::fs::fchmod(&folder, Mode::RWXU)?;
        let temporary = temporary_name()?;
        rustix::fs::renameat_with(
            parent,
            name,
            parent,
            &temporary,
            rustix::fs::RenameFlags::NOREPLACE,
        )?;
        Ok(Self {
            name: temporary,
            folder,
        })
    }

    /// Removes the folder with all files in it.
    pub(super) fn remove(&self, parent: &impl AsFd) -> rustix::io::Result<()> {
        for name in entries(&self.folder)? {
            match rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                other => other?,
            }
        }
        match rustix::fs::unlinkat(parent, &self.name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// Opens and locks a folder that was just made, unless a sweeper was faster.
fn lock_new(parent: &impl AsFd, name: &OsStr) -> rustix::io::Result<Option<OwnedFd>> {
    let folder = match open_at(parent, name) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    // The lock is also had on a folder that a sweeper removed in the meantime.
    Ok((rustix::fs::fstat(&folder)?.st_nlink > 0).then_some(folder))
}

/// Removes what killed writers left in this folder; returns how many folders. Only folders of this
/// user with mode 0700 and a temporary name are touched.
pub(super) fn sweep(parent: &OwnedFd) -> rustix::io::Result<usize> {
    let mut swept = 0;
    for name in entries(parent)? {
        if !name.as_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            continue;
        }
        let Ok(folder) = open_at(parent, &name) else {
            continue;
        };
        let stat = rustix::fs::fstat(&folder)?;
        let ours = stat.st_uid == rustix::process::geteuid().as_raw()
            && Mode::from_raw_mode(stat.st_mode) == Mode::RWXU;
        if !ours {
            continue;
        }
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => continue,
            other => other?,
        }
        // One that cannot be removed stops nobody from making images.
        if (Temporary { name, folder }).remove(parent).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_files_of_other_users_are_refused() {
        let file = tempfile::tempfile().expect("a file");
        let mut stat = rustix::fs::fstat(&file).expect("its owner");
        let owner = |stat: &Stat| check_owner(stat, Path::new("x"));
        owner(&stat).expect("mine");
        stat.st_uid = 0;
        owner(&stat).expect("root's");
        stat.st_uid = rustix::process::geteuid().as_raw() + 1;
        let refused = owner(&stat);
        assert!(
            matches!(refused, Err(ImageError::Refused { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn test_sweep_is_not_stopped_by_what_it_cannot_remove() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["a", "b", "c"] {
            let left = folder.path().join(format!("{TEMPORARY_PREFIX}{name}"));
            std::fs::create_dir(&left).expect("made");
            std::fs::set_permissions(&left, std::os::unix::fs::PermissionsExt::from_mode(0o700))
                .expect("private");
            if name == "b" {
                // No writer makes folders.
                std::fs::create_dir(left.join("memory")).expect("made");
            }
        }
        let parent = open_private(folder.path()).expect("open");
        assert_eq!(sweep(&parent).expect("swept"), 2);
        assert_eq!(entries(&parent).expect("listed").len(), 1);
    }
}
