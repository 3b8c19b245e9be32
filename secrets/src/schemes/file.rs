//! `file:PATH`: all bytes of a file or pipe.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Fetched, ResolveError, Scheme, TIME_LIMIT};
use crate::value::SecretValue;

/// `file:PATH`: the bytes as they are, a final newline included.
///
/// The path is that of a regular file or a pipe (`/dev/fd/3` and the like too); a relative one
/// begins in the working directory, and `~` has no meaning. A pipe is read to its end, which has
/// to come within [`TIME_LIMIT`]; a named one waits as long for a writer.
pub struct File;

impl Scheme for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn is_plaintext(&self) -> bool {
        true
    }

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        let path = Path::new(locator);
        SecretValue::read_from(&mut open(path)?)
            .map(Fetched::from)
            .map_err(|error| ResolveError::of_value(format_args!("the file {path:?}"), path, error))
    }
}

/// Opens a regular file or pipe for reading, without a buffer that would keep copies.
pub(super) fn open(path: &Path) -> Result<Source, ResolveError> {
    open_for(path, TIME_LIMIT)
}

fn open_for(path: &Path, limit: Duration) -> Result<Source, ResolveError> {
    // A pipe is waited for when it is read.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        // What opening a socket, or a device without a driver, comes to.
        Err(Errno::NXIO) => return Err(ResolveError::NotAFile(path.to_owned())),
        Err(errno) => return Err(ResolveError::of_file(path, errno.into())),
    };
    let file = fs::File::from(fd);
    let kind = file
        .metadata()
        .map_err(|error| ResolveError::of_file(path, error))?
        .file_type();
    if kind.is_dir() {
        Err(ResolveError::Directory(path.into()))
    } else if kind.is_file() || kind.is_fifo() {
        let end = Instant::now() + limit;
        Ok(Source {
            file,
            end: kind.is_fifo().then_some(end),
        })
    } else {
        Err(ResolveError::NotAFile(path.into()))
    }
}

/// A regular file, or a pipe with the moment at which its end must have come.
pub(super) struct Source {
    file: fs::File,
    end: Option<Instant>,
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(end) = self.end {
                self.wait(end)?;
            }
            match self.file.read(into) {
                // Another reader of the pipe was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

impl Source {
    /// Waits until the pipe has bytes, or its writers are gone.
    fn wait(&self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&self.file, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut polled, Some(&left)))? == 0 {
            let kind = io::ErrorKind::TimedOut;
            return Err(io::Error::new(kind, "its end did not come in time"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::locked::tests::one_at_a_time;
    use crate::value::MAX_VALUE_LEN;

    fn resolve(path: &Path) -> Result<Fetched, ResolveError> {
        File.resolve(path.to_str().expect("a test's path is text"))
    }

    #[test]
    fn test_file_is_delivered_verbatim() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a,b #c");
        let mut bytes: Vec<u8> = (0..=255).collect();
        bytes.extend(b"\r\n\n");
        fs::write(&path, &bytes).expect("written");

        let value = resolve(&path).expect("a value").value;

        assert_eq!(value.expose(), bytes);
    }

    #[test]
    fn test_file_relative_path_begins_in_the_working_directory() {
        let value = File.resolve("Cargo.toml").expect("a value").value;
        let expected = fs::read("Cargo.toml").expect("read");
        assert_eq!(value.expose(), expected);
    }

    #[test]
    fn test_file_pipe_by_descriptor() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        fs::File::from(writer).write_all(b"piped").expect("written");
        let value = File.resolve(&format!("/dev/fd/{}", reader.as_raw_fd()));
        assert_eq!(value.expect("a value").value.expose(), b"piped");
    }

    #[test]
    fn test_file_named_pipe() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = named_pipe(folder.path());
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || fs::write(path, b"piped"))
        };

        let value = resolve(&path).expect("a value").value;

        assert_eq!(value.expose(), b"piped");
        writer.join().expect("ended").expect("written");
    }

    fn named_pipe(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("fifo");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a named pipe");
        path
    }

    #[test]
    fn test_file_named_pipe_waits_for_its_writer_and_for_each_part() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = named_pipe(folder.path());
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                let mut pipe = fs::File::options().write(true).open(path).expect("opened");
                for part in ["one", "two"] {
                    pipe.write_all(part.as_bytes()).expect("written");
                    std::thread::sleep(Duration::from_millis(50));
                }
            })
        };

        let value = resolve(&path).expect("a value").value;

        assert_eq!(value.expose(), b"onetwo");
        writer.join().expect("ended");
    }

    #[test]
    fn test_file_pipe_that_does_not_end_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = named_pipe(folder.path());
        let read = || {
            let mut source = open_for(&path, Duration::from_millis(100)).expect("opened");
            let error = SecretValue::read_from(&mut source).expect_err("given up");
            ResolveError::of_value("a pipe", &path, error)
        };
        let late = |error| match error {
            ResolveError::Unreadable { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            _ => false,
        };
        assert!(late(read()), "without a writer");
        let mut writer = fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("opened");
        writer.write_all(b"begun").expect("written");
        assert!(late(read()), "with one that does not go");
    }

    #[test]
    fn test_file_at_and_over_the_limit() {
        let _turn = one_at_a_time();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("large");
        fs::write(&path, vec![7; MAX_VALUE_LEN]).expect("written");
        assert_eq!(resolve(&path).expect("a value").value.len(), MAX_VALUE_LEN);

        fs::write(&path, vec![7; MAX_VALUE_LEN + 1]).expect("written");

        let error = resolve(&path).expect_err("too long");
        assert!(matches!(&error, ResolveError::TooLong { place } if place.contains("large")));
    }

    #[test]
    fn test_file_that_cannot_be_one_is_a_distinct_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let empty = folder.path().join("empty");
        fs::write(&empty, b"").expect("written");
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink(&circle, &circle).expect("a link");

        let missing = resolve(&folder.path().join("missing"));
        assert!(matches!(missing, Err(ResolveError::NoFile(_))));
        let directory = resolve(folder.path());
        assert!(matches!(directory, Err(ResolveError::Directory(_))));
        assert!(matches!(resolve(&empty), Err(ResolveError::Empty { .. })));
        assert!(matches!(resolve(&socket), Err(ResolveError::NotAFile(_))));
        for device in ["/dev/zero", "/dev/null"] {
            let device = File.resolve(device);
            assert!(matches!(device, Err(ResolveError::NotAFile(_))));
        }
        let circle = resolve(&circle);
        assert!(matches!(circle, Err(ResolveError::Unreadable { .. })));
        let zero_byte = File.resolve("a\0b");
        assert!(matches!(zero_byte, Err(ResolveError::Unreadable { .. })));
    }
}
