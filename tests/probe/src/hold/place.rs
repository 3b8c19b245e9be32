//! A place that holds a copy of the value, and what became of it.

use std::fmt;

use zeroize::Zeroizing;

use super::form::{Bytes, Form};
use crate::watch::digest;

/// Where bytes are kept outside of what this program uses for itself.
pub trait Place {
    /// Copies what is there now; `bytes` is as long as what was put there.
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()>;
}

/// Memory of this process that stays where it is until the process ends. A restore changes it behind the
/// program's back.
pub struct Memory(*const u8);

impl Memory {
    /// # Safety
    /// As many bytes as will be looked at must be readable there until the process ends, and nothing else may write
    /// to them.
    pub unsafe fn new(start: *const u8) -> Self {
        Self(start)
    }

    #[cfg(test)]
    pub fn address(&self) -> u64 {
        self.0.addr() as u64
    }
}

impl Place for Memory {
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: `new` was promised that it can be read; volatile, because it may have changed.
            *byte = unsafe { self.0.add(at).read_volatile() };
        }
        Ok(())
    }
}

/// What a place holds, compared with the value as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The value as it is now.
    Same,
    /// What was put there, although the value is another one now.
    Old,
    /// Nothing but zeros.
    Zero,
    /// Something else; also a mixture of those.
    Other,
    /// It cannot be looked at.
    Unchecked,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Same => "same",
            Self::Old => "old",
            Self::Zero => "zero",
            Self::Other => "other",
            Self::Unchecked => "unchecked",
        })
    }
}

/// A place, and what was put there.
pub struct Held {
    pub name: String,
    form: Form,
    len: usize,
    digest: String,
    place: Option<Box<dyn Place>>,
}

impl Held {
    /// `bytes` of a value in `form` are in `place`; without a place they cannot be looked at.
    pub fn new(
        name: impl Into<String>,
        form: Form,
        bytes: &[u8],
        place: Option<Box<dyn Place>>,
    ) -> Self {
        Self {
            name: name.into(),
            form,
            len: bytes.len(),
            digest: digest(bytes),
            place,
        }
    }

    /// Looks at the place and compares with the value that there is now, if there is one.
    pub fn check(&mut self, value: Option<&[u8]>) -> anyhow::Result<State> {
        let Some(place) = &mut self.place else {
            return Ok(State::Unchecked);
        };
        let mut held: Bytes = Zeroizing::new(vec![0; self.len]);
        place.look(&mut held)?;
        let wanted = value.and_then(|value| self.form.of(value));
        Ok(if wanted.is_some_and(|wanted| *wanted == *held) {
            State::Same
        } else if digest(&held) == self.digest {
            State::Old
        } else if held.iter().all(|byte| *byte == 0) {
            State::Zero
        } else {
            State::Other
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    struct Shared(Rc<RefCell<Vec<u8>>>);

    impl Place for Shared {
        fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
            bytes.copy_from_slice(&self.0.borrow());
            Ok(())
        }
    }

    #[test]
    fn test_check_tells_apart_what_can_become_of_a_copy() {
        let content = Rc::new(RefCell::new(b"6f6e65".to_vec()));
        let place = Box::new(Shared(content.clone()));
        let mut held = Held::new("here", Form::Hex, b"6f6e65", Some(place));
        let mut check = |is: &[u8], value: Option<&[u8]>| {
            *content.borrow_mut() = is.to_vec();
            held.check(value).expect("it can be looked at")
        };

        assert_eq!(check(b"6f6e65", Some(b"one")), State::Same);
        assert_eq!(check(b"74776f", Some(b"two")), State::Same);
        assert_eq!(check(b"6f6e65", Some(b"two")), State::Old);
        assert_eq!(check(b"6f6e65", Some(b"three")), State::Old);
        assert_eq!(check(b"6f6e65", None), State::Old);
        assert_eq!(check(&[0; 6], Some(b"two")), State::Zero);
        assert_eq!(check(b"6f6e6f", Some(b"two")), State::Other);
        assert_eq!(check(b"74776f", Some(b"one")), State::Other);
    }

    #[test]
    fn test_check_without_a_place() {
        let mut held = Held::new("here", Form::Plain, b"one", None);
        assert_eq!(held.check(Some(b"one")).expect("fine"), State::Unchecked);
    }
}
