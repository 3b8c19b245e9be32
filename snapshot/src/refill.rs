//! What a redaction left out, put back: the same bytes for the same value, the new value's where another one has
//! the same shape.
//!
//! | the secret's value now | a copy of it |
//! |---|---|
//! | is the same | is restored exactly |
//! | is another one of at least 16 bytes, and the form that was copied has the same length | becomes the new value's |
//! | is anything else, or there is none | stays zero, and is counted |
//!
//! Characters of base64 at the ends of a value share bits with its neighbours: those bits stay.

use std::collections::BTreeMap;

use cachot_secrets::{LockError, LockedBuffer, Name, SecretValue};

use crate::needles::{Encoding, SharedEnd, WINDOW};
use crate::plan::{Place, Plan, PlanValue, Redaction};

/// Why copies cannot be put back.
#[derive(Debug, thiserror::Error)]
pub enum RefillError<E> {
    /// Memory for a form cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A place cannot be read or written.
    #[error("a copy of a secret cannot be put back")]
    Write(#[source] E),
}

/// Where copies are put back.
pub trait Target {
    /// Why it fails.
    type Error;

    /// Writes bytes.
    ///
    /// # Errors
    /// When the place does not exist.
    fn write(&mut self, place: Place, at: u64, bytes: &[u8]) -> Result<(), Self::Error>;

    /// The byte at a position, if there is one.
    fn read(&self, place: Place, at: u64) -> Option<u8>;
}

/// What has become of the copies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refilled {
    /// Copies that hold a value again.
    pub restored: u64,
    /// Copies that stay zero, by secret.
    pub left_zero: BTreeMap<Name, u64>,
}

/// Puts back what `plan` left out. `values` are the secrets' values now, by name; `key` is the image's commitment
/// key, where this host has it: without it values under 16 bytes cannot be known to be the same.
///
/// # Errors
/// See [`RefillError`].
pub fn refill<T: Target>(
    plan: &Plan,
    values: &BTreeMap<Name, SecretValue>,
    key: Option<&[u8; 32]>,
    target: &mut T,
) -> Result<Refilled, RefillError<T::Error>> {
    let mut forms: BTreeMap<(u32, Encoding), Option<Form>> = BTreeMap::new();
    let mut done = Refilled::default();
    for redaction in plan.redactions() {
        // The plan was checked: the value is there.
        let planned = &plan.values()[redaction.value as usize];
        let form = match forms.entry((redaction.value, redaction.encoding)) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let value = values.get(&planned.name);
                new.insert(Form::of(planned, redaction.encoding, value, key)?)
            }
        };
        match form {
            Some(form) => {
                let bytes = form.part(redaction);
                target
                    .write(redaction.place, redaction.start, bytes)
                    .map_err(RefillError::Write)?;
                form.mend_ends(redaction, target)
                    .map_err(RefillError::Write)?;
                done.restored += 1;
            }
            None => *done.left_zero.entry(planned.name.clone()).or_default() += 1,
        }
    }
    Ok(done)
}

/// A form of a value as it is now.
struct Form {
    bytes: LockedBuffer,
    shared_ends: [Option<SharedEnd>; 2],
}

impl Form {
    /// The form that goes into the place of a planned one, if the new value has such.
    fn of(
        planned: &PlanValue,
        encoding: Encoding,
        value: Option<&SecretValue>,
        key: Option<&[u8; 32]>,
    ) -> Result<Option<Self>, LockError> {
        let Some(value) = value.map(SecretValue::expose) else {
            return Ok(None);
        };
        let is_same = || {
            key.is_some_and(|key| *blake3::keyed_hash(key, value).as_bytes() == planned.commitment)
        };
        let len = encoding.len_of(value);
        // Values of other lengths can have as many whole words.
        let words = matches!(encoding, Encoding::ReversedWords(_));
        let fits = planned.forms.get(&encoding).map(|len| *len as usize) == Some(len)
            && (!words || planned.len == value.len() as u64);
        if !fits || (value.len() < WINDOW && !is_same()) {
            return Ok(None);
        }
        let mut bytes = LockedBuffer::new(len.max(1))?;
        let mut at = 0;
        encoding.encode(value, &mut |byte| {
            bytes[at] = byte;
            at += 1;
        });
        Ok(Some(Self {
            bytes,
            shared_ends: encoding.shared_ends(value),
        }))
    }

    fn part(&self, redaction: &Redaction) -> &[u8] {
        let start = redaction.offset as usize;
        &self.bytes[start..start + redaction.len as usize]
    }

    /// Gives the characters of base64 just before and behind the form the value's bits.
    fn mend_ends<T: Target>(&self, redaction: &Redaction, target: &mut T) -> Result<(), T::Error> {
        let positions = [redaction.start.checked_sub(1), Some(redaction.range().end)];
        let ends = positions.into_iter().zip(self.shared_ends);
        for ((at, end), shared) in ends.zip(redaction.shared_ends) {
            let (Some(at), Some(end), true) = (at, end, shared) else {
                continue;
            };
            let old = target.read(redaction.place, at);
            if let Some(new) = old.and_then(|old| end.put_into(old)) {
                target.write(redaction.place, at, &[new])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needles::{Needles, Value};
    use crate::plan::PlanBuilder;
    use crate::scan::Edges;
    use proptest::prelude::*;
    use std::ops::ControlFlow;

    const KEY: [u8; 32] = [9; 32];

    struct Memory(Vec<u8>);

    impl Target for Memory {
        type Error = ();

        fn write(&mut self, place: Place, at: u64, bytes: &[u8]) -> Result<(), ()> {
            assert_eq!(place, Place::Ram);
            let at = usize::try_from(at).map_err(drop)?;
            self.0
                .get_mut(at..at + bytes.len())
                .ok_or(())?
                .copy_from_slice(bytes);
            Ok(())
        }

        fn read(&self, _place: Place, at: u64) -> Option<u8> {
            self.0.get(usize::try_from(at).ok()?).copied()
        }
    }

    fn secret(bytes: &[u8]) -> SecretValue {
        SecretValue::copy_of(bytes).expect("a value")
    }

    fn name() -> Name {
        "A".parse().expect("a name")
    }

    /// Redacts what is in `memory` of `value`.
    fn redact(memory: &mut [u8], value: &[u8]) -> Plan {
        let needles = Needles::new(vec![Value {
            name: name(),
            version: 1,
            bytes: secret(value),
        }])
        .expect("memory");
        let mut builder = PlanBuilder::new(&needles, &KEY, []);
        let search = needles.scan(memory, Edges::PAGES, &mut |hit| {
            builder.add(Place::Ram, 0, memory, &hit);
            ControlFlow::Continue(())
        });
        assert!(search.is_continue());
        builder
            .settle(Place::Ram, 0, memory, Edges::PAGES)
            .expect("few rounds");
        let plan = builder.build().expect("few hits");
        for range in plan.left_out() {
            let index = |at: u64| usize::try_from(at).expect("small");
            memory[index(range.start)..index(range.end)].fill(0);
        }
        assert_eq!(needles.count(memory, Edges::PAGES, u64::MAX), 0);
        plan
    }

    fn refilled(plan: &Plan, memory: Vec<u8>, value: &[u8]) -> (Vec<u8>, Refilled) {
        let mut memory = Memory(memory);
        let values = [(name(), secret(value))].into();
        let done = refill(plan, &values, Some(&KEY), &mut memory).expect("all in memory");
        (memory.0, done)
    }

    /// What a program makes of a value: several forms between other bytes.
    fn written(value: &[u8]) -> Vec<u8> {
        let mut all = b"head ".to_vec();
        for encoding in Encoding::ALL {
            if !matches!(encoding, Encoding::Base64(_) | Encoding::Base64Url(_)) {
                encoding.encode(value, &mut |byte| all.push(byte));
                all.extend_from_slice(b" then ");
            }
        }
        for before in [&b""[..], b"x", b"xy"] {
            let joined = [before, value, b"zz"].concat();
            Encoding::Base64(0).encode(&joined, &mut |byte| all.push(byte));
            all.extend_from_slice(b" then ");
            Encoding::Base64Url(0).encode(&joined, &mut |byte| all.push(byte));
            all.extend_from_slice(b" then ");
        }
        all
    }

    #[test]
    fn test_refill_same_value_restores_every_byte() {
        for value in [
            &b"a short"[..],
            b"12345678",
            b"0123456789abcdefghijklmnopq+/",
        ] {
            let original = written(value);
            let mut memory = original.clone();
            let plan = redact(&mut memory, value);
            assert_eq!(plan.redactions().is_empty(), value.len() < 8);

            let (memory, done) = refilled(&plan, memory, value);

            assert_eq!(memory, original);
            assert!(done.left_zero.is_empty());
        }
    }

    #[test]
    fn test_refill_other_value_of_the_same_shape_is_what_the_program_would_have_made() {
        for (old, new) in [
            (&b"7t3z1w9e5r2asdfghjkl"[..], &b"QTYZXWVERMNasdfghjkl"[..]),
            (b"key+with/two=three!!!", b"KEY+WITH/TWO=THREE!!!"),
        ] {
            let mut memory = written(old);
            let plan = redact(&mut memory, old);

            let (memory, done) = refilled(&plan, memory, new);

            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(text(&memory), text(&written(new)));
            assert!(done.left_zero.is_empty());
        }
    }

    #[test]
    fn test_refill_what_does_not_fit_stays_zero() {
        let long = b"0123456789abcdefghij";
        let short = b"0123456789";
        for (old, new) in [
            (&long[..], &b"one byte more or less"[..]),
            (short, b"9876543210"),
        ] {
            let mut memory = written(old);
            let plan = redact(&mut memory, old);
            let redacted = memory.clone();

            let (memory, done) = refilled(&plan, memory, new);

            assert_eq!(memory, redacted);
            let zeros = plan.redactions().len() as u64;
            assert!(zeros > 5);
            assert_eq!(done.left_zero, [(name(), zeros)].into());
        }
    }

    #[test]
    fn test_refill_without_the_value_or_the_key() {
        let value = b"0123456789";
        let mut memory = written(value);
        let plan = redact(&mut memory, value);
        let mut target = Memory(memory.clone());

        let none = refill(&plan, &BTreeMap::new(), Some(&KEY), &mut target).expect("in memory");
        let values = [(name(), secret(value))].into();
        let unknown = refill(&plan, &values, None, &mut target).expect("in memory");

        assert_eq!((none.restored, unknown.restored), (0, 0));
        assert_eq!(target.0, memory);
    }

    #[test]
    fn test_refill_what_only_redaction_made_residue_is_restored_too() {
        // Zeros in the place of the whole value stand before the end of a run that has zeros before it.
        let value = b"abcdefg\0\0\0\0\0\0\0\0\0\0hijklmn";
        let original = [&value[..], b"hijklmn.......... and so on"].concat();
        let mut memory = original.clone();

        let plan = redact(&mut memory, value);

        assert!(plan.redactions().len() > 1);
        assert_eq!(memory[value.len()..][..7], [0; 7]);
        let (memory, done) = refilled(&plan, memory, value);
        assert_eq!(memory, original);
        assert!(done.left_zero.is_empty());
    }

    proptest! {
        #[test]
        fn test_refill_is_the_inverse_of_redaction(
            value in prop::collection::vec(any::<u8>(), 8..100),
            pieces in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..Encoding::ALL.len(), prop::collection::vec(any::<u8>(), 0..40)), 0..30),
        ) {
            let mut original = Vec::new();
            for (from, to, encoding, noise) in pieces {
                let mut form = Vec::new();
                Encoding::ALL[encoding].encode(&value, &mut |byte| form.push(byte));
                let (from, to) = (from.index(form.len() + 1), to.index(form.len() + 1));
                original.extend_from_slice(&form[from.min(to)..from.max(to)]);
                original.extend_from_slice(&noise);
            }
            let mut memory = original.clone();
            let plan = redact(&mut memory, &value);

            let (memory, _) = refilled(&plan, memory, &value);

            prop_assert_eq!(memory, original);
        }
    }
}
