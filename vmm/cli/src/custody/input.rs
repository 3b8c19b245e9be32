//! Where a value for the store comes from: the terminal, standard input, a reference, chance.

use std::io::{self, IsTerminal};

use cachot_custody::Requester;
use cachot_secrets::SecretValue;
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use super::{CustodyError, schemes};
use crate::args::ValueArgs;
use crate::input;

/// Bytes from which a random value is made.
const RANDOM_LEN: usize = 32;

/// Six bits each of a random value: those of base64 for URLs (RFC 4648, section 5).
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Gets a value from where the command line says, or else asks for it, or reads all of standard input.
pub(super) fn value(args: &ValueArgs, requester: &Requester) -> Result<SecretValue, CustodyError> {
    if let Some(reference) = &args.from {
        return Ok(input::fetch(reference, &schemes(requester))?);
    }
    if args.generate {
        return random();
    }
    if io::stdin().is_terminal() {
        return ask();
    }
    let value = input::read()?;
    if value.expose().ends_with(b"\n") {
        eprintln!(
            "cachot: warning: the value ends with a newline, which is part of it: `printf %s` writes none"
        );
    }
    Ok(value)
}

/// Takes a value from the command line, with a warning.
pub(super) fn inline(pieces: &[String]) -> Result<SecretValue, CustodyError> {
    let [value] = pieces else {
        return Err(CustodyError::Pieces);
    };
    eprintln!(
        "cachot: WARNING: a value on the command line is seen by every process of this machine and kept by your shell: \
         give another value to whatever it opens, and leave it out next time"
    );
    Ok(SecretValue::copy_of(value.as_bytes())?)
}

fn random() -> Result<SecretValue, CustodyError> {
    let mut bytes = Zeroizing::new([0; RANDOM_LEN]);
    // The kernel gives so few at once.
    getrandom(&mut *bytes, GetRandomFlags::empty()).map_err(io::Error::from)?;
    let len = (RANDOM_LEN * 8).div_ceil(6);
    Ok(SecretValue::filled_by(len, |text| {
        for (at, character) in text.iter_mut().enumerate() {
            let bit = |bit: usize| {
                let byte = bytes.get(bit / 8).copied().unwrap_or(0);
                usize::from(byte >> (7 - bit % 8) & 1)
            };
            let index = (0..6).fold(0, |index, next| index << 1 | bit(6 * at + next));
            *character = ALPHABET[index];
        }
        Ok(())
    })?)
}

fn ask() -> Result<SecretValue, CustodyError> {
    let first = input::typed("Value: ")?;
    let second = input::typed("The same value again: ")?;
    match *first == *second {
        true => Ok(SecretValue::copy_of(first.as_bytes())?),
        false => Err(CustodyError::NotTheSame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_random_is_text_and_never_the_same() {
        let (one, other) = (random().expect("a value"), random().expect("a value"));
        assert_eq!(one.len(), 43);
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        assert!(one.expose().iter().all(plain));
        assert!(one.expose() != other.expose());
    }
}
