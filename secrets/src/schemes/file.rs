//! `file:PATH`: all bytes of a file or pipe.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{ResolveError, Scheme};
use crate::value::SecretValue;

/// `file:PATH`: the bytes as they are, a final newline included.
///
/// The path is that of a regular file or a pipe (`/dev/fd/3` and the like too); a relative one
/// begins in the working directory, and `~` has no meaning. A named pipe without a writer waits
/// for one.
pub struct File;

impl Scheme for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn is_plaintext(&self) -> bool {
        true
    }

    fn resolve(&self, locator: &str) -> Result<SecretValue, ResolveError> {
        let path = Path::new(locator);
        SecretValue::read_from(&mut open(path)?)
            .map_err(|error| ResolveError::of_value(format_args!("the file {path:?}"), path, error))
    }
}

/// Opens a regular file or pipe for reading, without a buffer that would keep copies.
pub(super) fn open(path: &Path) -> Result<fs::File, ResolveError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| ResolveError::of_file(path, errno.into()))?;
    let file = fs::File::from(fd);
    let kind = file
        .metadata()
        .map_err(|error| ResolveError::of_file(path, error))?
        .file_type();
    if kind.is_dir() {
        Err(ResolveError::Directory(path.into()))
    } else if kind.is_file() || kind.is_fifo() {
        Ok(file)
    } else {
        Err(ResolveError::NotAFile(path.into()))
    }
}
