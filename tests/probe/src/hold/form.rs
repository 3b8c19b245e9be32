//! The forms in which a program may keep a value, in memory that is wiped.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use zeroize::Zeroizing;

/// Lengths of values that every place can hold.
pub const MIN_LEN: usize = 40;
pub const MAX_LEN: usize = 4096;

/// Characters of base64 in a line of mail (RFC 2045, section 6.8).
const LINE: usize = 76;

/// Bytes that are wiped when they are dropped. They must not grow, for that would leave a copy.
pub type Bytes = Zeroizing<Vec<u8>>;

/// Reads a value of [`MIN_LEN`] to [`MAX_LEN`] bytes and leaves no other copy of it.
pub fn read_value(path: &Path) -> anyhow::Result<Bytes> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Zeroizing::new(vec![0; MAX_LEN + 1]);
    let mut len = 0;
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
    }
    ensure!(
        (MIN_LEN..=MAX_LEN).contains(&len),
        "{} has {len} bytes; hold takes {MIN_LEN} to {MAX_LEN}",
        path.display()
    );
    bytes.truncate(len);
    Ok(bytes)
}

/// What is kept of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The value itself.
    Plain,
    /// The first bytes of it, at most so many.
    First(usize),
    Base64,
    /// In lines of 76 characters.
    Base64Wrapped,
    Base64Url,
    Hex,
    HexUpper,
    Percent,
    Json,
    Utf16,
}

impl Form {
    /// All but the plain ones, with their names.
    pub const ENCODED: [(&str, Self); 8] = [
        ("base64", Self::Base64),
        ("base64-wrapped", Self::Base64Wrapped),
        ("base64-url", Self::Base64Url),
        ("hex", Self::Hex),
        ("hex-upper", Self::HexUpper),
        ("percent", Self::Percent),
        ("json", Self::Json),
        ("utf-16le", Self::Utf16),
    ];

    /// This form of `value`; nothing if only text has one, and the value is none.
    pub fn of(self, value: &[u8]) -> Option<Bytes> {
        // Room for the longest form, \u0000 for each byte, so that nothing grows.
        let mut bytes = Zeroizing::new(Vec::with_capacity(value.len() * 6));
        match self {
            Self::Plain => bytes.extend_from_slice(value),
            Self::First(most) => bytes.extend_from_slice(&value[..value.len().min(most)]),
            Self::Base64 => return Some(base64(&BASE64_STANDARD, value)),
            Self::Base64Url => return Some(base64(&BASE64_URL_SAFE, value)),
            Self::Base64Wrapped => {
                for line in base64(&BASE64_STANDARD, value).chunks(LINE) {
                    bytes.extend_from_slice(line);
                    bytes.push(b'\n');
                }
            }
            Self::Hex | Self::HexUpper => value
                .iter()
                .for_each(|byte| bytes.extend_from_slice(&digits(*byte, self == Self::HexUpper))),
            Self::Percent => {
                for byte in value {
                    if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
                        bytes.push(*byte);
                    } else {
                        bytes.push(b'%');
                        bytes.extend_from_slice(&digits(*byte, true));
                    }
                }
            }
            Self::Json => {
                for byte in std::str::from_utf8(value).ok()?.bytes() {
                    match byte {
                        b'"' | b'\\' => bytes.extend_from_slice(&[b'\\', byte]),
                        b'\n' => bytes.extend_from_slice(b"\\n"),
                        b'\r' => bytes.extend_from_slice(b"\\r"),
                        b'\t' => bytes.extend_from_slice(b"\\t"),
                        8 => bytes.extend_from_slice(b"\\b"),
                        12 => bytes.extend_from_slice(b"\\f"),
                        ..b' ' => {
                            bytes.extend_from_slice(b"\\u00");
                            bytes.extend_from_slice(&digits(byte, false));
                        }
                        _ => bytes.push(byte),
                    }
                }
            }
            Self::Utf16 => std::str::from_utf8(value)
                .ok()?
                .encode_utf16()
                .for_each(|unit| bytes.extend_from_slice(&unit.to_le_bytes())),
        }
        Some(bytes)
    }
}

fn base64(engine: &GeneralPurpose, value: &[u8]) -> Bytes {
    let mut text = Zeroizing::new(vec![0; value.len().div_ceil(3) * 4]);
    let written = engine.encode_slice(value, &mut text);
    debug_assert_eq!(written, Ok(text.len()));
    text
}

fn digits(byte: u8, upper: bool) -> [u8; 2] {
    let digits = if upper {
        b"0123456789ABCDEF"
    } else {
        b"0123456789abcdef"
    };
    [byte / 16, byte % 16].map(|digit| digits[usize::from(digit)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_forms_of_a_text() {
        let of = |form: Form| form.of(b"a/\"\n\x01>").expect("it is text").to_vec();
        assert_eq!(of(Form::Plain), b"a/\"\n\x01>");
        assert_eq!(of(Form::First(2)), b"a/");
        assert_eq!(of(Form::Base64), b"YS8iCgE+");
        assert_eq!(of(Form::Base64Url), b"YS8iCgE-");
        assert_eq!(of(Form::Hex), b"612f220a013e");
        assert_eq!(of(Form::HexUpper), b"612F220A013E");
        assert_eq!(of(Form::Percent), b"a%2F%22%0A%01%3E");
        assert_eq!(of(Form::Json), b"a/\\\"\\n\\u0001>");
        assert_eq!(of(Form::Utf16), b"a\0/\0\"\0\n\0\x01\0>\0");
    }

    #[test]
    fn test_wrapped_base64_has_lines_of_76_characters() {
        let text = Form::Base64Wrapped.of(&[7; 100]).expect("it has one");
        let lines: Vec<_> = text.split(|byte| *byte == b'\n').map(<[u8]>::len).collect();
        assert_eq!(lines, [76, 60, 0]);
    }

    #[test]
    fn test_bytes_that_are_no_text_have_no_json_and_no_utf_16() {
        for (name, form) in Form::ENCODED {
            let text_only = matches!(form, Form::Json | Form::Utf16);
            assert_eq!(form.of(b"\xff\xfe").is_none(), text_only, "{name}");
        }
    }

    #[test]
    fn test_read_value_refuses_what_not_every_place_can_hold() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (len, fits) in [(39, false), (40, true), (4096, true), (4097, false)] {
            std::fs::write(file.path(), vec![1; len]).expect("written");
            assert_eq!(read_value(file.path()).is_ok(), fits, "{len}");
        }
    }
}
