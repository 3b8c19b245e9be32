//! Finds the files to search, without following links and without leaving anything out silently.

use std::fs::{File, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use walkdir::{DirEntry, WalkDir};

use super::content::ContentError;

/// A file to search.
pub(super) struct Candidate {
    pub path: PathBuf,
    /// Given by the user: a link there is meant.
    follow: bool,
}

/// What is at the paths.
#[derive(Default)]
pub(super) struct Walk {
    pub files: Vec<Candidate>,
    /// Length of all files together, in bytes.
    pub bytes: u64,
    /// Symbolic links that were not followed.
    pub links: u64,
    /// What cannot be searched.
    pub errors: Vec<(PathBuf, ContentError)>,
}

impl Walk {
    /// Looks at the paths and all that is below them, sorted by name.
    pub fn of(paths: &[PathBuf]) -> Self {
        let mut walk = Self::default();
        for path in paths {
            for entry in WalkDir::new(path).sort_by_file_name() {
                match entry {
                    Ok(entry) => walk.add(entry),
                    Err(error) => {
                        let at = error.path().unwrap_or(path).to_owned();
                        // Links are not followed, so there are no loops, which have no cause.
                        let error = error
                            .into_io_error()
                            .unwrap_or_else(|| io::Error::other("it contains itself"));
                        walk.errors.push((at, error.into()));
                    }
                }
            }
        }
        walk
    }

    fn add(&mut self, entry: DirEntry) {
        let given = entry.depth() == 0;
        let mut kind = entry.file_type();
        let mut metadata = entry.metadata().map_err(io::Error::from);
        if kind.is_symlink() && given {
            metadata = std::fs::metadata(entry.path());
        }
        if let Ok(metadata) = &metadata {
            kind = metadata.file_type();
        }
        let path = entry.into_path();
        match metadata {
            Err(error) => self.errors.push((path, error.into())),
            // What is in it comes next.
            Ok(_) if kind.is_dir() => {}
            Ok(_) if kind.is_symlink() => self.links += 1,
            Ok(metadata) if kind.is_file() => {
                self.bytes = self.bytes.saturating_add(metadata.len());
                self.files.push(Candidate {
                    path,
                    follow: given,
                });
            }
            Ok(_) => self.errors.push((path, special(kind))),
        }
    }
}

impl Candidate {
    /// Opens the file, if it is one still.
    pub fn open(&self) -> Result<File, ContentError> {
        open(&self.path, self.follow)
    }
}

/// Opens a regular file; what is put in its place meanwhile does not make us wait.
pub(super) fn open(path: &Path, follow: bool) -> Result<File, ContentError> {
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        Ok(file)
    } else {
        Err(special(kind))
    }
}

fn special(kind: FileType) -> ContentError {
    ContentError::Special(match kind {
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_char_device() => "a character device",
        _ => "not a regular file",
    })
}
