//! A line of a log: what all lines have, what each kind has, and its one written form.

use std::fmt;
use std::time::SystemTime;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::chain::Hash;
use super::record::Record;

/// Longest line, in bytes, without its line feed: a record with the longest lineage and reason has half of it.
pub(super) const MAX_LINE: usize = 16 << 10;

/// What a torn line is ended with, in front of its line feed: it may lack nothing but that, and is not to become a line.
pub(super) const TORN_MARK: u8 = b'~';

/// The format that this version writes and reads.
pub(super) const FORMAT: u32 = 1;

/// Which log this is: 16 random bytes, 32 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(#[serde(with = "hex::serde")] pub(super) [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({self})")
    }
}

/// A moment: RFC 3339, UTC, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub SystemTime);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_nanos(self.0))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text);
        time.map(Self).map_err(D::Error::custom)
    }
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Its number, from 1; it goes on from file to file.
    pub seq: u64,
    /// When it was written, by the clock of the host.
    pub time: Time,
    #[serde(flatten)]
    pub body: Body,
    /// Hash of the line before; zeros in the first one.
    pub prev: Hash,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Body {
    /// The first line of each file.
    Log(Opening),
    /// A use of a secret.
    Secret(Record),
    /// The head of another log.
    Anchor(Anchor),
    /// What a writer left that was interrupted.
    Recovered(Recovered),
    /// A signature over all lines before.
    Checkpoint(Checkpoint),
}

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opening {
    pub format: u32,
    pub id: LogId,
    /// Name of the VM whose log it is; none for the host's.
    pub vm: Option<String>,
    /// Number of the file, from 1.
    pub file: u64,
}

/// The head of a VM's log, in the host's: the VM's log had this line at that time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Name of the VM.
    pub vm: String,
    /// Which log.
    pub log: LogId,
    /// Number of the line in that log.
    pub line: u64,
    /// Its hash.
    pub hash: Hash,
}

/// What the last writer left, which was interrupted: lines without a checkpoint, or part of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recovered {
    /// Length of the part of a line with the [`TORN_MARK`] that was put behind it, in bytes; 0 if there is none.
    pub bytes: u64,
    /// Its hash, if there is one.
    pub hash: Option<Hash>,
}

/// An Ed25519 signature of [`checkpoint::message`](super::checkpoint::message).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Public key, in hexadecimal digits.
    #[serde(with = "hex::serde")]
    pub key: [u8; 32],
    /// Signature, in hexadecimal digits.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl Recovered {
    /// Of what was torn, with its mark; nothing was if it is empty.
    pub fn of(torn: &[u8]) -> Self {
        Self {
            bytes: torn.len() as u64,
            hash: (!torn.is_empty()).then(|| Hash::of(torn)),
        }
    }

    /// Whether this is what was torn, so that it is no fault that it is no line.
    pub fn speaks_of(&self, piece: &[u8]) -> bool {
        !piece.is_empty() && *self == Self::of(piece)
    }
}

impl Line {
    /// The line without its line feed.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// Reads a line without its line feed. Only the form that [`Self::to_bytes`] writes is one, so that no two
    /// readers can see different things in it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_LINE {
            return None;
        }
        let line: Self = serde_json::from_slice(bytes).ok()?;
        (line.to_bytes().ok()? == bytes).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_parse_takes_only_the_written_form() {
        let zeros = "0".repeat(64);
        let line = |seq: &str, more: &str| {
            format!(
                r#"{{"seq":{seq},"time":"2026-11-25T15:04:05.000000001Z","kind":"recovered","bytes":0,"hash":null{more},"prev":"{zeros}"}}"#
            )
        };
        let parses = |text: &str| Line::parse(text.as_bytes()).is_some();
        let good = line("7", "");
        assert!(parses(&good));
        for bad in [
            line("7", r#","more":1"#),
            line("7", r#","bytes":0"#),
            line("07", ""),
            line("7.0", ""),
            line("-7", ""),
            line(" 7", ""),
            format!("{good} "),
            good.replace(".000000001Z", ".000000001+00:00"),
            good.replace(".000000001Z", ".1Z"),
            good.replace("null", "\"\""),
            good.replace("recovered", "other"),
            good.replace("\"kind\"", "\"k\\u0069nd\""),
            good.to_uppercase(),
            String::new(),
        ] {
            assert!(!parses(&bad), "{bad}");
        }
        let long = good.replace("null", &format!("\"{}\"", "a".repeat(MAX_LINE)));
        assert!(!parses(&long));
    }
}
