//! Words for people: sizes, names that others chose, tables.

use std::error::Error;
use std::io::{self, Write};

/// An amount of bytes, as in `512 MiB` or `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 2)) > 0 {
        unit += 1;
    }
    let one = 1u128 << (10 * (unit + 1));
    let tenths = (u128::from(bytes) * 10 + one / 2) / one;
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

/// A number and what it counts, in the singular or with an s.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A text that others chose, as it is if it is one plain word; otherwise in quotation marks, with what a terminal does not
/// show or acts on escaped.
pub fn word(text: &str) -> String {
    let quoted = format!("{text:?}");
    let plain = quoted.len() == text.len() + 2 && !text.contains(char::is_whitespace);
    if plain && !text.is_empty() {
        text.to_owned()
    } else {
        quoted
    }
}

/// A sentence that others wrote, on one line.
pub fn line(text: &str) -> String {
    let plain = |character: char| match character.is_control() {
        true => ' ',
        false => character,
    };
    text.chars().map(plain).collect()
}

/// Writes a value as JSON for people, and a newline.
///
/// # Errors
/// What writing said.
pub fn write_json(value: &impl serde::Serialize, output: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *output, value)?;
    writeln!(output)
}

/// An error and its causes on one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    for cause in causes.map(ToString::to_string) {
        // Some errors tell their cause themselves.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Writes rows in columns that are as wide as their longest cell.
///
/// # Errors
/// What writing to `output` said.
pub fn table<const N: usize>(rows: &[[String; N]], output: &mut impl Write) -> io::Result<()> {
    let chars = |cell: &String| cell.chars().count();
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = chars(cell).max(*width);
        }
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - chars(cell) + 2));
        }
        writeln!(output, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_size_in_the_largest_unit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384 PiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn test_count_has_an_s_but_for_one() {
        assert_eq!(count(0, "file"), "0 files");
        assert_eq!(count(1, "file"), "1 file");
    }

    #[test]
    fn test_word_is_quoted_where_it_is_not_one_plain_word() {
        let cases = [
            ("a/b-c.mem", "a/b-c.mem"),
            ("élan", "élan"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("a\x1b[2Jb", "\"a\\u{1b}[2Jb\""),
            ("a\nb", "\"a\\nb\""),
            ("a\"b", "\"a\\\"b\""),
        ];
        for (text, expected) in cases {
            assert_eq!(word(text), expected);
        }
        assert_eq!(line("a \"b\"\x1b\n"), "a \"b\"  ");
    }

    #[test]
    fn test_table_columns_are_aligned() {
        let rows = [["A", "B"], ["long", "x"], ["é", ""]].map(|row| row.map(str::to_owned));
        let mut text = Vec::new();
        table(&rows, &mut text).expect("written");
        assert_eq!(
            String::from_utf8(text).expect("text"),
            "A     B\nlong  x\né\n"
        );
    }

    #[test]
    fn test_causes_are_told_once() {
        let cause = io::Error::other("the cause");
        let error = io::Error::other(cause);
        assert_eq!(with_causes(&error), "the cause");
    }
}
