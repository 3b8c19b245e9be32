//! Writing a log: batches that are chained, signed, and written before a value is given out; on the disk too, where that
//! is asked for.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};

use super::chain::Chain;
use super::checkpoint::{self, Signer};
use super::error::{AuditError, damaged};
use super::layout::{self, CURRENT, HEAD, LOCK, ROTATE_AT};
use super::line::{Anchor, Body, FORMAT, Line, LogId, MAX_LINE, Opening, Recovered, TORN_MARK};
use super::record::Record;
use super::tail::{Current, open};
use crate::files::{self, Access, Existing, FileError};

/// Most entries of a batch: more than a VM has secrets, and a batch fits between [`ROTATE_AT`] and
/// [`MAX_FILE`](layout::MAX_FILE).
const MAX_BATCH: usize = 4096;

/// What is written to a log.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A use of a secret.
    Record(Record),
    /// The head of another log.
    Anchor(Anchor),
}

/// The newest checkpoint of a log, as one writer knows it.
#[derive(Debug)]
pub struct Head {
    log: LogId,
    chain: Chain,
    line: Vec<u8>,
    file: File,
    path: PathBuf,
}

impl Head {
    /// Waits until the disk has the log up to here.
    ///
    /// # Errors
    /// [`AuditError::File`].
    pub fn sync(&self) -> Result<(), AuditError> {
        let synced = self.file.sync_data();
        Ok(synced.map_err(FileError::system("write", &self.path))?)
    }

    /// What another log says of this one.
    #[must_use]
    pub fn anchor(&self, vm: &str) -> Anchor {
        Anchor {
            vm: vm.to_owned(),
            log: self.log,
            line: self.chain.seq,
            hash: self.chain.hash,
        }
    }
}

/// A log that records are added to, by any number of processes at the same time.
pub struct Log<'a> {
    folder: PathBuf,
    vm: Option<String>,
    signer: &'a dyn Signer,
    /// Length at which the next file is begun.
    rotate_at: u64,
}

impl<'a> Log<'a> {
    /// The log in this folder, of this VM or, without one, of the host. Nothing is made or read yet.
    #[must_use]
    pub fn new(folder: &Path, vm: Option<&str>, signer: &'a dyn Signer) -> Self {
        Self {
            folder: folder.to_owned(),
            vm: vm.map(str::to_owned),
            signer,
            rotate_at: ROTATE_AT,
        }
    }

    /// Begins the next file at this length, for tests.
    #[cfg(test)]
    pub(super) fn rotating_at(self, length: u64) -> Self {
        Self {
            rotate_at: length,
            ..self
        }
    }

    /// Adds a batch of entries and a checkpoint. They are written when this returns, so that no end of a process can
    /// undo it: only then may values be given out. A loss of power can, before [`Head::sync`] or [`Self::close`].
    ///
    /// # Errors
    /// See [`AuditError`]; of the batch nothing counts as recorded then, but some of it may be in the file.
    pub fn append(&self, entries: &[Entry]) -> Result<Head, AuditError> {
        let (first, rest) = entries.split_at(entries.len().min(MAX_BATCH));
        let mut head = self.append_batch(first)?;
        for batch in rest.chunks(MAX_BATCH) {
            head = self.append_batch(batch)?;
        }
        Ok(head)
    }

    fn append_batch(&self, entries: &[Entry]) -> Result<Head, AuditError> {
        files::private_folder(&self.folder)?;
        let lock = self.lock()?;
        let current = self.current()?;
        let (batch, chain, line) = self.batch(&current, entries)?;
        let path = self.folder.join(CURRENT);
        (&current.file)
            .write_all(&batch)
            .map_err(FileError::system("write", &path))?;
        drop(lock);
        Ok(Head {
            log: current.opening.id,
            chain,
            line,
            file: current.file,
            path,
        })
    }

    /// Waits until the disk has the log up to this head, and makes that the one that a cut of the log is found by, unless
    /// a later one is.
    ///
    /// # Errors
    /// [`AuditError::File`].
    pub fn close(&self, head: &Head) -> Result<(), AuditError> {
        // First: a log that is behind its head after a loss of power is not gone on with.
        head.sync()?;
        let _lock = self.lock()?;
        match self.read_head()? {
            Some((_, later, _)) if later.seq >= head.chain.seq => Ok(()),
            _ => self.write_head(&head.line),
        }
    }

    fn lock(&self) -> Result<File, AuditError> {
        let path = self.folder.join(LOCK);
        Ok(files::lock(&path)?)
    }

    fn write_head(&self, line: &[u8]) -> Result<(), AuditError> {
        let path = self.folder.join(HEAD);
        Ok(files::write(&path, Existing::Replace, |file| {
            file.write_all(line)?;
            file.write_all(b"\n")
        })?)
    }

    fn read_head(&self) -> Result<Option<(Line, Chain, Vec<u8>)>, AuditError> {
        read_head(&self.folder)
    }

    /// Opens the file that grows; begins one if there is none yet, or if it is full.
    fn current(&self) -> Result<Current, AuditError> {
        let path = self.folder.join(CURRENT);
        let full = layout::full_files(&self.folder)?;
        let number = layout::next_number(&self.folder, &full)?;
        let current = match open(&path) {
            Err(AuditError::File(FileError::Absent(_))) => {
                return self.begin(number, self.last_full(number)?, Existing::Keep);
            }
            other => other?,
        };
        self.check_place(&path, &current.opening, number)?;
        if number == 1 && current.is_new && self.read_head()?.is_none() {
            // Whoever made the log was killed before it was done, or somebody has cut it to this: another id tells.
            return self.begin(number, None, Existing::Replace);
        }
        self.check_end(&path, &current)?;
        if current.length < self.rotate_at || !current.tail.is_whole() {
            return Ok(current);
        }
        current
            .file
            .sync_data()
            .map_err(FileError::system("write", &path))?;
        let name = layout::full(&self.folder, number);
        std::fs::rename(&path, &name).map_err(FileError::system("rename", &path))?;
        let full = [full, vec![number]].concat();
        self.begin(
            layout::next_number(&self.folder, &full)?,
            Some((current.opening.id, current.tail.chain)),
            Existing::Keep,
        )
    }

    /// The id and the end of the log, if its last file is full.
    fn last_full(&self, next: u64) -> Result<Option<(LogId, Chain)>, AuditError> {
        let last = match next.checked_sub(1) {
            None | Some(0) => return Ok(None),
            Some(last) => last,
        };
        let path = layout::full(&self.folder, last);
        let current = open(&path)?;
        self.check_place(&path, &current.opening, last)?;
        self.check_end(&path, &current)?;
        if !current.tail.is_whole() {
            return Err(damaged(&path, "is full and does not end with a checkpoint"));
        }
        Ok(Some((current.opening.id, current.tail.chain)))
    }

    /// Refuses to go on with a file that is not this one of this log.
    fn check_place(&self, path: &Path, opening: &Opening, number: u64) -> Result<(), AuditError> {
        if opening.format != FORMAT {
            return Err(damaged(path, "was written by a later version of cachot"));
        }
        if opening.file != number || opening.vm != self.vm {
            return Err(damaged(
                path,
                "is of another place in this log, or of another log",
            ));
        }
        Ok(())
    }

    /// Refuses to go on with a log that this host has not signed, or that lines were cut off from. Only what is signed
    /// counts: whoever can write to the file can put as many lines behind as were cut off.
    fn check_end(&self, path: &Path, current: &Current) -> Result<(), AuditError> {
        let newest = &current.tail.signed;
        if newest.checkpoint.key != self.signer.key() {
            return Err(AuditError::OtherKey {
                path: path.to_owned(),
                key: hex::encode(newest.checkpoint.key),
            });
        }
        let log = current.opening.id;
        if !checkpoint::is_own(&newest.checkpoint, log, newest.before, self.signer) {
            return Err(damaged(
                path,
                "has a last checkpoint that this host has not signed",
            ));
        }
        let Some((_, head, bytes)) = self.read_head()? else {
            return Err(damaged(path, "has lost its head, the file log.head"));
        };
        let end = newest.chain.seq;
        match head.seq > end || (head.seq == end && bytes != newest.bytes) {
            true => Err(damaged(path, "has lost lines that there were")),
            false => Ok(()),
        }
    }

    /// Begins a file: the first one of a log, or the next one.
    fn begin(
        &self,
        number: u64,
        before: Option<(LogId, Chain)>,
        existing: Existing,
    ) -> Result<Current, AuditError> {
        let path = self.folder.join(CURRENT);
        let is_new = before.is_none();
        let (id, mut chain) = match before {
            Some(before) => before,
            None if self.read_head()?.is_some() => {
                return Err(damaged(&path, "is gone, and its head is there"));
            }
            None => (
                random_id().map_err(FileError::system("name", &path))?,
                Chain::EMPTY,
            ),
        };
        let mut content = Vec::new();
        let opening = Opening {
            format: FORMAT,
            id,
            vm: self.vm.clone(),
            file: number,
        };
        chain.push(Body::Log(opening), &mut content)?;
        let line = checkpoint::push(&mut chain, id, self.signer, &mut content)?;
        files::write(&path, existing, |file| file.write_all(&content))?;
        if is_new {
            self.write_head(&line)?;
        }
        open(&path)
    }

    /// What is to be written for these entries, where the chain is then, and the checkpoint.
    fn batch(
        &self,
        current: &Current,
        entries: &[Entry],
    ) -> Result<(Vec<u8>, Chain, Vec<u8>), AuditError> {
        let mut chain = current.tail.chain;
        let mut torn = current.tail.fragment.clone();
        let mut batch = Vec::new();
        if !torn.is_empty() {
            torn.push(TORN_MARK);
            batch.extend([TORN_MARK, b'\n']);
        }
        if !current.tail.is_whole() {
            chain.push(Body::Recovered(Recovered::of(&torn)), &mut batch)?;
        }
        for entry in entries {
            let body = match entry {
                Entry::Record(record) => Body::Secret(record.clone()),
                Entry::Anchor(anchor) => Body::Anchor(anchor.clone()),
            };
            chain.push(body, &mut batch)?;
        }
        let log = current.opening.id;
        let line = checkpoint::push(&mut chain, log, self.signer, &mut batch)?;
        Ok((batch, chain, line))
    }
}

/// The newest checkpoint that was kept apart: the line, where it leaves the chain, its bytes.
pub(super) fn read_head(folder: &Path) -> Result<Option<(Line, Chain, Vec<u8>)>, AuditError> {
    let path = folder.join(HEAD);
    let file = match files::open(&path, Access::Private, MAX_LINE as u64 + 1) {
        Err(FileError::Absent(_)) => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_LINE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(FileError::system("read", &path))?;
    let whole = bytes.pop() == Some(b'\n');
    let line = Line::parse(&bytes).filter(|line| matches!(line.body, Body::Checkpoint(_)));
    match line {
        Some(line) if whole => {
            let chain = Chain::after(&line, &bytes);
            Ok(Some((line, chain, bytes)))
        }
        _ => Err(damaged(&path, "is not a checkpoint")),
    }
}

fn random_id() -> rustix::io::Result<LogId> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(LogId(bytes))
}
