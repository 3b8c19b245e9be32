//! The chain: every line has the hash of the one before.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::error::AuditError;
use super::line::{Body, Line, MAX_LINE, Time};

/// BLAKE3 of a line without its line feed; 64 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(#[serde(with = "hex::serde")] pub(super) [u8; 32]);

impl Hash {
    /// What the first line of a log has instead of the hash of one before.
    pub(super) const NONE: Self = Self([0; 32]);

    pub(super) fn of(line: &[u8]) -> Self {
        Self(*blake3::hash(line).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// The end of a chain: what the next line has to continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// Number of the last line; 0 if there is none.
    pub seq: u64,
    /// Hash of the last line.
    pub hash: Hash,
}

impl Chain {
    /// Before the first line.
    pub const EMPTY: Self = Self {
        seq: 0,
        hash: Hash::NONE,
    };

    /// After this line.
    pub fn after(line: &Line, bytes: &[u8]) -> Self {
        Self {
            seq: line.seq,
            hash: Hash::of(bytes),
        }
    }

    /// Adds a line to `output`, with its line feed; returns its bytes without.
    pub fn push(&mut self, body: Body, output: &mut Vec<u8>) -> Result<Vec<u8>, AuditError> {
        let line = Line {
            // 2^64 lines take longer to write than any disk lasts.
            seq: self.seq.saturating_add(1),
            time: Time(SystemTime::now()),
            body,
            prev: self.hash,
        };
        let bytes = line.to_bytes().map_err(AuditError::Describe)?;
        if bytes.len() > MAX_LINE {
            return Err(AuditError::LineTooLong);
        }
        output.extend(&bytes);
        output.push(b'\n');
        *self = Self::after(&line, &bytes);
        Ok(bytes)
    }
}
