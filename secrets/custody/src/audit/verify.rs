//! Finding out whether a log is what was written: every line, signature and file, against its head and anchors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::chain::{Chain, Hash};
use super::checkpoint::{self, Trust, Verifier};
use super::error::AuditError;
use super::layout::{self, CURRENT, HEAD, LOCK, MAX_FILE};
use super::line::{Anchor, Body, FORMAT, Line, LogId, Recovered};
use super::lines::{self, Piece};
use super::log::read_head;
use super::report::{Finding, Flaw, Report};
use crate::files::{self, Access, FileError};

/// Most findings of a report: a log of nonsense has one a line.
const MAX_FINDINGS: usize = 100;

/// Most logs whose anchors are kept.
const MAX_ANCHORED: usize = 1 << 20;

/// Checks the log in this folder; `anchors` are what the host's log says of others, for a VM's log.
///
/// # Errors
/// [`AuditError::NoLog`] or [`AuditError::File`] if the log cannot be read at all. What is wrong with it is in the report.
pub fn verify(
    folder: &Path,
    verifier: &dyn Verifier,
    anchors: Option<&BTreeMap<LogId, Anchor>>,
) -> Result<Report, AuditError> {
    let snapshot = Snapshot::take(folder)?;
    let mut check = Check::new(folder, verifier, anchors, snapshot.head);
    for (path, file) in snapshot.files {
        let opened = match file {
            Some(opened) => Ok(opened),
            None => open(&path),
        };
        check.file(path, opened)?;
    }
    Ok(check.finish())
}

/// What a log was at one moment, while nobody wrote.
struct Snapshot {
    /// The files in order; the one that grows is open, with its length.
    files: Vec<(PathBuf, Option<(File, u64)>)>,
    head: HeadState,
}

enum HeadState {
    Absent,
    Damaged(String),
    Is { chain: Chain, line: Vec<u8> },
}

impl Snapshot {
    fn take(folder: &Path) -> Result<Self, AuditError> {
        let lock = folder.join(LOCK);
        // A copy of a log, or one on a read-only disk, has no writers to wait for.
        let held = match files::open(&lock, Access::Private, u64::MAX) {
            Ok(file) => {
                files::wait_for_lock(&file, FlockOperation::NonBlockingLockShared, &lock)?;
                Some(file)
            }
            Err(_) => None,
        };
        let full = layout::full_files(folder)?;
        let mut files: Vec<_> = full
            .iter()
            .map(|number| (layout::full(folder, *number), None))
            .collect();
        let current = folder.join(CURRENT);
        let opened = open(&current);
        let head = match read_head(folder) {
            Ok(None) => HeadState::Absent,
            Ok(Some((_, chain, line))) => HeadState::Is { chain, line },
            Err(error) => HeadState::Damaged(error.to_string()),
        };
        match opened {
            Err(FileError::Absent(_)) if files.is_empty() => {
                if matches!(head, HeadState::Absent) {
                    return Err(AuditError::NoLog(folder.to_owned()));
                }
                files.push((current, None));
            }
            // Whoever began the next file was killed.
            Err(FileError::Absent(_)) => {}
            Err(_) => files.push((current, None)),
            Ok(opened) => files.push((current, Some(opened))),
        }
        drop(held);
        Ok(Self { files, head })
    }
}

fn open(path: &Path) -> Result<(File, u64), FileError> {
    let file = files::open(path, Access::Private, MAX_FILE)?;
    let length = file
        .metadata()
        .map_err(FileError::system("examine", path))?
        .len();
    Ok((file, length))
}

/// A check on its way through the files.
struct Check<'a> {
    verifier: &'a dyn Verifier,
    known: Option<&'a BTreeMap<LogId, Anchor>>,
    head: HeadState,
    /// Whether the line that the head is a copy of was seen.
    head_seen: bool,
    anchor_seen: bool,
    chain: Chain,
    /// Lines since the last checkpoint.
    unsigned: u64,
    /// Trusted keys that have signed and are not this host's own.
    others: BTreeSet<[u8; 32]>,
    /// A piece that is not a line, and may be a torn one.
    torn: Option<(Finding, Vec<u8>)>,
    path: PathBuf,
    at: u64,
    report: Report,
}

impl<'a> Check<'a> {
    fn new(
        folder: &Path,
        verifier: &'a dyn Verifier,
        known: Option<&'a BTreeMap<LogId, Anchor>>,
        head: HeadState,
    ) -> Self {
        Self {
            verifier,
            known,
            head,
            head_seen: false,
            anchor_seen: false,
            chain: Chain::EMPTY,
            unsigned: 0,
            others: BTreeSet::new(),
            torn: None,
            path: folder.join(CURRENT),
            at: 0,
            report: Report {
                folder: folder.to_owned(),
                log: None,
                vm: None,
                files: 0,
                lines: 0,
                records: 0,
                seq: 0,
                hash: Hash::NONE,
                wrong: Vec::new(),
                notes: Vec::new(),
                more: false,
                anchors: BTreeMap::new(),
            },
        }
    }

    fn file(
        &mut self,
        path: PathBuf,
        opened: Result<(File, u64), FileError>,
    ) -> Result<(), AuditError> {
        self.report.files += 1;
        self.at = 0;
        let expected = layout::full(&self.report.folder, self.report.files);
        let current = self.report.folder.join(CURRENT);
        if path != current && path != expected {
            self.path = expected;
            self.wrong_file(Flaw::MissingFile);
            // Go on with the number that is there.
            let number = path
                .to_str()
                .and_then(|path| path.get(path.len() - 12..path.len() - 6));
            self.report.files = number
                .and_then(|number| number.parse().ok())
                .unwrap_or(self.report.files);
        }
        self.path = path;
        let (file, length) = match opened {
            Ok(opened) => opened,
            Err(FileError::Absent(_)) => {
                self.wrong_file(Flaw::MissingFile);
                return Ok(());
            }
            Err(error) => {
                self.wrong_file(Flaw::Unreadable(error.to_string()));
                return Ok(());
            }
        };
        let mut reader = BufReader::new(file.take(length));
        loop {
            let piece = lines::next(&mut reader).map_err(FileError::system("read", &self.path))?;
            let Some(piece) = piece else { break };
            self.at += 1;
            self.piece(piece);
        }
        if self.at == 0 {
            self.wrong_file(Flaw::Opening);
        }
        Ok(())
    }

    fn piece(&mut self, piece: Piece) {
        match piece {
            Piece::TooLong => {
                self.settle_torn(None);
                self.wrong(Flaw::NotALine);
            }
            Piece::Unended(bytes) => {
                self.settle_torn(None);
                let flaw = Flaw::Torn(bytes.len() as u64);
                let finding = self.finding(flaw);
                // In front of another file nobody is at work.
                match self.path.ends_with(CURRENT) {
                    true => self.note(finding),
                    false => self.add_wrong(finding),
                }
            }
            Piece::Line(bytes) => match Line::parse(&bytes) {
                Some(line) => self.line(line, &bytes),
                None => {
                    self.settle_torn(None);
                    let finding = self.finding(Flaw::NotALine);
                    self.torn = Some((finding, bytes));
                }
            },
        }
    }

    fn line(&mut self, line: Line, bytes: &[u8]) {
        self.report.lines += 1;
        let recovered = match &line.body {
            Body::Recovered(recovered) => Some(recovered),
            _ => None,
        };
        self.settle_torn(recovered);

        let before = self.chain;
        self.chain = Chain::after(&line, bytes);
        let expected = before.seq.saturating_add(1);
        let found = line.seq;
        if found != expected {
            self.wrong(Flaw::Sequence { found, expected });
        } else if line.prev != before.hash {
            self.wrong(Flaw::Chain);
        }
        if (self.at == 1) != matches!(line.body, Body::Log(_)) {
            self.wrong(Flaw::Opening);
        }
        if let HeadState::Is { line, .. } = &self.head {
            self.head_seen |= line == bytes;
        }
        if let Some(anchor) = self.anchor() {
            self.anchor_seen |= anchor.line == found && anchor.hash == self.chain.hash;
        }

        self.unsigned += 1;
        match line.body {
            Body::Log(opening) => {
                if opening.format != FORMAT {
                    self.wrong(Flaw::Format(opening.format));
                }
                if self.report.log.is_none() {
                    self.report.log = Some(opening.id);
                    self.report.vm = opening.vm.clone();
                }
                if opening.file != self.report.files
                    || Some(opening.id) != self.report.log
                    || opening.vm != self.report.vm
                {
                    self.wrong(Flaw::OtherLog);
                }
            }
            Body::Secret(_) => self.report.records += 1,
            Body::Anchor(anchor) => {
                if self.report.anchors.len() < MAX_ANCHORED {
                    self.report.anchors.insert(anchor.log, anchor);
                }
            }
            Body::Recovered(recovered) => {
                let lines = self.unsigned - 1;
                let finding = self.finding(Flaw::Interrupted {
                    lines,
                    bytes: recovered.bytes,
                });
                self.note(finding);
            }
            Body::Checkpoint(checkpoint) => {
                self.unsigned = 0;
                if let Some(log) = self.report.log {
                    match checkpoint::check(&checkpoint, log, before, self.verifier) {
                        Trust::Good => {}
                        Trust::Other => self.signed_by_other(checkpoint.key),
                        Trust::WrongSignature => self.wrong(Flaw::Signature),
                        Trust::UntrustedKey => {
                            self.wrong(Flaw::UntrustedKey(hex::encode(checkpoint.key)));
                        }
                    }
                }
            }
        }
    }

    /// Notes a trusted key that is not this host's own, once.
    fn signed_by_other(&mut self, key: [u8; 32]) {
        if self.others.insert(key) {
            let finding = self.finding(Flaw::OtherKey(hex::encode(key)));
            // First: however many notes there are, this one is among them.
            self.report.notes.insert(0, finding);
        }
    }

    /// A piece that is no line is a torn one if the line behind it says so.
    fn settle_torn(&mut self, next: Option<&Recovered>) {
        match (self.torn.take(), next) {
            (Some((_, bytes)), Some(recovered)) if recovered.speaks_of(&bytes) => {}
            (Some((finding, _)), _) => self.add_wrong(finding),
            (None, Some(recovered)) if recovered.bytes > 0 => self.wrong(Flaw::TornMissing),
            (None, _) => {}
        }
    }

    fn finish(mut self) -> Report {
        self.settle_torn(None);
        self.report.seq = self.chain.seq;
        self.report.hash = self.chain.hash;
        if self.unsigned > 0 {
            let finding = self.finding(Flaw::Unsigned(self.unsigned));
            self.note(finding);
        }
        match self.anchor() {
            Some(anchor) if !self.anchor_seen => self.wrong_file(Flaw::BehindAnchor(anchor.line)),
            Some(anchor) if anchor.line == self.chain.seq => {}
            _ if self.known.is_none() => {}
            _ => {
                let finding = self.finding(Flaw::AheadOfAnchor);
                self.note(finding);
            }
        }
        let flaw = match &self.head {
            HeadState::Is { chain, .. } if !self.head_seen => Some(Flaw::BehindHead(chain.seq)),
            HeadState::Is { .. } => None,
            HeadState::Absent => Some(Flaw::NoHead),
            HeadState::Damaged(why) => Some(Flaw::Unreadable(why.clone())),
        };
        if let Some(flaw) = flaw {
            self.path = self.report.folder.join(HEAD);
            self.wrong_file(flaw);
        }
        self.report
    }

    /// What the host's log says of this one.
    fn anchor(&self) -> Option<&'a Anchor> {
        self.known?.get(&self.report.log?)
    }

    fn finding(&self, flaw: Flaw) -> Finding {
        Finding {
            path: self.path.clone(),
            line: Some(self.at),
            flaw,
        }
    }

    fn wrong(&mut self, flaw: Flaw) {
        let finding = self.finding(flaw);
        self.add_wrong(finding);
    }

    fn wrong_file(&mut self, flaw: Flaw) {
        self.add_wrong(Finding {
            path: self.path.clone(),
            line: None,
            flaw,
        });
    }

    fn add_wrong(&mut self, finding: Finding) {
        match self.report.wrong.len() < MAX_FINDINGS {
            true => self.report.wrong.push(finding),
            false => self.report.more = true,
        }
    }

    fn note(&mut self, finding: Finding) {
        match self.report.notes.len() < MAX_FINDINGS {
            true => self.report.notes.push(finding),
            false => self.report.more = true,
        }
    }
}
