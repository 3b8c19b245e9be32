//! The forms in which programs write a value down, byte by byte.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// The bytes themselves.
    Raw,
    /// Base64 with `+` and `/` (RFC 4648, section 4), of a text in which this many bytes modulo 3 come before
    /// the value. Only the characters that depend on nothing but the value.
    Base64(u8),
    /// The same with `-` and `_` (section 5).
    Base64Url(u8),
    /// Hexadecimal, small letters.
    Hex,
    /// Hexadecimal, capital letters.
    HexUpper,
    /// Percent-encoded (RFC 3986, section 2.1): all but unreserved characters, capital letters.
    Percent,
    /// The same with small letters.
    PercentLower,
    /// The inside of a JSON string (RFC 8259, section 7), with as few escapes as there can be.
    Json,
    /// The same with escapes for everything that is not ASCII.
    JsonAscii,
    /// UTF-16, little endian; bytes that are not UTF-8 become a unit each.
    Utf16,
    /// UTF-32, little endian, likewise.
    Utf32,
    /// A carriage return before each line feed, as a terminal shows text.
    Crlf,
    /// Its words of 8 bytes from this byte on, the last one first, as a kernel's stack has what a thread had loaded
    /// into registers: x86-64's `pt_regs` begins with `r15`. Two words or more.
    ReversedWords(u8),
}

/// Bytes of a general register.
const WORD: usize = 8;

impl Encoding {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::Raw,
        Self::Base64(0),
        Self::Base64(1),
        Self::Base64(2),
        Self::Base64Url(0),
        Self::Base64Url(1),
        Self::Base64Url(2),
        Self::Hex,
        Self::HexUpper,
        Self::Percent,
        Self::PercentLower,
        Self::Json,
        Self::JsonAscii,
        Self::Utf16,
        Self::Utf32,
        Self::Crlf,
        Self::ReversedWords(0),
        Self::ReversedWords(1),
        Self::ReversedWords(2),
        Self::ReversedWords(3),
        Self::ReversedWords(4),
        Self::ReversedWords(5),
        Self::ReversedWords(6),
        Self::ReversedWords(7),
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Base64(_) => "base64",
            Self::Base64Url(_) => "base64url",
            Self::Hex | Self::HexUpper => "hex",
            Self::Percent | Self::PercentLower => "percent",
            Self::Json | Self::JsonAscii => "json",
            Self::Utf16 => "utf-16",
            Self::Utf32 => "utf-32",
            Self::Crlf => "crlf",
            Self::ReversedWords(_) => "reversed-words",
        }
    }

    /// Passes the bytes of this form of `value` to `emit`, in order. A form that a value does not have (JSON, if
    /// it is not UTF-8) is empty.
    pub fn encode(self, value: &[u8], emit: &mut dyn FnMut(u8)) {
        match self {
            Self::Raw => value.iter().for_each(|byte| emit(*byte)),
            Self::Base64(phase) => base64(value, phase, b"+/", emit),
            Self::Base64Url(phase) => base64(value, phase, b"-_", emit),
            Self::Hex => value.iter().for_each(|byte| hex(*byte, LOWER, emit)),
            Self::HexUpper => value.iter().for_each(|byte| hex(*byte, UPPER, emit)),
            Self::Percent => percent(value, UPPER, emit),
            Self::PercentLower => percent(value, LOWER, emit),
            Self::Json => json(value, false, emit),
            Self::JsonAscii => json(value, true, emit),
            Self::Utf16 => match str::from_utf8(value) {
                Ok(text) => text
                    .encode_utf16()
                    .for_each(|unit| unit.to_le_bytes().into_iter().for_each(&mut *emit)),
                Err(_) => value
                    .iter()
                    .for_each(|byte| [*byte, 0].into_iter().for_each(&mut *emit)),
            },
            Self::Utf32 => match str::from_utf8(value) {
                Ok(text) => text.chars().for_each(|char| {
                    let unit = u32::from(char).to_le_bytes();
                    unit.into_iter().for_each(&mut *emit);
                }),
                Err(_) => value
                    .iter()
                    .for_each(|byte| [*byte, 0, 0, 0].into_iter().for_each(&mut *emit)),
            },
            Self::Crlf => value.iter().for_each(|byte| {
                if *byte == b'\n' {
                    emit(b'\r');
                }
                emit(*byte);
            }),
            Self::ReversedWords(first) => {
                let (words, _) = value[value.len().min(first.into())..].as_chunks::<WORD>();
                if words.len() > 1 {
                    words.iter().rev().flatten().for_each(|byte| emit(*byte));
                }
            }
        }
    }

    /// The characters of base64 just before and behind this form, which share bits with the value's neighbours.
    pub(crate) fn shared_ends(self, value: &[u8]) -> [Option<SharedEnd>; 2] {
        let (phase, last_two) = match self {
            Self::Base64(phase) => (usize::from(phase), b"+/"),
            Self::Base64Url(phase) => (usize::from(phase), b"-_"),
            _ => return [None, None],
        };
        let (Some(first), Some(last)) = (value.first(), value.last()) else {
            return [None, None];
        };
        // Bits of the first byte that come before the first sextet of the form; of the last one that follow.
        let head = (6 - 8 * phase % 6) % 6;
        let tail = 8 * (phase + value.len()) % 6;
        let before = (head > 0).then(|| SharedEnd {
            bits: first >> (8 - head),
            mask: (1 << head) - 1,
            last_two,
        });
        let behind = (tail > 0).then(|| {
            let mask = ((1_u8 << tail) - 1) << (6 - tail);
            SharedEnd {
                bits: last << (6 - tail) & mask,
                mask,
                last_two,
            }
        });
        [before, behind]
    }

    /// Bytes of this form of `value`.
    #[must_use]
    pub fn len_of(self, value: &[u8]) -> usize {
        let mut len = 0;
        self.encode(value, &mut |_| len += 1);
        len
    }

    /// Whether another encoding, which comes earlier in [`Self::ALL`], gives the same bytes.
    #[must_use]
    pub fn is_redundant(self, value: &[u8]) -> bool {
        let is = |digits: fn(u8) -> bool| value.iter().all(|byte| digits(*byte));
        match self {
            Self::Base64Url(phase) => {
                let mut same = true;
                base64(value, phase, b"+/", &mut |digit| {
                    same &= !b"+/".contains(&digit)
                });
                same
            }
            Self::HexUpper => is(is_decimal),
            Self::Percent => is(is_unreserved),
            Self::PercentLower => is(|byte| is_unreserved(byte) || is_decimal(byte)),
            Self::Json => {
                let mut len = 0;
                json(value, false, &mut |_| len += 1);
                len == value.len()
            }
            Self::JsonAscii => value.is_ascii() || str::from_utf8(value).is_err(),
            Self::Crlf => !value.contains(&b'\n'),
            _ => false,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bits of a value in a character of base64 that has bits of something else too.
#[derive(Clone, Copy)]
pub(crate) struct SharedEnd {
    bits: u8,
    mask: u8,
    last_two: &'static [u8; 2],
}

impl SharedEnd {
    /// Whether the character has the value's bits.
    pub fn is_in(self, digit: u8) -> bool {
        base64_index(digit, self.last_two).is_some_and(|index| index & self.mask == self.bits)
    }

    /// The character with the value's bits in the place of another value's.
    pub fn put_into(self, digit: u8) -> Option<u8> {
        let index = base64_index(digit, self.last_two)?;
        Some(base64_digit(index & !self.mask | self.bits, self.last_two))
    }
}

const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// Whether both hexadecimal digits of a byte are the same small and capital.
fn is_decimal(byte: u8) -> bool {
    byte >> 4 < 10 && byte & 15 < 10
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn hex(byte: u8, digits: &[u8; 16], emit: &mut dyn FnMut(u8)) {
    emit(digits[usize::from(byte >> 4)]);
    emit(digits[usize::from(byte & 15)]);
}

/// The sextets of a text in which `phase` bytes come before the value, those that lie in the value entirely.
fn base64(value: &[u8], phase: u8, last_two: &[u8; 2], emit: &mut dyn FnMut(u8)) {
    let start = 8 * usize::from(phase);
    let end = start + 8 * value.len();
    for sextet in start.div_ceil(6)..end / 6 {
        let bit = 6 * sextet - start;
        let pair = [value[bit / 8], value.get(bit / 8 + 1).copied().unwrap_or(0)];
        let shift = 10 - bit % 8;
        let index = u8::try_from(u16::from_be_bytes(pair) >> shift & 0x3f).unwrap_or(0);
        emit(base64_digit(index, last_two));
    }
}

/// The sextet of a character.
fn base64_index(digit: u8, last_two: &[u8; 2]) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        _ if digit == last_two[0] => Some(62),
        _ if digit == last_two[1] => Some(63),
        _ => None,
    }
}

/// The character of a sextet.
fn base64_digit(index: u8, last_two: &[u8; 2]) -> u8 {
    match index {
        0..26 => b'A' + index,
        26..52 => b'a' + index - 26,
        52..62 => b'0' + index - 52,
        _ => last_two[usize::from(index & 1)],
    }
}

fn percent(value: &[u8], digits: &[u8; 16], emit: &mut dyn FnMut(u8)) {
    for byte in value {
        if is_unreserved(*byte) {
            emit(*byte);
        } else {
            emit(b'%');
            hex(*byte, digits, emit);
        }
    }
}

fn json(value: &[u8], ascii: bool, emit: &mut dyn FnMut(u8)) {
    let Ok(text) = str::from_utf8(value) else {
        return;
    };
    let mut emit_all = |bytes: &[u8]| bytes.iter().for_each(|byte| emit(*byte));
    for char in text.chars() {
        match char {
            '"' => emit_all(b"\\\""),
            '\\' => emit_all(b"\\\\"),
            '\n' => emit_all(b"\\n"),
            '\r' => emit_all(b"\\r"),
            '\t' => emit_all(b"\\t"),
            '\u{8}' => emit_all(b"\\b"),
            '\u{c}' => emit_all(b"\\f"),
            char if char < ' ' || (ascii && !char.is_ascii()) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    emit_all(b"\\u");
                    for byte in unit.to_be_bytes() {
                        hex(byte, LOWER, &mut |digit| emit_all(&[digit]));
                    }
                }
            }
            char => emit_all(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(encoding: Encoding, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encoding.encode(value, &mut |byte| bytes.push(byte));
        assert_eq!(bytes.len(), encoding.len_of(value));
        bytes
    }

    /// Base64 in the obvious way.
    fn naive_base64(bytes: &[u8], last_two: &[u8; 2]) -> Vec<u8> {
        let bits: Vec<u8> = bytes
            .iter()
            .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
            .collect();
        bits.chunks_exact(6)
            .map(|sextet| sextet.iter().fold(0, |index, bit| index << 1 | bit))
            .map(|index| base64_digit(index, last_two))
            .collect()
    }

    #[test]
    fn test_base64_is_what_does_not_change_with_the_neighbours() {
        let value: Vec<u8> = (0..=255).rev().chain(0..40).collect();
        for len in [8, 9, 10, 11, 256, 296] {
            let value = &value[..len];
            for phase in 0..3_u8 {
                // The same value between different neighbours.
                let within = |neighbour: u8| {
                    let before = vec![neighbour; usize::from(phase)];
                    naive_base64(&[&before, value, &[neighbour; 3]].concat(), b"+/")
                };
                let (zeros, ones) = (within(0), within(0xff));
                let common: Vec<u8> = zeros
                    .iter()
                    .zip(&ones)
                    .skip_while(|(zero, one)| zero != one)
                    .take_while(|(zero, one)| zero == one)
                    .map(|(zero, _)| *zero)
                    .collect();
                assert_eq!(
                    encoded(Encoding::Base64(phase), value),
                    common,
                    "{len}.{phase}"
                );
            }
        }
        let url = encoded(Encoding::Base64Url(0), &[0xfb, 0xff, 0xbf]);
        assert_eq!(url, b"-_-_");
        assert_eq!(encoded(Encoding::Base64(0), b"hello!"), b"aGVsbG8h");
    }

    #[test]
    fn test_encode_known_forms() {
        for (encoding, value, expected) in [
            (Encoding::Raw, &b"a\xff"[..], &b"a\xff"[..]),
            (Encoding::Hex, b"\x0a\xff", b"0aff"),
            (Encoding::HexUpper, b"\x0a\xff", b"0AFF"),
            (Encoding::Percent, b"a-b /\xff", b"a-b%20%2F%FF"),
            (Encoding::PercentLower, b"a-b /\xff", b"a-b%20%2f%ff"),
            (Encoding::Json, b"a\"\\\n\x01", b"a\\\"\\\\\\n\\u0001"),
            (Encoding::Json, "ä".as_bytes(), "ä".as_bytes()),
            (
                Encoding::JsonAscii,
                "ä😀".as_bytes(),
                b"\\u00e4\\ud83d\\ude00",
            ),
            (Encoding::Json, b"\xff", b""),
            (Encoding::Utf16, "aä".as_bytes(), b"a\0\xe4\0"),
            (Encoding::Utf16, b"a\xff", b"a\0\xff\0"),
            (Encoding::Utf32, "ä".as_bytes(), b"\xe4\0\0\0"),
            (Encoding::Utf32, b"\xff", b"\xff\0\0\0"),
            (Encoding::Crlf, b"a\n\r\n", b"a\r\n\r\r\n"),
            (
                Encoding::ReversedWords(0),
                b"0123456789abcdef...",
                b"89abcdef01234567",
            ),
            (
                Encoding::ReversedWords(3),
                b"...0123456789abcdef",
                b"89abcdef01234567",
            ),
            (Encoding::ReversedWords(4), b"...0123456789abcdef", b""),
            (Encoding::ReversedWords(7), b"short", b""),
        ] {
            assert_eq!(encoded(encoding, value), expected, "{encoding:?}");
        }
    }

    #[test]
    fn test_redundant_forms_are_those_that_are_the_same() {
        let redundant = |value: &[u8]| {
            let all = Encoding::ALL.into_iter();
            all.filter(|encoding| encoding.is_redundant(value)).count()
        };
        // Percent, percent-lower, JSON, JSON-ASCII, CRLF; and base64 without + and /.
        assert_eq!(redundant(b"plain-text-value"), 5 + 3);
        // Digits only: upper-case hexadecimal as well.
        assert_eq!(redundant(b"1234567890"), 5 + 3 + 1);
        assert!(!Encoding::Percent.is_redundant(b"with space"));
        assert!(!Encoding::Json.is_redundant(b"\"quoted\""));
        assert!(!Encoding::JsonAscii.is_redundant("größe".as_bytes()));
        assert!(!Encoding::Base64Url(0).is_redundant(&[0xfb, 0xff, 0xbf]));
    }

    proptest! {
        #[test]
        fn test_redundant_is_what_an_earlier_encoding_gives(
            value in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                "[0-9a-z +/äö\n\"\\\\\u{1}]{0,12}".prop_map(String::into_bytes),
                "[0-9 :]{0,12}".prop_map(String::into_bytes),
            ],
        ) {
            for (number, encoding) in Encoding::ALL.into_iter().enumerate() {
                let form = encoded(encoding, &value);
                let earlier = |other: &Encoding| encoded(*other, &value) == form;
                // Those that are alike by chance, such as two encodings of few bytes, are not told.
                let mut relatives = Encoding::ALL[..number].iter().filter(|other| may_be_like(**other, encoding));
                let expected = relatives.any(earlier);
                prop_assert_eq!(encoding.is_redundant(&value), expected, "{:?}", encoding);
            }
        }
    }

    fn may_be_like(earlier: Encoding, later: Encoding) -> bool {
        match later {
            Encoding::Base64Url(phase) => earlier == Encoding::Base64(phase),
            Encoding::HexUpper => earlier == Encoding::Hex,
            Encoding::Percent | Encoding::Json | Encoding::Crlf => earlier == Encoding::Raw,
            Encoding::PercentLower => earlier == Encoding::Percent,
            Encoding::JsonAscii => earlier == Encoding::Json,
            _ => false,
        }
    }
}
