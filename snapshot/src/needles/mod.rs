//! Needles: every form of every value that was delivered, in memory that is locked and wiped.

mod encoding;
mod index;

use std::fmt;

use cachot_secrets::{LockError, LockedBuffer, Name, SecretValue};

pub use self::encoding::Encoding;
pub(crate) use self::index::{GRAM, Index, gram_at};

/// Runs of this many bytes of a form are residue wherever they are.
pub const WINDOW: usize = 16;

/// Runs of this many bytes are residue at an edge; values and forms that are shorter are not searched for.
pub const EDGE_WINDOW: usize = 8;

/// Windows with fewer distinct bytes than this are no residue: they are found everywhere.
pub const DISTINCT: usize = 4;

/// Most bytes of all forms of all values together. A text of 1 MiB has about 20 MiB of forms.
pub const MAX_FORMS_LEN: usize = 512 << 20;

/// Why values cannot be searched for.
#[derive(Debug, thiserror::Error)]
pub enum NeedleError {
    /// Memory for them cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
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
pub struct Value<'a> {
    /// The secret that it was delivered for.
    pub name: &'a Name,
    /// Its version.
    pub version: u64,
    /// Its bytes.
    pub bytes: &'a SecretValue,
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
}

/// All forms of all values, ready to be searched for.
pub struct Needles {
    origins: Vec<Origin>,
    pub(crate) index: Index,
}

impl Needles {
    /// Prepares the search for these values, which should be distinct.
    ///
    /// # Errors
    /// See [`NeedleError`].
    pub fn new(values: &[Value<'_>]) -> Result<Self, NeedleError> {
        let mut forms = Vec::new();
        let mut len = 0_usize;
        for (value, number) in values.iter().zip(0..) {
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
                len += form_len;
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
        }
        let origin = |value: &Value<'_>| Origin {
            name: value.name.clone(),
            version: value.version,
            len: value.bytes.len(),
        };
        Ok(Self {
            origins: values.iter().map(origin).collect(),
            index: Index::new(text, forms),
        })
    }

    /// The values, in the order in which they were given.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Values that are too short to be searched for.
    pub fn short(&self) -> impl Iterator<Item = &Origin> {
        self.origins
            .iter()
            .filter(|origin| origin.len < EDGE_WINDOW)
    }

    /// Windows of all forms with too few distinct bytes, which are not searched for.
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

/// Whether a run of bytes has enough distinct ones to mean something.
pub(crate) fn is_telling(run: &[u8]) -> bool {
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
