//! Files of the host that secrets depend on: opened without following links, checked to be this user's,
//! and replaced whole or not at all.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// How long a lock is waited for: those who have one write a few kilobytes, and wait for the disk.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(10);

/// How often it is asked for: often enough to get it from those who take it again and again.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing at the path.
    #[error("there is no {0:?}: check the path")]
    Absent(PathBuf),
    /// There is a file already that must not be replaced.
    #[error("{0:?} exists already: it is never replaced; move it away if it is not wanted")]
    Exists(PathBuf),
    /// Something is there that is not to be trusted.
    #[error("{path:?} is refused: it is {what}")]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What it is, and what to do about it.
        what: &'static str,
    },
    /// It has more bytes than such a file can have.
    #[error("{path:?} is over the limit of {limit} bytes for such a file")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Most bytes.
        limit: u64,
    },
    /// Another process keeps it.
    #[error(
        "{0:?} is busy: another process has had its lock for {wait} seconds; end that one (`fuser` names it), or try again",
        wait = LOCK_WAIT.as_secs()
    )]
    Busy(PathBuf),
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// For `map_err`: what a system call said when `action` was tried on `path`.
    pub(crate) fn system<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    fn refused(path: &Path, what: &'static str) -> Self {
        Self::Refused {
            path: path.to_owned(),
            what,
        }
    }
}

/// Who may touch a file that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody but its owner reads or writes it: keys, and what is encrypted with them.
    Private,
    /// Nobody but its owner writes it: settings.
    Trusted,
}

/// Opens a regular file of this user, or of root, for reading. The last component of the path is not a link.
///
/// # Errors
/// See [`FileError`]; [`FileError::TooLong`] if it has more than `limit` bytes.
pub(crate) fn open(path: &Path, access: Access, limit: u64) -> Result<File, FileError> {
    open_with(path, OFlags::RDONLY, access, limit)
}

/// Opens a private file for reading, and for writing behind its end.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_for_appending(path: &Path, limit: u64) -> Result<File, FileError> {
    open_with(path, OFlags::RDWR | OFlags::APPEND, Access::Private, limit)
}

/// Takes the lock that this private file is, made if need be; it is given back when the file is dropped.
///
/// # Errors
/// As [`open`], and [`FileError::Busy`].
pub(crate) fn lock(path: &Path) -> Result<File, FileError> {
    let file = open_with(
        path,
        OFlags::RDWR | OFlags::CREATE,
        Access::Private,
        u64::MAX,
    )?;
    wait_for_lock(&file, FlockOperation::NonBlockingLockExclusive, path)?;
    Ok(file)
}

/// Asks for a lock, by an operation that does not block, until it is there. Waiting is bounded: a process that is
/// stopped, or whoever keeps the lock on purpose, would stop all others, and those that block signals for good.
///
/// # Errors
/// [`FileError::Busy`] after [`LOCK_WAIT`], or [`FileError::System`].
pub(crate) fn wait_for_lock(
    file: impl AsFd,
    operation: FlockOperation,
    path: &Path,
) -> Result<(), FileError> {
    let begin = Instant::now();
    loop {
        match rustix::fs::flock(&file, operation) {
            Err(Errno::WOULDBLOCK) if begin.elapsed() >= LOCK_WAIT => {
                return Err(FileError::Busy(path.to_owned()));
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::INTR) => {}
            other => return other.map_err(FileError::system("lock", path)),
        }
    }
}

fn open_with(path: &Path, flags: OFlags, access: Access, limit: u64) -> Result<File, FileError> {
    // Nothing but a regular file may make the opening wait or have an effect.
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::NOENT) => return Err(FileError::Absent(path.to_owned())),
        Err(Errno::LOOP) => {
            return Err(FileError::refused(
                path,
                "a symbolic link: give the path of the file itself",
            ));
        }
        // A socket, a device without a driver, or a folder that was to be written to.
        Err(Errno::NXIO | Errno::NODEV | Errno::ISDIR) => {
            return Err(FileError::refused(path, "not a regular file"));
        }
        other => other.map_err(FileError::system("open", path))?,
    };
    let stat = rustix::fs::fstat(&file).map_err(FileError::system("examine", path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(FileError::refused(path, "not a regular file"));
    }
    check_access(&stat, access, path)?;
    match u64::try_from(stat.st_size) {
        Ok(len) if len <= limit => Ok(file.into()),
        _ => Err(FileError::TooLong {
            path: path.to_owned(),
            limit,
        }),
    }
}

/// Checks a regular file as [`open`] does, without opening it: closing any descriptor of a database would give up
/// the locks that this process holds on it (POSIX record locks). In a folder that only this user changes
/// ([`private_folder`]) nothing comes in between. Whether there is one.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn examine(path: &Path, access: Access) -> Result<bool, FileError> {
    let stat = match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(false),
        other => other.map_err(FileError::system("examine", path))?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => check_access(&stat, access, path).map(|()| true),
        FileType::Symlink => Err(FileError::refused(
            path,
            "a symbolic link: give the path of the file itself",
        )),
        _ => Err(FileError::refused(path, "not a regular file")),
    }
}

/// Renames a file within its folder, in one step that lasts.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn rename(folder: &Path, from: &Path, to: &Path) -> Result<(), FileError> {
    std::fs::rename(from, to).map_err(FileError::system("rename", from))?;
    sync_folder(folder)
}

/// Removes a file, if it is there, for good.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn remove(folder: &Path, path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(FileError::system("remove", path))?,
    }
    sync_folder(folder)
}

/// Makes what was renamed, added or removed in a folder last.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(FileError::system("write to the disk", folder))
}

/// All bytes of a file that [`open`] opens.
///
/// # Errors
/// See [`FileError`].
pub fn read(path: &Path, access: Access, limit: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = open(path, access, limit)?;
    let examined = file.metadata();
    let len = examined.map_err(FileError::system("examine", path))?.len();
    // Large enough at once: what it would grow out of is not wiped. Of a file that grows meanwhile the rest is left.
    let len = len.min(limit);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(len).unwrap_or(0)));
    let read = file.take(len).read_to_end(&mut bytes);
    read.map_err(FileError::system("read", path))?;
    Ok(bytes)
}

fn check_access(stat: &Stat, access: Access, path: &Path) -> Result<(), FileError> {
    let refused = |what| Err(FileError::refused(path, what));
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return refused("another user's: `chown` it if you trust what is in it");
    }
    match access {
        Access::Private if stat.st_mode & 0o077 != 0 => refused(
            "open to others: `chmod 600` it, and replace what is in it if they may have read it",
        ),
        Access::Trusted if stat.st_mode & 0o022 != 0 => {
            refused("writable by others: `chmod go-w` it if you trust what is in it")
        }
        _ => Ok(()),
    }
}

/// Makes a folder, and those above it, that only this user enters; one that is there must be such a one.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn private_folder(path: &Path) -> Result<OwnedFd, FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FileError::system("create the folder", path))?;
    trusted_folder(path)
}

/// Opens a folder of this user, or of root, to which nobody else adds files. The last component of the path is
/// not a link.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn trusted_folder(path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Err(FileError::Absent(path.to_owned())),
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return Err(FileError::refused(
                path,
                "not a folder, or a symbolic link: give the path of the folder itself",
            ));
        }
        other => other.map_err(FileError::system("open the folder", path))?,
    };
    let stat = rustix::fs::fstat(&folder).map_err(FileError::system("examine", path))?;
    check_access(&stat, Access::Trusted, path)?;
    Ok(folder)
}

/// What becomes of a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and the write fails with [`FileError::Exists`].
    Keep,
    /// The new one takes its place, in one step.
    Replace,
}

/// Writes a file of mode 0600 so that, whenever this process is killed, there is the old content or the
/// new one, and the new one is on the disk when this returns.
///
/// It is written beside its place under the name `NAME.new`, which the next writer overwrites; writers
/// of one folder take turns.
///
/// # Errors
/// See [`FileError`]; the old content stays then.
pub(crate) fn write(
    path: &Path,
    existing: Existing,
    content: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FileError> {
    let name = path
        .file_name()
        .ok_or_else(|| FileError::refused(path, "not the path of a file"))?;
    let above = match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(above, flags, Mode::empty())
        .map_err(FileError::system("open the folder", above))?;
    wait_for_lock(&folder, FlockOperation::NonBlockingLockExclusive, above)?;
    let mut temporary = OsString::from(name);
    temporary.push(".new");
    let write = || -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(rustix::fs::openat(&folder, &temporary, flags, mode)?);
        // One that was left over has the mode that it had.
        rustix::fs::fchmod(&file, mode)?;
        content(&mut file)?;
        file.sync_all()?;
        let rename = match existing {
            Existing::Keep => RenameFlags::NOREPLACE,
            Existing::Replace => RenameFlags::empty(),
        };
        rustix::fs::renameat_with(&folder, &temporary, &folder, name, rename)?;
        rustix::fs::fsync(&folder)?;
        Ok(())
    };
    write().map_err(|error| {
        rustix::fs::unlinkat(&folder, &temporary, rustix::fs::AtFlags::empty()).ok();
        match error.kind() {
            io::ErrorKind::AlreadyExists => FileError::Exists(path.to_owned()),
            _ => FileError::system("write", path)(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    }

    fn put(path: &Path, existing: Existing, text: &str) -> Result<(), FileError> {
        write(path, existing, |file| file.write_all(text.as_bytes()))
    }

    #[test]
    fn test_write_makes_a_private_file_that_can_be_read_again() {
        let folder = folder();
        let path = folder.path().join("key");
        put(&path, Existing::Keep, "one").expect("written");

        let mut text = String::new();
        let mut file = open(&path, Access::Private, 3).expect("opened");
        file.read_to_string(&mut text).expect("read");

        assert_eq!(text, "one");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn test_write_keeps_or_replaces_as_told() {
        let folder = folder();
        let path = folder.path().join("key");
        put(&path, Existing::Replace, "one").expect("written");
        let kept = put(&path, Existing::Keep, "two");
        assert!(matches!(kept, Err(FileError::Exists(_))), "{kept:?}");
        assert_eq!(fs::read(&path).expect("read"), b"one");
        put(&path, Existing::Replace, "two").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn test_write_that_fails_leaves_the_old_content_alone() {
        let folder = folder();
        let path = folder.path().join("key");
        put(&path, Existing::Keep, "one").expect("written");
        let failed = write(&path, Existing::Replace, |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(
            matches!(failed, Err(FileError::System { .. })),
            "{failed:?}"
        );
        assert_eq!(fs::read(&path).expect("read"), b"one");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn test_open_refuses_what_others_could_have_read_or_written() {
        let folder = folder();
        let path = folder.path().join("key");
        put(&path, Existing::Keep, "one").expect("written");
        for (mode, private, trusted) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o640, false, true),
            (0o604, false, true),
            (0o620, false, false),
            (0o602, false, false),
        ] {
            set_mode(&path, mode);
            let opens = |access| match open(&path, access, 10) {
                Ok(_) => true,
                Err(FileError::Refused { .. }) => false,
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(opens(Access::Private), private, "{mode:o}");
            assert_eq!(opens(Access::Trusted), trusted, "{mode:o}");
        }
    }

    #[test]
    fn test_open_refuses_what_is_not_a_file_of_its_own() {
        let folder = folder();
        let path = folder.path().join("key");
        put(&path, Existing::Keep, "one").expect("written");
        let link = folder.path().join("link");
        symlink(&path, &link).expect("linked");
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("made");
        for path in [&link, &fifo, &folder.path().to_owned()] {
            let refused = open(path, Access::Private, 10);
            assert!(
                matches!(refused, Err(FileError::Refused { .. })),
                "{path:?}: {refused:?}"
            );
        }
        let long = open(&path, Access::Private, 2);
        assert!(matches!(long, Err(FileError::TooLong { .. })), "{long:?}");
        let absent = open(&folder.path().join("none"), Access::Private, 2);
        assert!(matches!(absent, Err(FileError::Absent(_))), "{absent:?}");
    }

    #[test]
    fn test_private_folder_is_made_and_one_that_others_write_is_refused() {
        let above = folder();
        let path = above.path().join("a/b");
        private_folder(&path).expect("made");
        let mode = fs::metadata(&path).expect("its mode").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        private_folder(&path).expect("there");
        set_mode(&path, 0o777);
        let refused = private_folder(&path);
        assert!(
            matches!(refused, Err(FileError::Refused { .. })),
            "{refused:?}"
        );
    }
}
