//! The file that grows as a writer finds it: its first line, its end, and the newest checkpoint in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::chain::Chain;
use super::error::{AuditError, damaged};
use super::layout::MAX_FILE;
use super::line::{Body, Checkpoint, Line, MAX_LINE, Opening};
use crate::files::{self, FileError};

/// Lines that a log has when it is made: the first one and a checkpoint.
const FIRST_LINES: u64 = 2;

/// Bytes at the end of a file that are read first: a line, its line feed, and part of another one.
const END: usize = 2 * MAX_LINE + 2;

/// The file that grows, and its end.
pub(super) struct Current {
    pub file: File,
    pub length: u64,
    pub opening: Opening,
    pub tail: Tail,
    /// Whether there is nothing in it but what a log is made with.
    pub is_new: bool,
}

/// The end of a file.
pub(super) struct Tail {
    pub chain: Chain,
    /// What follows the last line feed.
    pub fragment: Vec<u8>,
    /// The last checkpoint, which is the last line unless a writer was interrupted.
    pub signed: Signed,
}

/// A checkpoint of a file.
pub(super) struct Signed {
    pub checkpoint: Checkpoint,
    /// Up to the line before.
    pub before: Chain,
    /// Up to the checkpoint.
    pub chain: Chain,
    pub bytes: Vec<u8>,
}

impl Tail {
    /// Whether the last writer was not interrupted.
    pub fn is_whole(&self) -> bool {
        self.fragment.is_empty() && self.signed.chain == self.chain
    }
}

/// Opens a file and reads its first line, its end, and the last checkpoint.
pub(super) fn open(path: &Path) -> Result<Current, AuditError> {
    let file = files::open_for_appending(path, MAX_FILE)?;
    let failed = || FileError::system::<io::Error>("read", path);
    let length = file.metadata().map_err(failed())?.len();
    let read_end = |bytes: usize| -> Result<Vec<u8>, AuditError> {
        let mut end = vec![0; at_most(length, bytes)];
        let at = length - end.len() as u64;
        file.read_exact_at(&mut end, at).map_err(failed())?;
        Ok(end)
    };

    let mut start = vec![0; at_most(length, MAX_LINE + 1)];
    file.read_exact_at(&mut start, 0).map_err(failed())?;
    let first = start.split(|byte| *byte == b'\n').next().unwrap_or(&start);
    let opening = match Line::parse(first).map(|line| line.body) {
        Some(Body::Log(opening)) => opening,
        _ => return Err(damaged(path, "does not begin as a log does")),
    };

    let mut end = read_end(END)?;
    let (chain, fragment) =
        last(&end).ok_or_else(|| damaged(path, "does not end as a log does"))?;
    let signed = loop {
        let is_all = end.len() as u64 == length;
        match last_checkpoint(&end, is_all) {
            Some(signed) => break signed,
            None if is_all => return Err(damaged(path, "has no checkpoint")),
            // What interrupted writers have left may be any number of lines; they are read once after each of them.
            None => end = read_end(end.len().saturating_mul(2))?,
        }
    };
    let tail = Tail {
        chain,
        fragment,
        signed,
    };
    let made = first.len() + 1 + tail.signed.bytes.len() + 1;
    Ok(Current {
        is_new: tail.is_whole() && tail.chain.seq == FIRST_LINES && made as u64 == length,
        file,
        length,
        opening,
        tail,
    })
}

fn at_most(length: u64, bytes: usize) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX).min(bytes)
}

/// Where the last line leaves the chain, and what follows its line feed; `None` if it is no line.
fn last(end: &[u8]) -> Option<(Chain, Vec<u8>)> {
    let feed = end.iter().rposition(|byte| *byte == b'\n')?;
    let (lines, fragment) = (&end[..feed], &end[feed + 1..]);
    let bytes = lines.rsplit(|byte| *byte == b'\n').next()?;
    let line = Line::parse(bytes)?;
    (fragment.len() <= MAX_LINE).then(|| (Chain::after(&line, bytes), fragment.to_vec()))
}

/// The last checkpoint in the end of a file, or in all of it.
fn last_checkpoint(end: &[u8], is_all: bool) -> Option<Signed> {
    let feed = |byte: &u8| *byte == b'\n';
    let begin = match is_all {
        true => 0,
        false => end.iter().position(feed)? + 1,
    };
    let ended = &end[begin..=end.iter().rposition(feed)?];
    ended.rsplit(feed).find_map(|bytes| {
        let line = Line::parse(bytes)?;
        let chain = Chain::after(&line, bytes);
        let before = Chain {
            seq: line.seq.checked_sub(1)?,
            hash: line.prev,
        };
        match line.body {
            Body::Checkpoint(checkpoint) => Some(Signed {
                checkpoint,
                before,
                chain,
                bytes: bytes.to_vec(),
            }),
            _ => None,
        }
    })
}
