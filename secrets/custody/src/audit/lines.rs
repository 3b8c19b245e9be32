//! Lines of a file, one at a time, in bounded memory whatever is in the file.

use std::io::{self, BufRead};

use super::line::MAX_LINE;

/// Longest piece, in bytes: a torn line and its mark.
const MAX_PIECE: usize = MAX_LINE + 1;

/// A piece of a file up to a line feed, or up to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// A line, without its line feed.
    Line(Vec<u8>),
    /// The end of the file, which has no line feed.
    Unended(Vec<u8>),
    /// More than [`MAX_PIECE`] bytes, passed over.
    TooLong,
}

/// Reads up to the next line feed; `None` at the end of the file.
pub(super) fn next(reader: &mut impl BufRead) -> io::Result<Option<Piece>> {
    let mut bytes = Vec::new();
    let mut length: usize = 0;
    loop {
        let chunk = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if chunk.is_empty() {
            return Ok(match length {
                0 => None,
                length if length > MAX_PIECE => Some(Piece::TooLong),
                _ => Some(Piece::Unended(bytes)),
            });
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        length = length.saturating_add(part.len());
        if length <= MAX_PIECE {
            bytes.extend(part);
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(match length {
                length if length > MAX_PIECE => Piece::TooLong,
                _ => Piece::Line(bytes),
            }));
        }
    }
}
