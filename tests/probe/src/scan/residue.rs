//! What is residue, written down as it is defined: a run of at least 16 bytes of a form of a value (of a shorter form:
//! all of it), anywhere; and a run of at least 8 bytes that touches the edge of a page. Windows of fewer
//! than 4 distinct bytes do not count.
//!
//! The search looks at every offset. A filter of 8-byte grams only says where it is not worth while to compare.

use std::collections::{BTreeSet, HashMap};

use super::forms::Form;

pub const PAGE: usize = 4096;
const WINDOW: usize = 16;
const EDGE_WINDOW: usize = 8;
const DISTINCT: usize = 4;

/// Bits of the filter for each gram, at least: one place in 64 passes by chance.
const BITS_A_GRAM: usize = 64;

/// A run that is residue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Offset in the file.
    pub start: u64,
    pub len: usize,
    pub encoding: &'static str,
}

/// The forms that are searched for.
pub struct Needles {
    forms: Vec<Form>,
    /// Grams, and where they are: form, offset.
    grams: HashMap<[u8; EDGE_WINDOW], Vec<(usize, usize)>>,
    /// A bit for each hash of a gram. It is small, for to go through much memory at random is slow in the lab.
    filter: Vec<u64>,
    /// The hash has so many bits.
    filter_bits: u32,
    /// Windows that do not count, because they are everywhere.
    pub degenerate: usize,
}

/// Bytes of a file, with enough of what is around the part in which runs are looked for.
pub struct Piece<'a> {
    pub bytes: &'a [u8],
    /// Offset of the first byte in the file.
    pub start: u64,
}

/// Until where in the file a form has been found, at every displacement of form and file.
pub type Found = HashMap<(usize, i128), u64>;

impl Needles {
    pub fn new(forms: Vec<Form>) -> Self {
        let mut needles = Self {
            forms: Vec::new(),
            grams: HashMap::new(),
            filter: Vec::new(),
            filter_bits: 0,
            degenerate: 0,
        };
        for (number, form) in forms.iter().enumerate() {
            let mut offsets = BTreeSet::new();
            for (at, window) in form.bytes.windows(EDGE_WINDOW).enumerate() {
                if counts(window) {
                    offsets.insert(at);
                }
            }
            // Runs without such a gram still have windows that count: one gram of each will do, the most telling.
            for (at, window) in form.bytes.windows(window_of(form)).enumerate() {
                if !counts(window) {
                    needles.degenerate += 1;
                    continue;
                }
                let grams = window.windows(EDGE_WINDOW).enumerate();
                if let Some((offset, _)) = grams.max_by_key(|(_, gram)| distinct(gram)) {
                    offsets.insert(at + offset);
                }
            }
            for at in offsets {
                needles.add(&form.bytes[at..], number, at);
            }
        }
        let bits = (needles.grams.len() * BITS_A_GRAM)
            .next_power_of_two()
            .max(64);
        needles.filter_bits = bits.trailing_zeros();
        needles.filter = vec![0; bits / 64];
        for gram in needles.grams.keys() {
            let (word, bit) = slot(*gram, needles.filter_bits);
            needles.filter[word] |= bit;
        }
        needles.forms = forms;
        needles
    }

    /// The longest run there can be, in bytes.
    pub fn longest(&self) -> usize {
        self.forms
            .iter()
            .map(|form| form.bytes.len())
            .max()
            .unwrap_or(0)
    }

    /// The gram at the start of `bytes`, byte `at` of the form.
    fn add(&mut self, bytes: &[u8], form: usize, at: usize) {
        let Some(gram) = bytes.first_chunk() else {
            return;
        };
        self.grams.entry(*gram).or_default().push((form, at));
    }

    /// Passes on every run that has a gram which begins from byte `from` to byte `to` of the piece.
    pub fn search(
        &self,
        piece: &Piece,
        from: usize,
        to: usize,
        found: &mut Found,
        mut report: impl FnMut(Hit),
    ) {
        let end = (to + EDGE_WINDOW - 1).min(piece.bytes.len());
        let grams = piece.bytes[from..end].array_windows::<EDGE_WINDOW>();
        for (offset, gram) in grams.enumerate() {
            let (word, bit) = slot(*gram, self.filter_bits);
            if self.filter[word] & bit == 0 {
                continue;
            }
            for (form, at) in self.grams.get(gram).into_iter().flatten() {
                self.compare(piece, from + offset, *form, *at, found, &mut report);
            }
        }
    }

    /// Byte `here` of the piece is byte `at` of the form: finds how far they agree in both directions.
    fn compare(
        &self,
        piece: &Piece,
        here: usize,
        form: usize,
        at: usize,
        found: &mut Found,
        report: &mut impl FnMut(Hit),
    ) {
        let address = piece.start + here as u64;
        let displacement = (form, i128::from(address) - at as i128);
        if found.get(&displacement).is_some_and(|end| address < *end) {
            return;
        }
        let form = &self.forms[form];
        let before = std::iter::zip(
            piece.bytes[..here].iter().rev(),
            form.bytes[..at].iter().rev(),
        );
        let before = before.take_while(|(a, b)| a == b).count();
        let after = std::iter::zip(&piece.bytes[here..], &form.bytes[at..]);
        let after = after.take_while(|(a, b)| a == b).count();
        let run = &piece.bytes[here - before..here + after];
        let start = address - before as u64;
        if is_residue(run, start, window_of(form)) {
            found.insert(displacement, address + after as u64);
            report(Hit {
                start,
                len: run.len(),
                encoding: form.encoding,
            });
        }
    }
}

/// The definition, for a maximal run that begins at this offset of its file.
fn is_residue(run: &[u8], start: u64, window: usize) -> bool {
    run.windows(window).any(counts) || at_edges(run, start).any(counts)
}

/// The windows just before and just behind each edge of a page.
fn at_edges(run: &[u8], start: u64) -> impl Iterator<Item = &[u8]> {
    let edge = move |at: &usize| (start + *at as u64).is_multiple_of(PAGE as u64);
    (0..=run.len()).filter(edge).flat_map(|at| {
        let (before, behind) = run.split_at(at);
        let before = before.last_chunk::<EDGE_WINDOW>();
        let behind = behind.first_chunk::<EDGE_WINDOW>();
        [before, behind]
            .into_iter()
            .flatten()
            .map(<[u8; 8]>::as_slice)
    })
}

fn window_of(form: &Form) -> usize {
    form.bytes.len().clamp(EDGE_WINDOW, WINDOW)
}

fn counts(window: &[u8]) -> bool {
    distinct(window) >= DISTINCT
}

fn distinct(bytes: &[u8]) -> usize {
    (0..bytes.len())
        .filter(|at| !bytes[..*at].contains(&bytes[*at]))
        .count()
}

/// Word and bit of the filter. The multiplier is that of Fibonacci hashing: 2^64 by the golden ratio.
fn slot(gram: [u8; EDGE_WINDOW], filter_bits: u32) -> (usize, u64) {
    let hash = u64::from_le_bytes(gram).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - filter_bits);
    // No truncation: it is the number of a bit in memory.
    #[allow(clippy::cast_possible_truncation)]
    (hash as usize / 64, 1 << (hash % 64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::forms;
    use super::*;

    fn search(value: &[u8], bytes: &[u8], start: u64) -> Vec<Hit> {
        let needles = Needles::new(forms::all(value));
        let mut hits = Vec::new();
        let piece = Piece { bytes, start };
        needles.search(&piece, 0, bytes.len(), &mut Found::new(), |hit| {
            hits.push(hit)
        });
        hits
    }

    /// Every place of every form against every place of the haystack.
    fn by_brute_force(value: &[u8], bytes: &[u8], start: u64) -> Vec<Hit> {
        let mut hits = Vec::new();
        for form in forms::all(value) {
            for here in 0..bytes.len() {
                for at in 0..form.bytes.len() {
                    let begins = here == 0 || at == 0 || bytes[here - 1] != form.bytes[at - 1];
                    let run = std::iter::zip(&bytes[here..], &form.bytes[at..])
                        .take_while(|(a, b)| a == b)
                        .count();
                    let here_in_file = start + here as u64;
                    let run = &bytes[here..here + run];
                    if begins && is_residue(run, here_in_file, window_of(&form)) {
                        hits.push(Hit {
                            start: here_in_file,
                            len: run.len(),
                            encoding: form.encoding,
                        });
                    }
                }
            }
        }
        hits
    }

    const VALUE: &[u8] = b"sk-live_0123456789abcdefghijklmnopqrstuv";

    #[test]
    fn test_runs_of_16_bytes_count_and_shorter_ones_do_not() {
        for (len, wanted) in [(40, 1), (16, 1), (15, 0)] {
            for at in 0..=VALUE.len() - len {
                let text = [b"..", &VALUE[at..at + len], b".."].concat();
                assert_eq!(search(VALUE, &text, 100).len(), wanted, "{len} from {at}");
            }
        }
    }

    #[test]
    fn test_runs_of_8_bytes_count_at_both_sides_of_an_edge() {
        let eight = &VALUE[3..11];
        // Eight bytes may be a run of more than one form.
        let found = |text: &[u8], start| !search(VALUE, text, start).is_empty();
        assert!(found(&[eight, b"...."].concat(), 4096));
        assert!(found(&[b"....", eight].concat(), 4096 - 12));
        assert!(!found(&[eight, b"...."].concat(), 4097));
        // 7 bytes before the edge and 8 behind it
        assert!(found(&VALUE[..15], 4096 - 7));
        assert!(!found(&VALUE[..14], 4096 - 7));
    }

    #[test]
    fn test_shorter_values_count_when_whole() {
        assert_eq!(search(b"0123456789", b"..0123456789..", 1).len(), 1);
        assert_eq!(search(b"0123456789", b"..012345678...", 1).len(), 0);
    }

    #[test]
    fn test_windows_of_few_distinct_bytes_do_not_count() {
        let value = [&[0; 40][..], b"0123456789abcdef", &[0; 40]].concat();
        assert!(Needles::new(forms::all(&value)).degenerate > 0);
        assert_eq!(search(&value, &[0; 200], 4096).len(), 0);
        assert_eq!(search(&value, &value, 1)[0].len, value.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn test_search_finds_what_brute_force_finds(
            value in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>(), b'a'..=b'e'], 8..40),
            parts in proptest::collection::vec((0..15_usize, 0..60_usize, 0..60_usize, 0..6_u8), 0..8),
            start in 4000_u64..4200,
        ) {
            let mut text = Vec::new();
            let forms = forms::all(&value);
            for (form, from, to, noise) in parts {
                let bytes = &forms[form % forms.len()].bytes;
                let (from, to) = (from.min(bytes.len()), to.min(bytes.len()));
                text.extend_from_slice(bytes.get(from..to).unwrap_or_default());
                text.extend(std::iter::repeat_n(noise, usize::from(noise)));
            }

            let key = |hit: &Hit| (hit.start, hit.len, hit.encoding);
            let (mut fast, mut slow) = (search(&value, &text, start), by_brute_force(&value, &text, start));
            fast.sort_by_key(key);
            slow.sort_by_key(key);

            prop_assert_eq!(fast, slow);
        }
    }
}
