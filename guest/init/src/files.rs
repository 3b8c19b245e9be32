//! Small files of the root file system: reads them whatever they are, and replaces them whatever is in the way.
//!
//! The image is not PID 1's own: a name may lead to a FIFO, a device, or gigabytes.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// Largest file that is read, in bytes: `/etc/passwd` with some ten thousand users.
pub const MAX_TEXT: u64 = 1 << 20;

/// Ending of the name of a file that is about to replace another one.
const NEW: &str = ".cachot-new";

/// Reads a text; `None` where there is no such file. Never waits for anybody.
///
/// # Errors
/// What `open(2)` and `read(2)` report, and [`io::ErrorKind::InvalidData`] for what is not a regular file, is
/// longer than [`MAX_TEXT`], or is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<Option<String>> {
    let mut options = OpenOptions::new();
    // Without the flag, to open a FIFO is to wait for its writer.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    if !file.metadata()?.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // Its length may be a lie, as in /proc, or change.
    file.take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(invalid("it is longer than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8 text"))?;
    Ok(Some(text))
}

/// Gives a file another content, at once: whoever opens it finds the old or the new one. It keeps its owner and
/// mode.
///
/// # Errors
/// What keeps it from being replaced, such as a read-only file system; it is as it was.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let old = path.metadata()?;
    let mut name = path.as_os_str().to_owned();
    name.push(NEW);
    let new = Path::new(&name);
    match std::fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = create(new, content, &old).and_then(|()| std::fs::rename(new, path));
    if written.is_err() {
        // What matters is why it could not be written.
        std::fs::remove_file(new).ok();
    }
    written
}

/// Gives `path` the content of `stand_in`, a file that is written for this and whose mount over `path` is
/// made by `cover`. Where it is there from an earlier time its content changes in place.
///
/// # Errors
/// What keeps the file from being written or mounted.
pub fn cover(
    path: &Path,
    stand_in: &Path,
    content: &[u8],
    cover: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let shown = path.metadata()?;
    let covered = stand_in
        .metadata()
        .is_ok_and(|stand_in| (stand_in.dev(), stand_in.ino()) == (shown.dev(), shown.ino()));
    if covered {
        let mut file = OpenOptions::new().write(true).open(stand_in)?;
        file.write_all(content)?;
        // Last, so that it is never shorter than either.
        return file.set_len(content.len() as u64);
    }
    match std::fs::remove_file(stand_in) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create(stand_in, content, &shown)?;
    cover(stand_in, path)
}

/// Creates a file with the owner and mode of another one.
fn create(path: &Path, content: &[u8], like: &Metadata) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file: File = options.open(path)?;
    file.write_all(content)?;
    fchown(&file, Some(like.uid()), Some(like.gid()))?;
    let mode = std::fs::Permissions::from_mode(like.mode() & 0o7777);
    file.set_permissions(mode)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn test_read_text_regular_file_is_read_and_a_missing_one_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passwd");
        assert_eq!(read_text(&path).expect("no error"), None);

        fs::write(&path, "root:x:0:0").expect("written");

        assert_eq!(
            read_text(&path).expect("read"),
            Some("root:x:0:0".to_owned())
        );
    }

    #[test]
    fn test_read_text_fifo_directory_and_device_are_refused_without_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
            .expect("made");

        for path in [fifo.as_path(), directory.path(), Path::new("/dev/zero")] {
            let error = read_text(path).expect_err("it is no text");
            assert!(error.to_string().contains("regular file"), "{error}");
        }
    }

    #[test]
    fn test_read_text_longest_is_read_and_one_byte_more_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passwd");
        let file = File::create(&path).expect("created");

        file.set_len(MAX_TEXT).expect("set");
        let longest = read_text(&path).expect("read").expect("there");
        file.set_len(MAX_TEXT + 1).expect("set");
        let error = read_text(&path).expect_err("it is too long");

        assert_eq!(longest.len() as u64, MAX_TEXT);
        assert!(error.to_string().contains("longer"), "{error}");
    }

    #[test]
    fn test_read_text_other_than_utf8_is_an_error_and_not_empty() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passwd");
        fs::write(&path, b"r\xffot:x:0:0").expect("written");
        let error = read_text(&path).expect_err("it is no text");
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    #[test]
    fn test_replace_is_another_file_of_the_same_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("id");
        fs::write(&path, "old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("set");
        let mut open = File::open(&path).expect("opened");

        replace(&path, b"new").expect("replaced");

        let mut old = String::new();
        open.read_to_string(&mut old).expect("read");
        assert_eq!(old, "old");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(path.metadata().expect("there").mode() & 0o7777, 0o444);
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 1);
    }

    #[test]
    fn test_replace_missing_file_is_not_created() {
        let directory = tempfile::tempdir().expect("a directory");
        replace(&directory.path().join("id"), b"new").expect_err("it is not there");
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 0);
    }

    #[test]
    fn test_cover_twice_mounts_once_and_shows_the_latest() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, stand_in) = (directory.path().join("id"), directory.path().join("ours"));
        fs::write(&path, "first").expect("written");
        let mut mounts = 0;
        // A hard link shares the inode, as a bind mount does.
        let mut link = |from: &Path, to: &Path| {
            mounts += 1;
            fs::remove_file(to)?;
            fs::hard_link(from, to)
        };

        cover(&path, &stand_in, b"second", &mut link).expect("covered");
        cover(&path, &stand_in, b"3rd", &mut link).expect("covered");

        assert_eq!(fs::read(&path).expect("read"), b"3rd");
        assert_eq!(mounts, 1);
    }
}
