//! `dotenv:PATH#KEY`, and all keys of such a file: lines of `KEY=value`.
//!
//! The format's rules stand at [`Dotenv`]. Lines are read into locked memory and values copied out
//! of it into locked memory, so no value is ever in a string.

use std::io::{self, Read};
use std::path::Path;

use super::{ResolveError, Scheme, file};
use crate::locked::LockedBuffer;
use crate::value::SecretValue;

/// Longest line of a dotenv file, in bytes, without its end: 1 MiB.
pub const MAX_LINE_LEN: usize = 1 << 20;

/// Largest dotenv file, in bytes: 16 MiB, so that reading an endless pipe ends.
pub const MAX_DOTENV_LEN: usize = 16 << 20;

/// `dotenv:PATH#KEY`: the value of one key. The key is what follows the last `#`.
///
/// Every line is, after white space around it is dropped,
/// - empty, or a comment that begins with `#`; or
/// - `KEY=value`, with `export ` before it if you like. White space around key and value is
///   dropped, then one pair of quotes, `"..."` or `'...'`, around the value. What is left is the
///   value as it is: nothing is unescaped or substituted, and `#` begins no comment in it.
///
/// Any other line is an error. Of a key that occurs more than once the last line counts. White
/// space is ASCII white space; lines end with a line feed, with or without a carriage return; a
/// byte order mark before the first line is passed over. A line has at most [`MAX_LINE_LEN`]
/// bytes, the file [`MAX_DOTENV_LEN`].
pub struct Dotenv;

impl Scheme for Dotenv {
    fn name(&self) -> &'static str {
        "dotenv"
    }

    fn is_plaintext(&self) -> bool {
        true
    }

    fn resolve(&self, locator: &str) -> Result<SecretValue, ResolveError> {
        let (path, key) = locator
            .rsplit_once('#')
            .filter(|(path, key)| !path.is_empty() && !key.is_empty())
            .ok_or(ResolveError::NoKeyNamed)?;
        let path = Path::new(path);
        let mut found = None;
        // To the end of the file: a later line replaces an earlier one, and a broken line is an
        // error wherever it stands.
        for_each_entry(path, |_, entry| {
            if entry.key == key.as_bytes() {
                found = Some(value_of(path, &entry));
            }
            Ok::<(), ResolveError>(())
        })?;
        found.unwrap_or_else(|| {
            Err(ResolveError::NoKey {
                path: path.into(),
                key: key.to_owned(),
            })
        })
    }
}

/// The key and the value of one line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<'line> {
    pub(crate) key: &'line [u8],
    pub(crate) value: &'line [u8],
}

/// Copies an entry's value into locked memory of its own.
pub(crate) fn value_of(path: &Path, entry: &Entry<'_>) -> Result<SecretValue, ResolveError> {
    SecretValue::copy_of(entry.value).map_err(|error| {
        let key = String::from_utf8_lossy(entry.key);
        ResolveError::of_value(format_args!("the key {key:?} of {path:?}"), path, error)
    })
}

/// Calls `visit` with line number and content of every entry of a dotenv file, from the first to
/// the last.
pub(crate) fn for_each_entry<E: From<ResolveError>>(
    path: &Path,
    mut visit: impl FnMut(usize, Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let file = file::open(path)?;
    let mut lines = Lines::new(file).map_err(|error| error.into_resolve(path))?;
    while let Some((line, text)) = lines.next().map_err(|error| error.into_resolve(path))? {
        let path = || path.into();
        match parse_line(text) {
            Ok(None) => {}
            Ok(Some(entry)) => visit(line, entry)?,
            Err(Malformed::NotKeyValue) => {
                return Err(ResolveError::NotKeyValue { path: path(), line }.into());
            }
            Err(Malformed::EmptyKey) => {
                return Err(ResolveError::EmptyKey { path: path(), line }.into());
            }
        }
    }
    Ok(())
}

/// Why a line is not an entry.
#[derive(Debug, PartialEq, Eq)]
enum Malformed {
    NotKeyValue,
    EmptyKey,
}

/// One line, with or without its end; `None` for blank lines and comments.
fn parse_line(line: &[u8]) -> Result<Option<Entry<'_>>, Malformed> {
    let text = line.trim_ascii();
    if text.is_empty() || text.starts_with(b"#") {
        return Ok(None);
    }
    let text = text.strip_prefix(b"export ").unwrap_or(text);
    let equals = text
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or(Malformed::NotKeyValue)?;
    let key = text[..equals].trim_ascii();
    if key.is_empty() {
        return Err(Malformed::EmptyKey);
    }
    let value = match text[equals + 1..].trim_ascii() {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
        plain => plain,
    };
    Ok(Some(Entry { key, value }))
}

/// Why lines cannot be read on.
enum LineError {
    Read(io::Error),
    Lock(crate::locked::LockError),
    LineTooLong(usize),
    FileTooLong,
}

impl LineError {
    fn into_resolve(self, path: &Path) -> ResolveError {
        match self {
            Self::Read(error) => ResolveError::of_file(path, error),
            Self::Lock(error) => ResolveError::Lock(error),
            Self::LineTooLong(line) => ResolveError::LineTooLong {
                path: path.into(),
                line,
            },
            Self::FileTooLong => ResolveError::DotenvTooLong { path: path.into() },
        }
    }
}

/// Lines of a reader, in one locked buffer that is as large as the longest of them.
struct Lines<R> {
    reader: R,
    buffer: LockedBuffer,
    /// Where the next line begins in `buffer`.
    start: usize,
    /// Where the bytes read so far end in `buffer`.
    end: usize,
    /// Number of the line last returned.
    line: usize,
    /// Bytes read so far.
    total: usize,
    /// Whether the reader has ended.
    ended: bool,
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl<R: Read> Lines<R> {
    fn new(reader: R) -> Result<Self, LineError> {
        Ok(Self {
            reader,
            buffer: LockedBuffer::new(64 << 10).map_err(LineError::Lock)?,
            start: 0,
            end: 0,
            line: 0,
            total: 0,
            ended: false,
        })
    }

    /// Number, counted from 1, and content of the next line, without its line feed.
    fn next(&mut self) -> Result<Option<(usize, &[u8])>, LineError> {
        let mut searched = self.start;
        let (from, to) = loop {
            let fresh = &self.buffer[searched..self.end];
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let to = searched + at;
                let from = std::mem::replace(&mut self.start, to + 1);
                break (from, to);
            }
            if self.ended {
                if self.start == self.end {
                    return Ok(None);
                }
                let from = std::mem::replace(&mut self.start, self.end);
                break (from, self.end);
            }
            if self.end - self.start > MAX_LINE_LEN {
                return Err(LineError::LineTooLong(self.line + 1));
            }
            let pending = self.end - self.start;
            self.fill()?;
            searched = self.start + pending;
        };
        if to - from > MAX_LINE_LEN {
            return Err(LineError::LineTooLong(self.line + 1));
        }
        self.line += 1;
        let text = &self.buffer[from..to];
        let text = match self.line {
            1 => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
            _ => text,
        };
        Ok(Some((self.line, text)))
    }

    /// Reads more behind the bytes that are there, making room first.
    fn fill(&mut self) -> Result<(), LineError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // One byte over the limit is enough to know that it is exceeded.
            let larger = (2 * self.buffer.len()).min(MAX_LINE_LEN + 1);
            self.buffer.grow(larger).map_err(LineError::Lock)?;
        }
        loop {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    self.end += read;
                    self.total += read;
                    if self.total > MAX_DOTENV_LEN {
                        return Err(LineError::FileTooLong);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LineError::Read(error)),
            }
            return Ok(());
        }
    }
}
