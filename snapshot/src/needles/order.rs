//! The order of suffixes, in time that is linear in the text however often it repeats itself.
//!
//! Sorting suffixes by comparing them takes hours for a long value with a short period, so a suffix array of the text
//! decides. A suffix ends where its form ends: a byte that no form has and that is greater than all others stands
//! behind each of them. So a suffix comes behind all those that it is the beginning of. If forms have that byte, the
//! array is made of a copy of the text in which two bytes that keep the order stand for it.

use cachot_secrets::{LockError, LockedBuffer};
use libsais::SuffixArrayConstruction;

use super::{Form, NeedleError};

/// What stands behind each form in the text.
pub(super) const END: u8 = 0xff;

/// In a copy of the text: begins what stands for itself and for [`END`].
const ESCAPE: u8 = END - 1;

/// A suffix of a form: where it begins and ends in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Suffix {
    pub start: u32,
    pub end: u32,
}

impl Suffix {
    /// Its bytes.
    pub fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }
}

/// Whether a suffix comes before all that begins with `run`, in the order that [`sort`] makes.
pub(super) fn is_before(suffix: &[u8], run: &[u8]) -> bool {
    let len = suffix.len().min(run.len());
    suffix[..len] < run[..len]
}

/// Sorts suffixes of the forms in `text`, which come in the order of their beginnings.
///
/// # Errors
/// [`NeedleError::Memory`] and [`NeedleError::Lock`].
pub(super) fn sort(
    text: &[u8],
    forms: &[Form],
    suffixes: &mut Vec<Suffix>,
) -> Result<(), NeedleError> {
    let Some(last) = forms.last() else {
        return Ok(());
    };
    let text = &text[..=last.end()];
    let ends = text.iter().filter(|byte| **byte == END).count();
    let copy = match ends == forms.len() {
        true => None,
        false => Some(escaped(text, forms)?),
    };
    let (sortable, len) = match &copy {
        Some((copy, len)) => (&copy[..*len], *len),
        None => (text, text.len()),
    };

    // What begins at each place of what is sorted; nothing where no suffix does.
    let mut at_place = vec![Suffix::default(); len];
    if copy.is_none() {
        for suffix in suffixes.iter() {
            at_place[suffix.start as usize] = *suffix;
        }
    } else {
        let mut rest = suffixes.iter().peekable();
        let mut place = 0;
        for form in forms {
            for (start, byte) in (form.start..).zip(form.bytes(text)) {
                if let Some(suffix) = rest.next_if(|suffix| suffix.start == start) {
                    at_place[place] = *suffix;
                }
                place += escaped_len(*byte);
            }
            place += 1;
        }
    }

    // Positions only: they tell nothing without the text.
    let array = SuffixArrayConstruction::for_text(sortable)
        .in_owned_buffer32()
        .single_threaded()
        .run()
        .map_err(|_| NeedleError::Memory)?
        .into_vec();
    suffixes.clear();
    let sorted = array
        .into_iter()
        .map(|place| at_place[place.unsigned_abs() as usize]);
    suffixes.extend(sorted.filter(|suffix| suffix.end > 0));
    Ok(())
}

fn escaped_len(byte: u8) -> usize {
    1 + usize::from(byte >= ESCAPE)
}

/// The text with no [`END`] but behind forms, and its length in bytes.
fn escaped(text: &[u8], forms: &[Form]) -> Result<(LockedBuffer, usize), LockError> {
    let lengths = forms.iter().map(|form| {
        let bytes = form.bytes(text).iter();
        bytes.map(|byte| escaped_len(*byte)).sum::<usize>() + 1
    });
    let len = lengths.sum();
    let mut copy = LockedBuffer::new(len)?;
    let mut place = 0;
    let mut push = |byte: u8| {
        copy[place] = byte;
        place += 1;
    };
    for form in forms {
        for byte in form.bytes(text) {
            if *byte >= ESCAPE {
                push(ESCAPE);
                push(byte - ESCAPE);
            } else {
                push(*byte);
            }
        }
        push(END);
    }
    Ok((copy, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needles::Encoding;
    use proptest::prelude::*;

    /// The order as its description has it.
    fn with_end(bytes: &[u8]) -> Vec<u16> {
        bytes
            .iter()
            .map(|byte| u16::from(*byte))
            .chain([256])
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn test_sort_is_the_order_of_suffixes_that_end_with_their_form(
            alphabet in prop::sample::subsequence(vec![0_u8, 1, 97, 253, 254, 255], 1..=6),
            forms in prop::collection::vec(
                (any::<u8>(), prop::collection::vec(any::<prop::sample::Index>(), 1..40)), 1..6),
        ) {
            let mut text = Vec::new();
            let mut placed = Vec::new();
            let mut all = Vec::new();
            for (skip, bytes) in &forms {
                let form = Form {
                    value: 0,
                    encoding: Encoding::Raw,
                    start: u32::try_from(text.len()).expect("small"),
                    len: u32::try_from(bytes.len()).expect("small"),
                };
                text.extend(bytes.iter().map(|index| *index.get(&alphabet)));
                let end = form.start + form.len;
                // Not all of them are wanted.
                all.extend((form.start..end).filter(|start| start & u32::from(*skip) == 0).map(|start| Suffix { start, end }));
                text.push(END);
                placed.push(form);
            }
            // Locked memory is longer than the text.
            text.extend([0; 9]);
            let mut sorted = all.clone();

            sort(&text, &placed, &mut sorted).expect("memory");

            let keys: Vec<_> = sorted.iter().map(|suffix| with_end(suffix.of(&text))).collect();
            prop_assert!(keys.is_sorted());
            for pair in sorted.windows(2) {
                let [left, right] = [pair[0].of(&text), pair[1].of(&text)];
                prop_assert_eq!(is_before(left, right), !right.starts_with(left) && !left.starts_with(right));
            }
            sorted.sort_by_key(|suffix| suffix.start);
            prop_assert_eq!(sorted, all);
        }
    }
}
