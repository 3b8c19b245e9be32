//! The filter against its oracle, and what programs and terminals make of a value.

use proptest::prelude::*;
use proptest::sample::Index;

use super::oracle::{duties, duties_with_pauses, forms, is_fit, masked, windows};
use super::*;
use crate::needles::{Encoding, Value};

/// Random, so no window of it is in anything else.
const TOKEN: &[u8] = b"ghp_Zx81kQ7vLm2Rt9Ws4Yb6Nc3Jd5Hf0Ga";

fn needles(values: &[impl AsRef<[u8]>]) -> Arc<Needles> {
    let value = |value: &dyn AsRef<[u8]>| Value {
        name: "A".parse().expect("a name"),
        version: 1,
        bytes: cachot_secrets::SecretValue::copy_of(value.as_ref()).expect("a value"),
    };
    let values = values.iter().map(|bytes| value(bytes)).collect();
    Arc::new(Needles::new(values).expect("memory"))
}

/// The output of a new filter for these pieces and the end behind them.
fn filtered<'a>(needles: &Arc<Needles>, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut mask = Mask::new(Arc::clone(needles));
    let mut output = Vec::new();
    for piece in pieces {
        mask.feed(piece, &mut output);
        assert!(mask.held <= REACH && mask.known <= REACH);
        assert_eq!(mask.pending(), mask.held > 0);
    }
    mask.flush(&mut output);
    output
}

/// The same text, however it is cut into pieces of one length; fails if the cut matters.
fn text(needles: &Arc<Needles>, stream: &[u8]) -> String {
    let whole = filtered(needles, [stream]);
    for len in [1, 2, 3, 5, 8, 13, 16, 21, 64] {
        assert_eq!(filtered(needles, stream.chunks(len)), whole, "{len}");
    }
    String::from_utf8(whole).expect("text")
}

fn encoded(encoding: Encoding, value: &[u8]) -> Vec<u8> {
    let mut form = Vec::new();
    encoding.encode(value, &mut |byte| form.push(byte));
    form
}

#[test]
fn test_every_form_is_masked_in_any_pieces() {
    let value = b"key+with/\"two\"=three?!! \xc3\xa4";
    let needles = needles(&[value]);
    for encoding in Encoding::ALL {
        let stream = [&b"<"[..], &encoded(encoding, value), b">"].concat();
        assert_eq!(text(&needles, &stream), "<***>", "{encoding:?}");
    }
}

#[test]
fn test_other_text_is_passed_on_at_once() {
    let needles = needles(&[TOKEN]);
    let mut mask = Mask::new(Arc::clone(&needles));
    let mut output = Vec::new();
    let lines = [
        "Compiling cachot v0.1.0 (/src)\n",
        "    Finished in 3.21 s\r\n",
        "$ ",
        "login: ",
        "[####      ] 40 %",
        "\r",
        "decade of facade",
    ];
    for line in lines {
        mask.feed(line.as_bytes(), &mut output);
        assert!(!mask.pending(), "{line:?}");
    }
    assert_eq!(output, lines.concat().as_bytes());

    // The positive control: the beginning of the value is not.
    mask.feed(b" = gh", &mut output);
    assert!(mask.pending());
    assert!(output.ends_with(b" = "));
}

#[test]
fn test_flush_passes_on_what_only_looked_like_a_value() {
    let mut mask = Mask::new(needles(&[TOKEN]));
    let mut output = Vec::new();

    mask.feed(b"prompt g", &mut output);
    assert_eq!((mask.pending(), &output[..]), (true, &b"prompt "[..]));
    mask.flush(&mut output);

    assert_eq!((mask.pending(), &output[..]), (false, &b"prompt g"[..]));
    mask.flush(&mut output);
    assert_eq!(output, b"prompt g");
}

#[test]
fn test_with_a_pause_after_each_byte_seven_bytes_are_shown() {
    let mut mask = Mask::new(needles(&[TOKEN]));
    let mut output = Vec::new();

    for byte in TOKEN {
        mask.feed(&[*byte], &mut output);
        mask.flush(&mut output);
    }

    assert_eq!(output, [&TOKEN[..7], MASKED].concat());
}

#[test]
fn test_end_behind_a_part_masks_it_if_it_is_residue_at_an_edge() {
    let needles = needles(&[TOKEN]);
    let cut_off = |len| {
        let stream = [b"<", &TOKEN[..len]].concat();
        text(&needles, &stream)
    };
    assert_eq!(cut_off(7), "<ghp_Zx8");
    assert_eq!(cut_off(8), "<***");
    assert_eq!(cut_off(15), "<***");
}

#[test]
fn test_run_from_the_middle_shows_under_four_bytes_if_it_is_cut_there() {
    let needles = needles(&[TOKEN]);
    let run = &TOKEN[5..30];
    let stream = [b"<", run, b">"].concat();

    assert_eq!(filtered(&needles, [&stream[..]]), b"<***>");
    for cut in 2..stream.len() {
        let (left, right) = stream.split_at(cut);
        let shown = if cut - 1 < HELD_RUN {
            &run[..cut - 1]
        } else {
            &[]
        };
        let expected = [b"<", shown, MASKED, b">"].concat();
        assert_eq!(filtered(&needles, [left, right]), expected, "{cut}");
    }
}

#[test]
fn test_lines_that_a_terminal_ends_with_a_carriage_return() {
    let body: Vec<u8> = (0..100_u8).map(|n| n.wrapping_mul(151) ^ 0x5a).collect();
    let base64 = encoded(Encoding::Base64(0), &body);
    let lines: Vec<_> = base64
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        lines.join("\n")
    );
    let needles = needles(&[&pem]);
    // The last line is no window of its own.
    assert_eq!(lines.last().map(|line| line.len()), Some(5));

    let printed = format!("$ cat key\r\n{}$ ", pem.replace('\n', "\r\n"));

    assert_eq!(text(&needles, printed.as_bytes()), "$ cat key\r\n***$ ");
    assert_eq!(text(&needles, format!("$ {pem}$ ").as_bytes()), "$ ***$ ");
}

#[test]
fn test_wrapped_forms() {
    let value: Vec<u8> = (0..150_u8).map(|n| n.wrapping_mul(197) ^ 0xa7).collect();
    let needles = needles(&[&value]);
    for (encoding, expected) in [
        (Encoding::Base64(0), "***\n***\n***\n"),
        (Encoding::Hex, "***\n***\n***\n***\n"),
        (Encoding::HexUpper, "***\n***\n***\n***\n"),
    ] {
        let form = encoded(encoding, &value);
        let mut wrapped = Vec::new();
        for line in form.chunks(76) {
            wrapped.extend_from_slice(line);
            wrapped.push(b'\n');
        }
        assert_eq!(text(&needles, &wrapped), expected, "{encoding:?}");
    }
}

#[test]
fn test_runs_that_touch_are_one() {
    let other = b"AKIA-other-key-0123";
    let needles = needles(&[TOKEN, other]);
    let stream = [b"<", TOKEN, other, TOKEN, b"> <", other, b">"].concat();
    assert_eq!(text(&needles, &stream), "<***> <***>");
}

#[test]
fn test_values_under_a_window_are_masked_whole() {
    let needles = needles(&[&b"abc"[..], b"hush", b"0000", b"hush-hush", b"121212121212"]);
    for (stream, expected) in [
        ("abc", "abc"),
        ("<hush>", "<***>"),
        ("<hus>", "<hus>"),
        ("hush-hush hush-hus.", "*** ***-hus."),
        ("<hushush>", "<***>"),
        ("<00000>", "<***>"),
        ("<12121212121>", "<12121212121>"),
        ("<1212121212121>", "<***1>"),
    ] {
        assert_eq!(text(&needles, stream.as_bytes()), expected, "{stream}");
    }
    // Raw only.
    assert_eq!(text(&needles, b"68757368."), "68757368.");
}

#[test]
fn test_window_with_few_distinct_bytes_is_shown() {
    let value = [&[b'='; 20][..], b"Zx81kQ7vLm2Rt9Ws"].concat();
    let needles = needles(&[&value]);
    // The first window with four distinct bytes has 13 of the 20.
    let expected = format!("<{}***>", "=".repeat(7));
    assert_eq!(text(&needles, &[b"<", &value[..], b">"].concat()), expected);
}

#[test]
fn test_no_value_at_all() {
    let needles = needles(&[[0_u8; 0]; 0]);
    assert_eq!(text(&needles, b"anything"), "anything");
}

#[test]
fn test_each_byte_is_searched_a_bounded_number_of_times() {
    let needles = needles(&[TOKEN]);
    // What begins over and over again is held back each time.
    let mut stream = TOKEN[..15].repeat(1000);
    stream.extend_from_slice(&TOKEN.repeat(200));
    for (len, times) in [(1, 16), (7, 4), (16, 3), (100, 2), (4096, 2)] {
        let mut mask = Mask::new(Arc::clone(&needles));
        let mut output = Vec::new();
        for piece in stream.chunks(len) {
            mask.feed(piece, &mut output);
        }
        assert!(mask.searched >= stream.len());
        assert!(mask.searched <= times * stream.len(), "{len}");
    }
}

/// Values of a few letters, many with a common beginning.
fn some_values() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let letters = || prop::sample::select(&b"abcd\n"[..]);
    let value = (any::<bool>(), prop::collection::vec(letters(), 1..24));
    let shared = prop::collection::vec(letters(), 0..20);
    (shared, prop::collection::vec(value, 1..4)).prop_map(|(shared, values)| {
        let mut values: Vec<_> = values
            .into_iter()
            .map(|(shares, own)| match shares {
                true => [&shared[..], &own].concat(),
                false => own,
            })
            .collect();
        values.sort();
        values.dedup();
        values
    })
}

/// A part of a form, with what comes behind it.
type Part = (Index, Index, Index, Index, Vec<u8>);

fn some_parts() -> impl Strategy<Value = Vec<Part>> {
    let noise = prop::collection::vec(prop::sample::select(&b"abcd\r\n6Y"[..]), 0..6);
    let part = (
        any::<Index>(),
        any::<Index>(),
        any::<Index>(),
        any::<Index>(),
        noise,
    );
    prop::collection::vec(part, 0..8)
}

/// A stream of them, with an end that is in no value.
fn stream_of(parts: &[Part], values: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (value, form, from, to, noise) in parts {
        let value = value.get(values);
        let mut forms = forms(value);
        // Raw bytes more often than each of the others.
        forms.extend([value.clone(), value.clone(), value.clone(), value.clone()]);
        let form = form.get(&forms);
        let (from, to) = (from.index(form.len() + 1), to.index(form.len() + 1));
        // Whole ones often.
        let part = if from < to {
            &form[from..to]
        } else {
            &form[..]
        };
        stream.extend_from_slice(part);
        stream.extend_from_slice(noise);
    }
    stream.extend_from_slice(b".");
    stream
}

/// The stream in pieces of these lengths, over and over.
fn pieces<'a>(stream: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = stream;
    let mut pieces = Vec::new();
    for len in lengths.iter().cycle() {
        let (piece, behind) = rest.split_at(rest.len().min(*len));
        pieces.push(piece);
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    pieces
}

fn some_lengths() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![1]),
        prop::collection::vec(1..4_usize, 1..6),
        prop::collection::vec(1..40_usize, 1..6),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn test_at_once_the_filter_does_what_the_oracle_does(values in some_values(), parts in some_parts()) {
        let stream = stream_of(&parts, &values);

        let output = filtered(&needles(&values), [&stream[..]]);

        let expected = masked(&stream, &windows(&values));
        prop_assert_eq!(output.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn test_in_pieces_only_first_bytes_are_shown(
        values in some_values(), parts in some_parts(), lengths in some_lengths(),
    ) {
        let stream = stream_of(&parts, &values);

        let output = filtered(&needles(&values), pieces(&stream, &lengths));

        let duties = duties(&stream, &windows(&values));
        prop_assert!(is_fit(&output, &stream, &duties), "{}", output.escape_ascii());
    }

    #[test]
    fn test_with_pauses_only_first_bytes_are_shown(
        values in some_values(), parts in some_parts(), lengths in some_lengths(),
        pauses in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        let stream = stream_of(&parts, &values);
        let mut mask = Mask::new(needles(&values));
        let mut output = Vec::new();

        for (piece, pause) in pieces(&stream, &lengths).into_iter().zip(pauses.iter().cycle()) {
            mask.feed(piece, &mut output);
            if *pause {
                mask.flush(&mut output);
            }
        }

        prop_assert!(!mask.pending());
        let duties = duties_with_pauses(&stream, &windows(&values), &values);
        prop_assert!(is_fit(&output, &stream, &duties), "{}", output.escape_ascii());
    }
}
