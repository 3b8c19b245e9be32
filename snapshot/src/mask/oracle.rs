//! What a filter has to do, in the obvious way: every window of every form, compared at every place.

use std::collections::{BTreeMap, BTreeSet};

use super::{HELD_RUN, MASKED};
use crate::needles::{Encoding, is_telling};

/// Runs that are masked wherever they are, and whether they are where a form begins.
pub type Windows = BTreeMap<Vec<u8>, bool>;

/// All windows of these values.
pub fn windows(values: &[Vec<u8>]) -> Windows {
    let mut all = Windows::new();
    for value in values {
        let mut telling = false;
        for form in forms(value) {
            let len = form.len().min(16);
            let of_form = form.windows(len).filter(|window| is_telling(window));
            for (window, number) in of_form.zip(0..) {
                *all.entry(window.to_vec()).or_default() |= number == 0;
                telling |= form == *value;
            }
        }
        if !telling && (4..16).contains(&value.len()) {
            all.insert(value.clone(), true);
        }
    }
    all
}

/// The forms that are searched for.
pub fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let form = |encoding: Encoding| {
        let mut form = Vec::new();
        encoding.encode(value, &mut |byte| form.push(byte));
        form
    };
    let forms = Encoding::ALL.map(form).into_iter();
    forms
        .filter(|form| value.len() >= 8 && form.len() >= 8)
        .collect()
}

/// What a filter may make of a byte of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    Show,
    Hide,
    /// It is the first of a window in every window that it is in, and the stream may have been cut behind it.
    Either,
}

/// What a filter has to make of a stream that is cut anywhere.
pub fn duties(stream: &[u8], windows: &Windows) -> Vec<Duty> {
    duties_of(stream, windows, |start, at, first| {
        let begins_line = start == 0 || b"\r\n".contains(&stream[start - 1]);
        at - start < HELD_RUN - 1 && !first && !begins_line
    })
}

/// Likewise, with pauses anywhere.
pub fn duties_with_pauses(stream: &[u8], windows: &Windows, values: &[Vec<u8>]) -> Vec<Duty> {
    let mut duties = duties_of(stream, windows, |start, at, _| {
        at - start < 7 || !is_telling(&stream[start..=at])
    });
    let forms: Vec<_> = values.iter().flat_map(|value| forms(value)).collect();
    for start in 0..stream.len() {
        for len in 8..16.min(stream.len() - start + 1) {
            let run = &stream[start..start + len];
            let in_form = |form: &Vec<u8>| form.windows(len).any(|other| other == run);
            if is_telling(run) && forms.iter().any(in_form) {
                for duty in &mut duties[start..start + len] {
                    if *duty == Duty::Show {
                        *duty = Duty::Either;
                    }
                }
            }
        }
    }
    duties
}

fn duties_of(
    stream: &[u8],
    windows: &Windows,
    may_be_shown: impl Fn(usize, usize, bool) -> bool,
) -> Vec<Duty> {
    let mut duties = vec![Duty::Show; stream.len()];
    for start in 0..stream.len() {
        for len in 4..17.min(stream.len() - start + 1) {
            let Some(first) = windows.get(&stream[start..start + len]) else {
                continue;
            };
            for (at, duty) in duties.iter_mut().enumerate().skip(start).take(len) {
                if !may_be_shown(start, at, *first) {
                    *duty = Duty::Hide;
                } else if *duty == Duty::Show {
                    *duty = Duty::Either;
                }
            }
        }
    }
    duties
}

/// The stream with everything hidden that may be.
pub fn masked(stream: &[u8], windows: &Windows) -> Vec<u8> {
    let mut output = Vec::new();
    let mut hiding = false;
    for (byte, duty) in stream.iter().zip(duties(stream, windows)) {
        match duty {
            Duty::Show => output.push(*byte),
            Duty::Hide | Duty::Either if hiding => {}
            Duty::Hide | Duty::Either => output.extend_from_slice(MASKED),
        }
        hiding = duty != Duty::Show;
    }
    output
}

/// Whether a filter that does its duty can have made `output` of the stream, which has no asterisks.
pub fn is_fit(output: &[u8], stream: &[u8], duties: &[Duty]) -> bool {
    // Where the output may be after so many bytes, and whether it ends with what stands for hidden ones.
    let mut states = BTreeSet::from([(0, false)]);
    for (byte, duty) in stream.iter().zip(duties) {
        let mut next = BTreeSet::new();
        for (at, hiding) in states {
            let rest = &output[at..];
            if *duty != Duty::Hide && rest.first() == Some(byte) {
                next.insert((at + 1, false));
            }
            if *duty != Duty::Show && hiding {
                next.insert((at, true));
            } else if *duty != Duty::Show && rest.starts_with(MASKED) {
                next.insert((at + MASKED.len(), true));
            }
        }
        states = next;
    }
    states.into_iter().any(|(at, _)| at == output.len())
}
