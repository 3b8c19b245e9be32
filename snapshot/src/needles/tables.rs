//! Tables that are in every program: alphabets, digits, numbers that count up. A value may have a piece of one, as
//! `0123456789` is in many that people make up; that a guest has such a piece too tells nothing of the value. And a
//! guest whose tables are left out breaks where they do not come back, because the secret has another value then.

use std::collections::HashSet;
use std::sync::LazyLock;

use memchr::memmem;

use super::{GRAM, gram_at};

/// The tables, and all grams of them.
struct Tables {
    /// One after the other, with 16 bytes between them that no table has.
    text: Vec<u8>,
    grams: HashSet<u64>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let digits = b"0123456789";
    let lower = b"abcdefghijklmnopqrstuvwxyz";
    let upper = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let pairs = |format: fn(u8) -> String, count: u16| {
        let bytes = (0..count).filter_map(|number| u8::try_from(number).ok());
        bytes.map(format).collect::<String>().into_bytes()
    };
    let wide = |width: usize| {
        let character = |byte: u8| [vec![byte], vec![0; width - 1]].concat();
        (0..=u8::MAX).flat_map(character).collect::<Vec<u8>>()
    };
    let tables = [
        // What numbers are printed with: to the base of 10 two digits at a time, and to that of up to 36.
        pairs(|byte| format!("{byte:02}"), 100),
        pairs(|byte| format!("{byte:02x}"), 256),
        pairs(|byte| format!("{byte:02X}"), 256),
        [&digits[..], lower].concat(),
        [&digits[..], upper].concat(),
        // Base64 (RFC 4648, sections 4 and 5), base62, and the classes of regular expressions.
        [&upper[..], lower, digits, b"+/="].concat(),
        [&upper[..], lower, digits, b"-_="].concat(),
        [&digits[..], upper, lower].concat(),
        [&digits[..], lower, upper].concat(),
        [&lower[..], upper, digits].concat(),
        [&lower[..], digits].concat(),
        [&upper[..], digits].concat(),
        // Characters of 1, 2 and 4 bytes in their order.
        wide(1),
        wide(2),
        wide(4),
    ];
    // A run of one byte, which is as long as any window, is in none of them.
    let text = tables.join(&[0x5a; 16][..]);
    let grams = tables
        .iter()
        .flat_map(|table| table.windows(GRAM))
        .map(|gram| gram_at(gram, 0))
        .collect();
    Tables { text, grams }
});

/// Whether a run of at least [`GRAM`] bytes is a piece of one of the tables.
pub(super) fn have(run: &[u8]) -> bool {
    run.len() >= GRAM
        && TABLES.grams.contains(&gram_at(run, 0))
        && memmem::find(&TABLES.text, run).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_have_pieces_of_tables_and_nothing_that_goes_on_differently() {
        for piece in [
            &b"01234567"[..],
            b"0123456789abcdef",
            b"3031323334353637",
            b"6162636465666768",
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
            b"0\x001\x002\x003\x004\x005\x006\x007\x00",
            b"0\0\0\x001\0\0\x002\0\0\x003\0\0\0",
            b"\0\x001\0\0\x002\0\0\x003\0\0\x004\0",
        ] {
            assert!(have(piece), "{piece:?}");
        }
        for other in [
            &b"0123456"[..],
            b"0123456789abcdeg",
            b"-0123456789abcde",
            b"abcdef0123456789",
            b"ZZZZZZZZZZZZZZZZ",
            b"1\0\0\x000\0\0\x002\0\0\x003\0\0\0",
        ] {
            assert!(!have(other), "{other:?}");
        }
    }
}
