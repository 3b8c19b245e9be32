//! The forms of a value that count as residue of it, each made in the most obvious way.

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// The bytes of a value in one encoding.
pub struct Form {
    pub encoding: &'static str,
    pub bytes: Vec<u8>,
}

/// All forms of `value`, without those that give the bytes of one before them.
pub fn all(value: &[u8]) -> Vec<Form> {
    let mut forms = vec![
        ("raw", value.to_vec()),
        ("base64-phase-0", base64(value, 0, STANDARD)),
        ("base64-phase-1", base64(value, 4, STANDARD)),
        ("base64-phase-2", base64(value, 2, STANDARD)),
        ("base64url-phase-0", base64(value, 0, URL_SAFE)),
        ("base64url-phase-1", base64(value, 4, URL_SAFE)),
        ("base64url-phase-2", base64(value, 2, URL_SAFE)),
        ("hex", hex(value, LOWER)),
        ("hex-upper", hex(value, UPPER)),
        ("percent", percent(value, UPPER)),
        ("percent-lower", percent(value, LOWER)),
        ("json", json(value, false)),
        ("json-ascii", json(value, true)),
        ("utf-16le", utf16(value)),
        ("utf-32le", utf32(value)),
        ("crlf", crlf(value)),
    ];
    // In whichever of eight places the first register was loaded from.
    forms.extend((0..8).map(|first| ("reversed-words", reversed_words(value, first))));
    let mut distinct: Vec<Form> = Vec::new();
    for (encoding, bytes) in forms {
        if distinct.iter().all(|form| form.bytes != bytes) {
            distinct.push(Form { encoding, bytes });
        }
    }
    distinct
}

/// The characters of base64 that hold six bits of the value and nothing else. What comes before the value decides
/// at which of its bits the first of them begins: at bit 0, after one byte at bit 4, after two at bit 2.
fn base64(value: &[u8], first_bit: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let bit = |at: usize| value[at / 8] >> (7 - at % 8) & 1;
    let sextet = |at: usize| (at..at + 6).fold(0, |sextet, at| sextet << 1 | bit(at));
    (first_bit..=value.len() * 8 - 6)
        .step_by(6)
        .map(|at| alphabet[usize::from(sextet(at))])
        .collect()
}

fn digits(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [byte / 16, byte % 16].map(|digit| digits[usize::from(digit)])
}

fn hex(value: &[u8], alphabet: &[u8; 16]) -> Vec<u8> {
    value
        .iter()
        .flat_map(|byte| digits(*byte, alphabet))
        .collect()
}

/// RFC 3986: all but unreserved characters are escaped.
fn percent(value: &[u8], alphabet: &[u8; 16]) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in value {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(*byte);
        } else {
            text.push(b'%');
            text.extend(digits(*byte, alphabet));
        }
    }
    text
}

/// RFC 8259: the inside of a string; nothing if the value is no text.
fn json(value: &[u8], ascii: bool) -> Vec<u8> {
    let mut text = String::new();
    for character in std::str::from_utf8(value).unwrap_or_default().chars() {
        match character {
            '"' => text += "\\\"",
            '\\' => text += "\\\\",
            '\u{8}' => text += "\\b",
            '\t' => text += "\\t",
            '\n' => text += "\\n",
            '\u{c}' => text += "\\f",
            '\r' => text += "\\r",
            _ if character < ' ' || ascii && !character.is_ascii() => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    text += &format!("\\u{unit:04x}");
                }
            }
            _ => text.push(character),
        }
    }
    text.into_bytes()
}

/// The characters of a text; a byte that belongs to none is the character of its number.
fn characters(value: &[u8]) -> Vec<char> {
    value
        .utf8_chunks()
        .flat_map(|chunk| {
            let bytes = chunk.invalid().iter().map(|byte| char::from(*byte));
            chunk.valid().chars().chain(bytes)
        })
        .collect()
}

fn utf16(value: &[u8]) -> Vec<u8> {
    let text: String = characters(value).into_iter().collect();
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn utf32(value: &[u8]) -> Vec<u8> {
    characters(value)
        .into_iter()
        .flat_map(|character| u32::from(character).to_le_bytes())
        .collect()
}

/// What a terminal makes of line feeds.
fn crlf(value: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in value.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => text.extend([line, b"\r\n"].concat()),
            None => text.extend(line),
        }
    }
    text
}

/// Registers that were loaded one after the other and stored from the last to the first; at least two.
fn reversed_words(value: &[u8], first: usize) -> Vec<u8> {
    let mut stack: Vec<u8> = Vec::new();
    let mut at = first;
    while at + 8 <= value.len() {
        stack.splice(0..0, value[at..at + 8].iter().copied());
        at += 8;
    }
    if stack.len() < 16 {
        stack.clear();
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(value: &[u8], encoding: &str) -> String {
        let forms = all(value);
        let found = forms.iter().find(|form| form.encoding == encoding);
        String::from_utf8(found.expect("it has this form").bytes.clone()).expect("text")
    }

    #[test]
    fn test_forms_of_an_awkward_text() {
        let value = "a/\"\n\\\u{1}é~".as_bytes();
        assert_eq!(form(value, "hex"), "612f220a5c01c3a97e");
        assert_eq!(form(value, "hex-upper"), "612F220A5C01C3A97E");
        assert_eq!(form(value, "percent"), "a%2F%22%0A%5C%01%C3%A9~");
        assert_eq!(form(value, "percent-lower"), "a%2f%22%0a%5c%01%c3%a9~");
        assert_eq!(form(value, "json"), "a/\\\"\\n\\\\\\u0001é~");
        assert_eq!(form(value, "json-ascii"), "a/\\\"\\n\\\\\\u0001\\u00e9~");
    }

    #[test]
    fn test_base64_of_every_phase_is_in_what_an_encoder_makes() {
        use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine};
        let value: Vec<u8> = (0..50).map(|at: u8| at.wrapping_mul(29) ^ 0xfb).collect();
        for phase in 0..3 {
            let before = &b"##"[..phase];
            let text = [before, &value, b"???"].concat();

            let standard = form(&value, &format!("base64-phase-{phase}"));
            let url_safe = form(&value, &format!("base64url-phase-{phase}"));

            assert!(BASE64_STANDARD.encode(&text).contains(&standard));
            assert!(BASE64_URL_SAFE.encode(&text).contains(&url_safe));
            assert!(standard.len() >= (value.len() * 8 - 4) / 6);
        }
    }

    #[test]
    fn test_wide_characters_of_text_and_of_other_bytes() {
        assert_eq!(utf16("aé😀".as_bytes()), b"a\0\xe9\0\x3d\xd8\x00\xde");
        assert_eq!(utf32("a😀".as_bytes()), b"a\0\0\0\x00\xf6\x01\0");
        assert_eq!(utf16(b"a\xffb"), b"a\0\xff\0b\0");
        assert!(json(b"a\xffb", false).is_empty());
    }

    #[test]
    fn test_registers_on_a_stack_and_lines_on_a_terminal() {
        assert_eq!(crlf(b"a\nb\n\nc"), b"a\r\nb\r\n\r\nc");
        assert_eq!(reversed_words(b"01234567abcdefgh+", 0), b"abcdefgh01234567");
        assert_eq!(reversed_words(b"01234567abcdefgh+", 1), b"bcdefgh+1234567a");
        assert!(reversed_words(b"01234567abcdefgh+", 2).is_empty());
    }

    #[test]
    fn test_equal_forms_are_there_once() {
        let names: Vec<_> = all(b"Token_1234")
            .iter()
            .map(|form| form.encoding)
            .collect();
        assert!(!names.contains(&"percent") && !names.contains(&"json"));
        assert!(names.contains(&"raw") && names.contains(&"utf-32le"));
    }
}
