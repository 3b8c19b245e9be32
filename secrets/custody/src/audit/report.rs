//! What a check of a log has found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::chain::Hash;
use super::line::{Anchor, LogId};

/// What there is to say of a place in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// Number of the line in this file, from 1; none if it is about the file.
    pub line: Option<u64>,
    /// What it is.
    pub flaw: Flaw,
}

/// What can be wrong with a log, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not the written form of a line.
    #[error("not a line of a log, or one that was changed")]
    NotALine,
    /// Its number does not follow.
    #[error(
        "its number is {found}, where {expected} follows: lines are missing, repeated or in another order"
    )]
    Sequence {
        /// In the line.
        found: u64,
        /// After the line before.
        expected: u64,
    },
    /// Its `prev` is not the hash of the line before.
    #[error(
        "it does not continue the line before: one of the two was changed, or what was between them is missing"
    )]
    Chain,
    /// Its signature is wrong.
    #[error(
        "the checkpoint's signature does not fit: the lines before it are not those that were signed"
    )]
    Signature,
    /// A key of others.
    #[error("the checkpoint is signed by the key {0}, which is not trusted here")]
    UntrustedKey(String),
    /// A key of others that is trusted.
    #[error(
        "the checkpoint, and maybe others, is signed by the key {0}, which is trusted here and is not this host's own"
    )]
    OtherKey(String),
    /// The first line of a file is something else.
    #[error("a file begins with a line of the kind `log`, and only a file does")]
    Opening,
    /// The first line of a file is of another file or log.
    #[error("the file belongs to another place in this log, or to another log")]
    OtherLog,
    /// A later format.
    #[error("the format {0} is one of a later version of cachot")]
    Format(u32),
    /// There is no such file.
    #[error("the file is missing")]
    MissingFile,
    /// The file cannot be used.
    #[error("{0}")]
    Unreadable(String),
    /// A torn line that is spoken of is not there.
    #[error("the torn line that it speaks of is missing or was changed")]
    TornMissing,
    /// The log does not have the line that the head is a copy of.
    #[error("the log does not reach its head, line {0}: lines were cut off or changed")]
    BehindHead(u64),
    /// The log does not have the line that an anchor names.
    #[error("the host's log knows line {0} of this log, which is missing or was changed")]
    BehindAnchor(u64),
    /// The newest anchor of the log is not of its end.
    #[error(
        "the host's log does not know the end of this log: a writer was interrupted, or the host's log is an older one"
    )]
    AheadOfAnchor,
    /// There is no head.
    #[error("the head is missing: whether lines were cut off cannot be known")]
    NoHead,
    /// Lines that nothing signs.
    #[error("the last {0} lines have no checkpoint behind them: nobody has signed them")]
    Unsigned(u64),
    /// A writer was interrupted; a value was given out for what it wrote only if the power was lost afterwards.
    #[error(
        "a writer was interrupted here, and its {lines} lines and {bytes} bytes of another one came without a signature"
    )]
    Interrupted {
        /// Whole lines.
        lines: u64,
        /// Bytes of a torn one.
        bytes: u64,
    },
    /// The log ends with part of a line.
    #[error("the log ends with {0} bytes of a line: a writer was interrupted, or is at work")]
    Torn(u64),
}

/// What a check has found.
#[derive(Debug)]
pub struct Report {
    /// The log's folder.
    pub folder: PathBuf,
    /// Its id, where its first line can be read.
    pub log: Option<LogId>,
    /// Name of the VM whose log it is; none for the host's.
    pub vm: Option<String>,
    /// Number of files.
    pub files: u64,
    /// Number of lines.
    pub lines: u64,
    /// Number of records.
    pub records: u64,
    /// Number of the last line.
    pub seq: u64,
    /// Hash of the last line.
    pub hash: Hash,
    /// What is wrong.
    pub wrong: Vec<Finding>,
    /// What is not wrong and worth knowing.
    pub notes: Vec<Finding>,
    /// Whether there was more to say than is kept.
    pub more: bool,
    /// The newest anchor of each other log.
    pub anchors: BTreeMap<LogId, Anchor>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.wrong.is_empty()
    }
}
