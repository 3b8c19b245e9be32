//! Reading a log in order, and on as it grows.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::AuditError;
use super::layout::{self, CURRENT, MAX_FILE};
use super::line::{Body, Line};
use super::lines::{self, Piece};
use super::record::Record;
use crate::files::{self, Access, FileError};

/// What a reader comes by.
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// A record.
    Record {
        /// Number of its line in the log.
        seq: u64,
        /// When it was written.
        time: SystemTime,
        /// What it says.
        record: Box<Record>,
        /// The line.
        json: String,
    },
    /// A line that is none.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Number of the line in it, from 1.
        line: u64,
    },
}

/// Reads the records of a log. It checks nothing: [`verify`](super::verify()) does.
pub struct Reader {
    folder: PathBuf,
    /// Number of the file that is read, from 1.
    number: u64,
    /// Number of the last line.
    line: u64,
    path: PathBuf,
    file: BufReader<File>,
    /// What was read already, behind what is no line.
    ahead: Option<Next>,
}

/// A line, or what is none; with its bytes, if they are few enough for a line.
enum Next {
    Line(Line, Vec<u8>),
    Unreadable(Read, Vec<u8>),
}

impl Reader {
    /// Begins with the oldest record that there is.
    ///
    /// # Errors
    /// [`AuditError::NoLog`] or [`AuditError::File`].
    pub fn open(folder: &Path) -> Result<Self, AuditError> {
        let full = layout::full_files(folder)?;
        let number = full.first().copied().unwrap_or(1);
        match open(folder, number)? {
            Some((path, file)) => Ok(Self {
                folder: folder.to_owned(),
                number,
                line: 0,
                path,
                file,
                ahead: None,
            }),
            None => Err(AuditError::NoLog(folder.to_owned())),
        }
    }

    /// What comes next; `None` if there is nothing more for now. What an interrupted writer has left of a line is passed
    /// over.
    ///
    /// # Errors
    /// [`AuditError::File`].
    pub fn read(&mut self) -> Result<Option<Read>, AuditError> {
        loop {
            let next = match self.ahead.take() {
                None => self.next()?,
                ahead => ahead,
            };
            match next {
                None => return Ok(None),
                Some(Next::Line(line, bytes)) => {
                    if let Some(read) = record(line, bytes) {
                        return Ok(Some(read));
                    }
                }
                Some(Next::Unreadable(read, bytes)) => {
                    self.ahead = self.next()?;
                    let is_torn = match &self.ahead {
                        Some(Next::Line(line, _)) => match &line.body {
                            Body::Recovered(recovered) => recovered.speaks_of(&bytes),
                            _ => false,
                        },
                        _ => false,
                    };
                    if !is_torn {
                        return Ok(Some(read));
                    }
                }
            }
        }
    }

    /// The next line, from whatever file.
    fn next(&mut self) -> Result<Option<Next>, AuditError> {
        loop {
            // Asked before the last bytes are read: nobody adds to a file that is full.
            let is_full = layout::full(&self.folder, self.number).exists();
            match self.piece()? {
                Some(Piece::Line(bytes)) => {
                    self.line += 1;
                    return Ok(Some(match Line::parse(&bytes) {
                        Some(line) => Next::Line(line, bytes),
                        None => Next::Unreadable(self.unreadable(), bytes),
                    }));
                }
                Some(Piece::Unended(bytes)) if !is_full => {
                    // The rest of it comes later.
                    let back = i64::try_from(bytes.len()).unwrap_or(0);
                    self.file
                        .seek(SeekFrom::Current(-back))
                        .map_err(FileError::system("read", &self.path))?;
                    return Ok(None);
                }
                Some(Piece::Unended(_) | Piece::TooLong) => {
                    self.line += 1;
                    return Ok(Some(Next::Unreadable(self.unreadable(), Vec::new())));
                }
                None if is_full => match open(&self.folder, self.number + 1)? {
                    Some((path, file)) => {
                        self.number += 1;
                        self.line = 0;
                        self.path = path;
                        self.file = file;
                    }
                    // It is about to be begun.
                    None => return Ok(None),
                },
                None => return Ok(None),
            }
        }
    }

    fn piece(&mut self) -> Result<Option<Piece>, AuditError> {
        Ok(lines::next(&mut self.file).map_err(FileError::system("read", &self.path))?)
    }

    fn unreadable(&self) -> Read {
        Read::Unreadable {
            path: self.path.clone(),
            line: self.line,
        }
    }
}

/// Opens the file of this number, which is full or grows.
fn open(folder: &Path, number: u64) -> Result<Option<(PathBuf, BufReader<File>)>, AuditError> {
    let full = layout::full(folder, number);
    let current = folder.join(CURRENT);
    let open = |path: &Path| match files::open(path, Access::Private, MAX_FILE) {
        Err(FileError::Absent(_)) => Ok(None),
        other => other.map(|file| Some((path.to_owned(), BufReader::new(file)))),
    };
    if let Some(opened) = open(&full)? {
        return Ok(Some(opened));
    }
    let grows = open(&current)?;
    // It may have become full meanwhile, and the next one have its name.
    match open(&full)? {
        Some(opened) => Ok(Some(opened)),
        None => Ok(grows),
    }
}

fn record(line: Line, bytes: Vec<u8>) -> Option<Read> {
    let Body::Secret(record) = line.body else {
        return None;
    };
    Some(Read::Record {
        seq: line.seq,
        time: line.time.0,
        record: Box::new(record),
        // A line that was read as JSON is UTF-8.
        json: String::from_utf8(bytes).ok()?,
    })
}
