//! What can be searched: files, and parts of images.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use cachot_snapshot::image::{Image, ImageError, PartName, next_data};

use super::search::Sink;

/// Why content was not searched to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// Not a file that could be searched.
    #[error("it is {0}, which cannot be searched: name regular files and folders")]
    Special(&'static str),
    /// It has lost its end.
    #[error("it became shorter while it was searched: try again when nothing writes to it")]
    Shrunk,
    /// A part of an image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Bytes to search.
pub(super) trait Content: Sync {
    /// How many there are, as far as is known.
    fn len(&self) -> u64;

    /// Whether several threads can read a range each.
    fn has_ranges(&self) -> bool;

    /// The first place from `at` on that may be no hole.
    fn next_data(&self, at: u64) -> io::Result<u64> {
        Ok(at)
    }

    /// Hands what is in the range and no hole to `sink`, by ascending offset; returns where it ended: at the end of the
    /// range, or of the content.
    fn read(&self, range: Range<u64>, sink: &mut Sink<'_, '_>) -> Result<u64, ContentError>;
}

/// A file of whatever content.
pub(super) struct FileContent {
    file: File,
    len: u64,
}

impl FileContent {
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// Reads some of what is at `at`, straight to where it is searched.
    fn read_some(&self, at: u64, most: u64, sink: &mut Sink<'_, '_>) -> io::Result<u64> {
        let read = sink.feed_by(at, most, |into| {
            loop {
                match self.file.read_at(into, at) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => return other,
                }
            }
        })?;
        Ok(read as u64)
    }
}

impl Content for FileContent {
    fn len(&self) -> u64 {
        self.len
    }

    fn has_ranges(&self) -> bool {
        true
    }

    fn next_data(&self, at: u64) -> io::Result<u64> {
        next_data(&self.file, at, self.len)
    }

    fn read(&self, range: Range<u64>, sink: &mut Sink<'_, '_>) -> Result<u64, ContentError> {
        let end = range.end.min(self.len);
        let mut at = range.start;
        while at < end {
            at = next_data(&self.file, at, end)?;
            if at == end {
                break;
            }
            match self.read_some(at, end - at, sink)? {
                0 => return Err(ContentError::Shrunk),
                read => at += read,
            }
        }
        // It may have grown, and files of /proc do not tell a length.
        while at < range.end {
            match self.read_some(at, range.end - at, sink)? {
                0 => break,
                read => at += read,
            }
        }
        // What was cut off looks like a hole.
        if self.file.metadata()?.len() < self.len {
            return Err(ContentError::Shrunk);
        }
        Ok(at)
    }
}

/// A part of an image, checked while it is read, and decrypted if need be.
pub(super) struct PartContent<'a> {
    pub image: &'a Image,
    pub name: PartName,
}

impl Content for PartContent<'_> {
    fn len(&self) -> u64 {
        let part = self.image.manifest().part(self.name);
        part.map_or(0, |part| part.length)
    }

    fn has_ranges(&self) -> bool {
        !self.image.manifest().is_encrypted()
    }

    fn read(&self, range: Range<u64>, sink: &mut Sink<'_, '_>) -> Result<u64, ContentError> {
        let end = range.end.min(self.len());
        self.image
            .stream(self.name, range.start..end, &mut |at, bytes| {
                sink.feed(at, bytes);
                Ok(())
            })?;
        Ok(end)
    }
}
