//! The files of a log's folder, and their order.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::AuditError;
use crate::files::FileError;

/// The file that grows.
pub(super) const CURRENT: &str = "log.jsonl";

/// A copy of the newest checkpoint.
pub(super) const HEAD: &str = "log.head";

/// What appenders take turns with.
pub(super) const LOCK: &str = "lock";

/// Length that a file has at least when the next one is begun, in bytes: 16 MiB, some 40,000 records.
pub(super) const ROTATE_AT: u64 = 16 << 20;

/// Longest file, in bytes: a batch may begin just below [`ROTATE_AT`].
pub(super) const MAX_FILE: u64 = 128 << 20;

/// Most files of a log: 16 TiB together.
const MAX_FILES: u64 = 999_999;

/// Path of the full file of this number, from 1.
pub(super) fn full(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("log.{number:06}.jsonl"))
}

/// Numbers of the full files, in order.
///
/// # Errors
/// [`AuditError::NoLog`] if there is no folder, or [`AuditError::File`].
pub(super) fn full_files(folder: &Path) -> Result<Vec<u64>, AuditError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(AuditError::NoLog(folder.to_owned()));
        }
        other => other.map_err(FileError::system("list", folder))?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry
            .map_err(FileError::system("list", folder))?
            .file_name();
        let number = name.to_str().and_then(|name| {
            let digits = name.strip_prefix("log.")?.strip_suffix(".jsonl")?;
            let plain = digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| plain)
        });
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number of the file after these.
pub(super) fn next_number(folder: &Path, full: &[u64]) -> Result<u64, AuditError> {
    match full.last() {
        Some(&last) if last >= MAX_FILES => Err(AuditError::Damaged {
            path: folder.to_owned(),
            why: "has as many files as a log can have",
        }),
        last => Ok(last.copied().unwrap_or(0) + 1),
    }
}
