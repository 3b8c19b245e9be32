//! Needles: every form of every value that was delivered, in memory that is locked and wiped.

mod earliest;
mod encoding;
mod index;
mod order;
mod tables;
mod whole;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use cachot_secrets::{LockError, LockedBuffer, Name, SecretValue};

use crate::image::commitments;
use crate::scan::Hit;

pub use self::encoding::Encoding;
pub(crate) use self::encoding::SharedEnd;
pub(crate) use self::index::{GRAM, Index, Places, gram_at};
use self::whole::Whole;

/// Runs of this many bytes of a form are residue wherever they are.
pub const WINDOW: usize = 16;

/// Runs of this many bytes are residue at an edge; values and forms that are shorter are not searched for.
pub const EDGE_WINDOW: usize = 8;

/// Windows with fewer distinct bytes than this are no residue: they are found everywhere. Nor are pieces of alphabets
/// and other tables that all programs have.
pub const DISTINCT: usize = 4;

/// Most bytes of all forms of all values together. A text of 1 MiB has about 20 MiB of forms.
pub const MAX_FORMS_LEN: usize = 512 << 20;

/// Why values cannot be searched for.
#[derive(Debug, thiserror::Error)]
pub enum NeedleError {
    /// Memory for them cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The machine is short of memory for the positions of what is searched for.
    #[error(
        "there is too little memory to search for the values that were delivered to this VM: free some, or use \
         shorter secrets"
    )]
    Memory,
    /// They are too many or too long.
    #[error(
        "the values that were delivered to this VM have too many bytes to be searched for: with all encodings more \
         than {} MiB",
        MAX_FORMS_LEN >> 20
    )]
    Limit,
}

/// A value to search for.
#[derive(Debug)]
pub struct Value {
    /// The secret that it was delivered for.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// Its bytes.
    pub bytes: SecretValue,
}

/// What is known of a value without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The secret that it was delivered for.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// One form of one value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// Index of the value.
    pub value: u32,
    pub encoding: Encoding,
    /// Where it begins in the text of all forms.
    pub start: u32,
    pub len: u32,
}

impl Form {
    /// Least bytes that are residue anywhere.
    pub fn threshold(&self) -> usize {
        (self.len as usize).min(WINDOW)
    }

    /// Where it ends in the text of all forms.
    pub fn end(&self) -> usize {
        self.start as usize + self.len as usize
    }

    /// Its bytes in that text.
    pub fn bytes<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.start as usize..self.end()]
    }
}

/// All forms of all values, ready to be searched for.
pub struct Needles {
    origins: Vec<Origin>,
    values: Vec<SecretValue>,
    whole: Whole,
    pub(crate) index: Index,
}

impl Needles {
    /// Prepares the search for these values, which should be distinct.
    ///
    /// # Errors
    /// See [`NeedleError`].
    pub fn new(values: Vec<Value>) -> Result<Self, NeedleError> {
        let mut forms = Vec::new();
        let mut len = 0_usize;
        for (value, number) in values.iter().zip(0_u32..) {
            let bytes = value.bytes.expose();
            if bytes.len() < EDGE_WINDOW {
                continue;
            }
            for encoding in Encoding::ALL {
                let form_len = encoding.len_of(bytes);
                if form_len < EDGE_WINDOW || encoding.is_redundant(bytes) {
                    continue;
                }
                let narrow = |number: usize| u32::try_from(number).map_err(|_| NeedleError::Limit);
                forms.push(Form {
                    value: number,
                    encoding,
                    start: narrow(len)?,
                    len: narrow(form_len)?,
                });
                // The byte behind it, too.
                len += form_len + 1;
                if len > MAX_FORMS_LEN {
                    return Err(NeedleError::Limit);
                }
            }
        }
        let mut text = LockedBuffer::new(len.max(1))?;
        for form in &forms {
            let mut at = form.start as usize;
            let bytes = values[form.value as usize].bytes.expose();
            form.encoding.encode(bytes, &mut |byte| {
                text[at] = byte;
                at += 1;
            });
            text[at] = order::END;
        }
        let split = |value: Value| {
            let origin = Origin {
                name: value.name,
                version: value.version,
                len: value.bytes.len(),
            };
            (origin, value.bytes)
        };
        let (origins, values): (_, Vec<_>) = values.into_iter().map(split).unzip();
        Ok(Self {
            origins,
            whole: Whole::new(&values),
            values,
            index: Index::new(text, forms)?,
        })
    }

    /// The values, in the order in which they were given.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Values that cannot be searched for: too short, or nothing but what is found everywhere.
    pub fn unsearchable(&self) -> impl Iterator<Item = &Origin> {
        let with_values = self.origins.iter().zip(&self.values);
        with_values
            .filter(|(_, value)| {
                let bytes = value.expose();
                let window = bytes.len().clamp(EDGE_WINDOW, WINDOW);
                !bytes.windows(window).any(is_telling)
            })
            .map(|(origin, _)| origin)
    }

    /// Whether a run that a stream's filter looks for may begin with these bytes, which are fewer than a window,
    /// and begin where its form begins.
    pub(crate) fn has_beginning(&self, run: &[u8]) -> bool {
        self.index.has_beginning(run) || self.whole.has_beginning(&self.values, run)
    }

    /// Where values that [`Self::scan`] leaves out occur whole and as they are, with 4 to 15 bytes.
    pub(crate) fn whole<'a>(
        &'a self,
        haystack: &'a [u8],
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        self.whole.find(&self.values, haystack)
    }

    /// Length of the longest form, in bytes; 0 if there is none.
    pub(crate) fn longest_form(&self) -> usize {
        let forms = self.index.forms().iter();
        forms.map(|form| form.len as usize).max().unwrap_or(0)
    }

    /// Keyed BLAKE3 of a value.
    pub(crate) fn commitment(&self, value: usize, key: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(key, self.values[value].expose()).as_bytes()
    }

    /// Commitments to all values (`needles` part of an image).
    #[must_use]
    pub fn commitments(&self, key: &[u8; 32]) -> Vec<u8> {
        commitments(key, self.values.iter().map(|value| value.expose()))
    }

    /// Which of the characters around a hit share bits with the value ([`Encoding::shared_ends`]).
    pub(crate) fn shares_ends(&self, haystack: &[u8], hit: &Hit) -> [bool; 2] {
        let ends = hit.encoding.shared_ends(self.values[hit.value].expose());
        let whole = |end: Option<SharedEnd>, at: Option<usize>| {
            let digit = at.and_then(|at| haystack.get(at));
            end.zip(digit).is_some_and(|(end, digit)| end.is_in(*digit))
        };
        let [before, behind] = ends;
        let forms = self.index.forms();
        let form = forms
            .iter()
            .find(|form| form.value as usize == hit.value && form.encoding == hit.encoding);
        let to_end = form.is_some_and(|form| hit.offset + hit.len == form.len as usize);
        [
            hit.offset == 0 && whole(before, hit.start.checked_sub(1)),
            to_end && whole(behind, Some(hit.start + hit.len)),
        ]
    }

    /// Lengths of the forms of a value.
    pub(crate) fn form_lengths(&self, value: usize) -> BTreeMap<Encoding, u32> {
        let forms = self.index.forms().iter();
        let of_value = forms.filter(|form| form.value as usize == value);
        of_value.map(|form| (form.encoding, form.len)).collect()
    }

    /// Windows of all forms that are found everywhere, and are not searched for.
    #[must_use]
    pub fn degenerate_windows(&self) -> u64 {
        self.index.degenerate_windows
    }
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Needles")
            .field("origins", &self.origins)
            .finish_non_exhaustive()
    }
}

/// Whether a run of bytes means something: it has enough distinct ones, and is not in every program anyway.
#[must_use]
pub fn is_telling(run: &[u8]) -> bool {
    has_distinct(run) && !tables::have(run)
}

fn has_distinct(run: &[u8]) -> bool {
    let mut seen = [0; DISTINCT];
    let mut count = 0;
    for byte in run {
        if !seen[..count].contains(byte) {
            seen[count] = *byte;
            count += 1;
            if count == DISTINCT {
                return true;
            }
        }
    }
    false
}
