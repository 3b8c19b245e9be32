//! The last lines of a log, made fit for an error message.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// How much of the end of a log is looked at, in bytes.
const MAX_TAIL: u64 = 64 << 10;

/// Longest line that is shown, in characters.
const MAX_LINE: usize = 200;

/// The last line of `file` that is not blank and that `wanted` accepts, without control characters:
/// a guest writes what it likes to its console, and the line goes to a terminal.
pub fn last_line(file: &File, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let len = file.metadata().ok()?.len();
    let start = len.saturating_sub(MAX_TAIL);
    let mut bytes = vec![0; usize::try_from(len - start).ok()?];
    file.read_exact_at(&mut bytes, start).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty() && wanted(line))?;
    let plain = line.chars().filter(|character| !character.is_control());
    Some(plain.take(MAX_LINE).collect::<String>().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        file
    }

    #[test]
    fn test_last_line_is_found_and_cleaned() {
        let log = file(b"one\nKernel panic - \x1b[31mnot syncing\r\nlast\n\n");
        assert_eq!(last_line(&log, |_| true).as_deref(), Some("last"));
        assert_eq!(
            last_line(&log, |line| line.contains("Kernel panic")).as_deref(),
            Some("Kernel panic - [31mnot syncing")
        );
        assert_eq!(last_line(&log, |line| line.contains("absent")), None);
        assert_eq!(last_line(&file(b""), |_| true), None);
    }

    #[test]
    fn test_last_line_of_a_long_log_is_read_from_its_end_only() {
        let mut content = b"first\n".to_vec();
        content.extend(std::iter::repeat_n(b'x', 100 << 10));
        let log = file(&content);
        assert_eq!(last_line(&log, |line| line.starts_with("first")), None);
        assert_eq!(
            last_line(&log, |_| true).map(|line| line.len()),
            Some(MAX_LINE)
        );
    }
}
