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

/// Bits of a position in the text, which has at most [`MAX_FORMS_LEN`](super::MAX_FORMS_LEN) bytes, or of a number of
/// suffixes.
const POSITION_BITS: u32 = 29;

/// Bits of a gram's hash in its slot: one of so many other grams is taken for it, and has to be compared.
const TAG_BITS: u32 = 4;

/// Where one gram is in the forms, packed: its [`Places`] and a tag. 0 is an empty slot.
#[derive(Clone, Copy, Default)]
struct Slot(u64);

/// Where forms have a gram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places {
    /// Here alone.
    One(u32),
    /// At these two.
    Two([u32; 2]),
    /// Where so many suffixes begin, from this one of the sorted ones on.
    Many { first: u32, count: u32 },
}

impl Slot {
    fn new(places: Places, tag: u64) -> Self {
        let (kind, left, right) = match places {
            Places::One(place) => (1, place, 0),
            Places::Two([left, right]) => (2, left, right),
            Places::Many { first, count } => (3, first, count),
        };
        let numbers = u64::from(left) | u64::from(right) << POSITION_BITS;
        Self((numbers << TAG_BITS | tag) << 2 | kind)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn tag(self) -> u64 {
        self.0 >> 2 & ((1 << TAG_BITS) - 1)
    }

    fn places(self) -> Places {
        let number = |shift: u32| {
            let bits = self.0 >> (2 + TAG_BITS + shift) & ((1 << POSITION_BITS) - 1);
            u32::try_from(bits).unwrap_or(u32::MAX)
        };
        let (left, right) = (number(0), number(POSITION_BITS));
        match self.0 & 3 {
            1 => Places::One(left),
            2 => Places::Two([left, right]),
            _ => Places::Many {
                first: left,
                count: right,
            },
        }
    }
}

/// The forms, searchable.
pub(crate) struct Index {
    text: LockedBuffer,
    forms: Vec<Form>,
    /// For each block of the text the last form that begins at or before its first byte.
    form_of_block: Vec<u32>,
    filter: Vec<u64>,
    filter_shift: u32,
    table: Vec<Slot>,
    /// In the order of [`order::sort`].
    suffixes: Vec<Suffix>,
    earliest: Earliest,
    /// The suffix of each form that begins with its first telling window, sorted by the window.
    beginnings: Vec<Suffix>,
    /// Forms shorter than a window, by the first place that has their first gram.
    short: BTreeMap<u32, Vec<u32>>,
    /// Distance of the places of a haystack that have to be looked at: every run that counts has a gram at
    /// one of them.
    pub stride: usize,
    pub degenerate_windows: u64,
}

/// Bytes of the text for which one form is written down.
const BLOCK: usize = 64;

/// A run of a haystack that is a run of a form too.
#[derive(Clone, Copy)]
pub(crate) struct Match {
    /// Its length.
    pub len: usize,
    /// Where it is in the text.
    pub at: u32,
}

/// How far a haystack and a form agree, from a gram on that both have.
pub(crate) struct Extent<'a> {
    pub form: &'a Form,
    /// Bytes before the gram.
    pub before: usize,
    /// Bytes from the gram's first on.
    pub behind: usize,
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
        // Larger it is in fewer caches; fuller, what is next to a place belongs to others.
        let slots = count + count / 2 + 2;
        let mut index = Self {
            filter: vec![0; bits / 64],
            filter_shift: 64 - bits.trailing_zeros(),
            table: vec![Slot::default(); slots],
            earliest: Earliest::new(&suffixes),
            suffixes,
            beginnings,
            short: BTreeMap::new(),
            stride: stride(&forms),
            degenerate_windows,
            form_of_block: form_of_block(&forms, text.len()),
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
            let places = match &self.suffixes[first..first + count] {
                [one] => Places::One(one.start),
                [left, right] => {
                    Places::Two([left.start.min(right.start), left.start.max(right.start)])
                }
                _ => Places::Many {
                    first: narrow(first),
                    count: narrow(count),
                },
            };
            self.insert(gram, places);
            first += count;
        }
    }

    fn insert(&mut self, gram: u64, places: Places) {
        let bit = self.bit(gram);
        self.filter[bit / 64] |= 1 << (bit % 64);
        let mut at = self.slot(gram);
        while !self.table[at].is_empty() {
            at = (at + 1) % self.table.len();
        }
        self.table[at] = Slot::new(places, tag(gram));
    }

    fn find_short(&mut self) {
        let mut short: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (form, number) in self.forms.iter().zip(0..) {
            if form.threshold() < WINDOW
                && let Some(places) = self.places(self.gram_of_text(form.start))
            {
                short.entry(self.first_of(places)).or_default().push(number);
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
        reason = "less than the table's length"
    )]
    fn slot(&self, gram: u64) -> usize {
        // The hash as a fraction, which its first bits decide, times the length.
        let hash = gram.wrapping_mul(TABLE_FACTOR);
        ((u128::from(hash) * self.table.len() as u128) >> 64) as usize
    }

    /// Whether a form may have this gram; seldom true for one that none has.
    #[inline]
    pub fn may_have(&self, gram: u64) -> bool {
        let bit = self.bit(gram);
        self.filter[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// Whether a form may have this gram, which the filter has let pass. It is quick only for several grams one after
    /// the other: the memory is asked for all of them at once.
    #[inline]
    pub fn is_taken(&self, gram: u64) -> bool {
        !self.table[self.slot(gram)].is_empty()
    }

    /// Where forms have this gram.
    pub fn places(&self, gram: u64) -> Option<Places> {
        let mut at = self.slot(gram);
        loop {
            let slot = self.table[at];
            if slot.is_empty() {
                return None;
            }
            if slot.tag() == tag(gram) {
                let places = slot.places();
                if self.gram_of_text(self.first_of(places)) == gram {
                    return Some(places);
                }
            }
            at = (at + 1) % self.table.len();
        }
    }

    fn first_of(&self, places: Places) -> u32 {
        match places {
            Places::One(place) | Places::Two([place, _]) => place,
            Places::Many { first, .. } => self.suffixes[first as usize].start,
        }
    }

    fn gram_of_text(&self, start: u32) -> u64 {
        gram_at(&self.text, start as usize)
    }

    /// The longest run from the beginning of `haystack` on that is in a form, if it has a gram at least.
    pub fn longest(&self, haystack: &[u8]) -> Option<Match> {
        let agrees = |start: u32, end: usize| Match {
            len: common(&self.text[start as usize..end], haystack),
            at: start,
        };
        let of_form = |start: u32| agrees(start, self.form_at(start).end());
        match self.places(gram_at(haystack, 0))? {
            Places::One(place) => Some(of_form(place)),
            Places::Two(places) => places
                .into_iter()
                .map(of_form)
                .max_by_key(|found| found.len),
            Places::Many { first, count } => {
                let run = &self.suffixes[first as usize..][..count as usize];
                // Of all suffixes, those next to the haystack's place among them agree with it longest.
                let place = run.partition_point(|suffix| is_before(self.bytes(*suffix), haystack));
                let neighbours = [place.checked_sub(1), Some(place)];
                let neighbours = neighbours.into_iter().flatten();
                neighbours
                    .filter_map(|index| run.get(index))
                    .map(|suffix| agrees(suffix.start, suffix.end as usize))
                    .max_by_key(|found| found.len)
            }
        }
    }

    /// How far the form at a place of the text agrees with `haystack`, both ways, where both have the same gram at
    /// `at`; nothing if that is less than the form's least run. No form has a lesser one than `least`.
    pub fn extent(
        &self,
        place: u32,
        haystack: &[u8],
        at: usize,
        least: usize,
    ) -> Option<Extent<'_>> {
        let place = place as usize;
        let behind = common(&self.text[place..], &haystack[at..]);
        let before = common_end(&self.text[..place], &haystack[..at]);
        // Most runs are too short, whichever form they are of.
        if before + behind < least {
            return None;
        }
        let form = self.form_at(u32::try_from(place).ok()?);
        let before = before.min(place - form.start as usize);
        let behind = behind.min(form.end() - place);
        (before + behind >= form.threshold()).then_some(Extent {
            form,
            before,
            behind,
        })
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
        let places = self.places(gram_at(haystack, 0))?;
        let forms = self.short.get(&self.first_of(places))?;
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
        let first = self.form_of_block[at as usize / BLOCK] as usize;
        let behind = self.forms[first + 1..].iter();
        let skipped = behind.take_while(|form| form.start <= at).count();
        &self.forms[first + skipped]
    }

    /// The bytes of a form.
    pub fn form_bytes(&self, form: &Form) -> &[u8] {
        form.bytes(&self.text)
    }

    /// How many bytes before `at`, in the same form, agree with the end of `before`.
    pub fn common_before(&self, at: u32, before: &[u8]) -> usize {
        let form = self.form_at(at);
        common_end(&self.text[form.start as usize..at as usize], before)
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

/// Length of the common end.
fn common_end(left: &[u8], right: &[u8]) -> usize {
    let (_, words_left) = left.as_rchunks::<8>();
    let (_, words_right) = right.as_rchunks::<8>();
    let words = words_left.iter().rev().zip(words_right.iter().rev());
    let words = words.take_while(|(left, right)| left == right).count();
    let rest = |bytes: &[u8]| bytes.len() - 8 * words;
    let (left, right) = (&left[..rest(left)], &right[..rest(right)]);
    let pairs = left.iter().rev().zip(right.iter().rev());
    8 * words + pairs.take_while(|(left, right)| left == right).count()
}

/// What a slot has of its gram: bits of the hash that do not say where the slot is.
fn tag(gram: u64) -> u64 {
    gram.wrapping_mul(TABLE_FACTOR) >> 8 & ((1 << TAG_BITS) - 1)
}

/// The last form that begins at or before the first byte of each block of a text.
fn form_of_block(forms: &[Form], len: usize) -> Vec<u32> {
    let mut of_block = Vec::with_capacity(len.div_ceil(BLOCK));
    let mut form = 0;
    for start in (0..len).step_by(BLOCK) {
        while forms
            .get(form + 1)
            .is_some_and(|next| next.start as usize <= start)
        {
            form += 1;
        }
        of_block.push(u32::try_from(form).unwrap_or(u32::MAX));
    }
    of_block
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
