//! Where a run of bytes is in the forms: a filter of all 8-byte grams, a table of them, and a suffix array.
//!
//! The filter says for most places of a haystack that nothing begins there. The table leads from a gram to all
//! suffixes of forms that begin with it; these are sorted, so the longest one that a haystack agrees with
//! is found by bisection, however many values share a beginning. Filter, table and array hold hashes and
//! positions; bytes of values are in locked memory only.

use std::collections::BTreeMap;

use cachot_secrets::LockedBuffer;

use super::earliest::Earliest;
use super::order::{self, Suffix, is_before};
use super::{EDGE_WINDOW, Form, NeedleError, WINDOW, is_telling};

/// Bytes of a gram.
pub(crate) const GRAM: usize = 8;

/// Filter bits a gram: one place in so many of a haystack of random bytes passes the filter.
const BITS_A_GRAM: usize = 64;

/// Largest filter, in bits: it has to stay in a core's second-level cache.
const MAX_FILTER_BITS: usize = 1 << 23;

const FILTER_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const TABLE_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

/// Suffixes that begin with one gram: a run of the sorted ones. No suffixes: an empty slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    first: u32,
    count: u32,
}

/// The forms, searchable.
pub(crate) struct Index {
    text: LockedBuffer,
    forms: Vec<Form>,
    filter: Vec<u64>,
    filter_shift: u32,
    table: Vec<Slot>,
    table_shift: u32,
    /// In the order of [`order::sort`].
    suffixes: Vec<Suffix>,
    earliest: Earliest,
    /// The suffix of each form that begins with its first telling window, sorted by the window.
    beginnings: Vec<Suffix>,
    /// Forms shorter than a window, by the first suffix of their first gram.
    short: BTreeMap<u32, Vec<u32>>,
    /// Distance of the places of a haystack that have to be looked at: every run that counts has a gram at
    /// one of them.
    pub stride: usize,
    pub degenerate_windows: u64,
}

/// A run of a haystack that is a run of a form too.
#[derive(Clone, Copy)]
pub(crate) struct Match {
    /// Its length.
    pub len: usize,
    /// Where it is in the text.
    pub at: u32,
}

impl Index {
    /// `text` has each form where it says, and [`order::END`] behind it.
    ///
    /// # Errors
    /// See [`order::sort`].
    pub fn new(text: LockedBuffer, forms: Vec<Form>) -> Result<Self, NeedleError> {
        let mut degenerate_windows = 0;
        let mut suffixes = Vec::with_capacity(text.len());
        let mut beginnings = Vec::with_capacity(forms.len());
        for form in &forms {
            let before = suffixes.len();
            degenerate_windows += add_suffixes(&text, form, &mut suffixes);
            beginnings.extend(suffixes.get(before));
        }
        beginnings.sort_unstable_by(|left, right| window(&text, *left).cmp(window(&text, *right)));
        order::sort(&text, &forms, &mut suffixes)?;
        let gram = |suffix: &Suffix| gram_at(&text, suffix.start as usize);
        let runs = suffixes.chunk_by(|left, right| gram(left) == gram(right));
        let count = runs.count();

        let bits = (count * BITS_A_GRAM)
            .next_power_of_two()
            .clamp(1 << 12, MAX_FILTER_BITS);
        let slots = (2 * count).next_power_of_two().max(2);
        let mut index = Self {
            filter: vec![0; bits / 64],
            filter_shift: 64 - bits.trailing_zeros(),
            table: vec![Slot::default(); slots],
            table_shift: 64 - slots.trailing_zeros(),
            earliest: Earliest::new(&suffixes),
            suffixes,
            beginnings,
            short: BTreeMap::new(),
            stride: stride(&forms),
            degenerate_windows,
            text,
            forms,
        };
        index.insert_all();
        index.find_short();
        Ok(index)
    }

    /// Puts all grams into the filter and the table.
    fn insert_all(&mut self) {
        let mut first = 0;
        while let Some(suffix) = self.suffixes.get(first) {
            let gram = self.gram_of_text(suffix.start);
            let rest = self.suffixes[first..].iter();
            let count = rest
                .take_while(|suffix| self.gram_of_text(suffix.start) == gram)
                .count();
            // As many suffixes as bytes of text, whose offsets fit.
            let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let slot = Slot {
                first: narrow(first),
                count: narrow(count),
            };
            self.insert(gram, slot);
            first += count;
        }
    }

    fn insert(&mut self, gram: u64, slot: Slot) {
        let bit = self.bit(gram);
        self.filter[bit / 64] |= 1 << (bit % 64);
        let mut at = self.slot(gram);
        while self.table[at].count > 0 {
            at = (at + 1) % self.table.len();
        }
        self.table[at] = slot;
    }

    fn find_short(&mut self) {
        let mut short: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (form, number) in self.forms.iter().zip(0..) {
            if form.threshold() < WINDOW
                && let Some(slot) = self.find(self.gram_of_text(form.start))
            {
                short.entry(slot.first).or_default().push(number);
            }
        }
        self.short = short;
    }

    #[expect(clippy::cast_possible_truncation, reason = "the shift leaves 23 bits")]
    fn bit(&self, gram: u64) -> usize {
        (gram.wrapping_mul(FILTER_FACTOR) >> self.filter_shift) as usize
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the shift leaves under 32 bits"
    )]
    fn slot(&self, gram: u64) -> usize {
        (gram.wrapping_mul(TABLE_FACTOR) >> self.table_shift) as usize
    }

    /// Whether a form may have this gram; seldom true for one that none has.
    #[inline]
    pub fn may_have(&self, gram: u64) -> bool {
        let bit = self.bit(gram);
        self.filter[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// Whether a form has this gram.
    pub fn has(&self, gram: u64) -> bool {
        self.find(gram).is_some()
    }

    fn find(&self, gram: u64) -> Option<Slot> {
        let mut at = self.slot(gram);
        loop {
            let slot = self.table[at];
            if slot.count == 0 {
                return None;
            }
            if self.gram_of_text(self.suffixes[slot.first as usize].start) == gram {
                return Some(slot);
            }
            at = (at + 1) % self.table.len();
        }
    }

    fn gram_of_text(&self, start: u32) -> u64 {
        gram_at(&self.text, start as usize)
    }

    /// The longest run from the beginning of `haystack` on that is in a form, if it has a gram at least.
    pub fn longest(&self, haystack: &[u8]) -> Option<Match> {
        let slot = self.find(gram_at(haystack, 0))?;
        let run = &self.suffixes[slot.first as usize..][..slot.count as usize];
        // Of all suffixes, those next to the haystack's place among them agree with it longest.
        let place = run.partition_point(|suffix| is_before(self.bytes(*suffix), haystack));
        let neighbours = [place.checked_sub(1), Some(place)];
        neighbours
            .into_iter()
            .flatten()
            .filter_map(|index| run.get(index))
            .map(|suffix| Match {
                len: common(self.bytes(*suffix), haystack),
                at: suffix.start,
            })
            .max_by_key(|found| found.len)
    }

    /// The first place of the text that has this run. Where forms have it in common, that is in the plainest one: a
    /// piece of a value that needs no escapes is the value's own, and not that of a text with escapes elsewhere.
    /// Nothing if no window that tells something begins with it.
    pub fn earliest(&self, run: &[u8]) -> Option<u32> {
        let first = self
            .suffixes
            .partition_point(|suffix| is_before(self.bytes(*suffix), run));
        let rest = &self.suffixes[first..];
        let count = rest.partition_point(|suffix| self.bytes(*suffix).starts_with(run));
        self.earliest.of(&self.suffixes, first..first + count)
    }

    /// The longest form that is shorter than a window and that `haystack` begins with.
    pub fn longest_short(&self, haystack: &[u8]) -> Option<Match> {
        if self.short.is_empty() {
            return None;
        }
        let slot = self.find(gram_at(haystack, 0))?;
        let forms = self.short.get(&slot.first)?;
        forms
            .iter()
            .map(|number| &self.forms[*number as usize])
            .filter(|form| haystack.starts_with(self.form_bytes(form)))
            .max_by_key(|form| form.len)
            .map(|form| Match {
                len: form.len as usize,
                at: form.start,
            })
    }

    /// Whether a form may have a run that counts and begins with these bytes, which are fewer than a window.
    pub fn has_run(&self, run: &[u8]) -> bool {
        if run.len() >= GRAM && !self.may_have(gram_at(run, 0)) {
            return false;
        }
        let place = self
            .suffixes
            .partition_point(|suffix| is_before(self.bytes(*suffix), run));
        let next = self.suffixes.get(place);
        next.is_some_and(|suffix| self.bytes(*suffix).starts_with(run))
    }

    /// Whether the first window of a form that counts begins with these bytes.
    pub fn has_beginning(&self, run: &[u8]) -> bool {
        let place = self
            .beginnings
            .partition_point(|suffix| window(&self.text, *suffix) < run);
        let next = self.beginnings.get(place);
        next.is_some_and(|suffix| window(&self.text, *suffix).starts_with(run))
    }

    /// All forms.
    pub fn forms(&self) -> &[Form] {
        &self.forms
    }

    /// The form that a place of the text belongs to.
    pub fn form_at(&self, at: u32) -> &Form {
        let behind = self.forms.partition_point(|form| form.start <= at);
        &self.forms[behind - 1]
    }

    /// The bytes of a form.
    pub fn form_bytes(&self, form: &Form) -> &[u8] {
        form.bytes(&self.text)
    }

    /// How many bytes before `at`, in the same form, agree with the end of `before`.
    pub fn common_before(&self, at: u32, before: &[u8]) -> usize {
        let form = self.form_at(at);
        let own = &self.text[form.start as usize..at as usize];
        let pairs = own.iter().rev().zip(before.iter().rev());
        pairs.take_while(|(left, right)| left == right).count()
    }

    fn bytes(&self, suffix: Suffix) -> &[u8] {
        suffix.of(&self.text)
    }
}

/// The first bytes of a suffix, a window at most.
fn window(text: &[u8], suffix: Suffix) -> &[u8] {
    let bytes = suffix.of(text);
    &bytes[..bytes.len().min(WINDOW)]
}

/// The gram at a place of `bytes`.
#[inline]
pub(crate) fn gram_at(bytes: &[u8], at: usize) -> u64 {
    let gram = bytes[at..at + GRAM].try_into();
    u64::from_le_bytes(gram.expect("eight bytes"))
}

/// Length of the common beginning.
fn common(left: &[u8], right: &[u8]) -> usize {
    let (words_left, _) = left.as_chunks::<8>();
    let (words_right, _) = right.as_chunks::<8>();
    let words = words_left
        .iter()
        .zip(words_right)
        .take_while(|(left, right)| left == right)
        .count();
    let rest = left[8 * words..].iter().zip(&right[8 * words..]);
    8 * words + rest.take_while(|(left, right)| left == right).count()
}

/// A run of n bytes has n - 7 grams, so one of so many places that follow one another has one.
fn stride(forms: &[Form]) -> usize {
    let least = forms.iter().map(Form::threshold).min().unwrap_or(WINDOW);
    least - EDGE_WINDOW + 1
}

/// Adds the suffixes of a form that begin with a gram of a telling window; returns the number of the other windows.
fn add_suffixes(text: &[u8], form: &Form, suffixes: &mut Vec<Suffix>) -> u64 {
    let bytes = form.bytes(text);
    let window = form.threshold();
    let mut degenerate = 0;
    // Grams before this one are added or in no telling window.
    let mut next = 0;
    for (at, bytes_at) in bytes.windows(window).enumerate() {
        if !is_telling(bytes_at) {
            degenerate += 1;
            continue;
        }
        for gram in next.max(at)..=at + window - GRAM {
            suffixes.push(Suffix {
                start: form.start + u32::try_from(gram).unwrap_or(u32::MAX),
                end: form.start + form.len,
            });
        }
        next = at + window - GRAM + 1;
    }
    degenerate
}
