//! The search and the redaction against the definition of residue, taken at its word: every run of every form is in a
//! set, and every place of a haystack is looked up.

use std::collections::{BTreeMap, HashSet};
use std::ops::{ControlFlow, Range};

use cachot_secrets::{Name, SecretValue};
use cachot_snapshot::needles::{EDGE_WINDOW, Encoding, Needles, Value, WINDOW, is_telling};
use cachot_snapshot::plan::{Place, PlanBuilder};
use cachot_snapshot::refill::{Target, refill};
use cachot_snapshot::scan::{Edges, Hit};
use proptest::prelude::*;
use proptest::sample::Index;

const PAGE: usize = 4096;
const KEY: [u8; 32] = [3; 32];

fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let form = |encoding: Encoding| {
        let mut form = Vec::new();
        encoding.encode(value, &mut |byte| form.push(byte));
        form
    };
    let mut forms: Vec<_> = Encoding::ALL.into_iter().map(form).collect();
    forms.retain(|form| form.len() >= EDGE_WINDOW);
    forms
}

/// A run of at most 16 bytes, as a number and its length.
type Run = (u128, usize);

fn run(bytes: &[u8]) -> Run {
    let mut padded = [0; WINDOW];
    padded[..bytes.len()].copy_from_slice(bytes);
    (u128::from_le_bytes(padded), bytes.len())
}

/// Runs that are residue.
struct Residue {
    /// Of 16 bytes, or whole forms that are shorter, anywhere.
    anywhere: HashSet<Run>,
    /// Of 8 to 15 bytes, at an edge.
    at_edges: HashSet<Run>,
}

impl Residue {
    fn of(values: &[Vec<u8>]) -> Self {
        let (mut anywhere, mut at_edges) = (HashSet::new(), HashSet::new());
        for form in values.iter().flat_map(|value| forms(value)) {
            let runs = |len: usize| form.windows(len).filter(|bytes| is_telling(bytes)).map(run);
            anywhere.extend(runs(form.len().min(WINDOW)));
            for len in EDGE_WINDOW..WINDOW.min(form.len() + 1) {
                at_edges.extend(runs(len));
            }
        }
        Self { anywhere, at_edges }
    }

    /// Which bytes of a haystack are residue. Pages have edges.
    fn in_pages(&self, haystack: &[u8]) -> Vec<bool> {
        let mut is_residue = vec![false; haystack.len()];
        for start in 0..haystack.len() {
            for len in EDGE_WINDOW..=WINDOW.min(haystack.len() - start) {
                let range = start..start + len;
                let run = run(&haystack[range.clone()]);
                let edge = range.start.next_multiple_of(PAGE);
                let touches = edge <= range.end || range.end == haystack.len();
                if self.anywhere.contains(&run) || (touches && self.at_edges.contains(&run)) {
                    is_residue[range].fill(true);
                }
            }
        }
        is_residue
    }
}

fn needles(values: &[Vec<u8>]) -> Needles {
    let value = |(number, bytes): (usize, &Vec<u8>)| Value {
        name: name(number),
        version: 1,
        bytes: SecretValue::copy_of(bytes).expect("a value"),
    };
    Needles::new(values.iter().enumerate().map(value).collect()).expect("memory")
}

fn name(number: usize) -> Name {
    format!("V{number}").parse().expect("a name")
}

fn scan(needles: &Needles, haystack: &[u8]) -> Vec<Hit> {
    let mut hits = Vec::new();
    let search = needles.scan(haystack, Edges::PAGES, &mut |hit| {
        hits.push(hit);
        ControlFlow::Continue(())
    });
    assert!(search.is_continue());
    hits
}

/// A hit is what it says: a run of that form, and long enough.
fn check(hit: &Hit, values: &[Vec<u8>], haystack: &[u8]) {
    let mut form = Vec::new();
    hit.encoding
        .encode(&values[hit.value], &mut |byte| form.push(byte));
    let (start, end) = (hit.start, hit.start + hit.len);
    assert_eq!(
        haystack[start..end],
        form[hit.offset..][..hit.len],
        "{hit:?}"
    );
    let touches = start.next_multiple_of(PAGE) <= end || end == haystack.len();
    let least = match touches {
        true => EDGE_WINDOW,
        false => form.len().min(WINDOW),
    };
    assert!(hit.len >= least, "{hit:?}");
}

/// Values: some with a long beginning in common, some of few bytes, some that need escapes, one of several pages.
fn values() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let prefixed = prop::collection::vec(any::<u8>(), 8..40).prop_map(|rest| {
        [
            b"-----BEGIN A PRIVATE KEY----- and much more that all of them have",
            &rest[..],
        ]
        .concat()
    });
    let one = prop_oneof![
        prop::collection::vec(any::<u8>(), 8..100),
        prop::collection::vec(0..4_u8, 8..60),
        "[a-z0-9+/=\"\\\\ é\n-]{8,50}".prop_map(String::into_bytes),
        prefixed.clone(),
        prefixed,
    ];
    let long = any::<u32>().prop_map(|seed| {
        let byte = |n: u32| (n ^ seed).wrapping_mul(2_654_435_761).to_le_bytes()[3];
        (0..5000).map(byte).collect::<Vec<u8>>()
    });
    let several = prop::collection::vec(one, 1..6);
    prop_oneof![
        30 => several.clone(),
        1 => (several, long).prop_map(|(mut several, long)| {
            several.push(long);
            several
        }),
    ]
}

/// A piece of a form and where it goes.
#[derive(Debug, Clone)]
struct Piece {
    value: Index,
    form: Index,
    from: Index,
    to: Index,
    /// Lines of 76 characters, or none.
    wrapped: bool,
    at: Index,
    /// Moved so that it is cut, after so many bytes, by the end of a page; the rest is put somewhere else.
    cut: Option<usize>,
}

fn piece() -> impl Strategy<Value = Piece> {
    let place = (
        any::<Index>(),
        any::<Index>(),
        any::<Index>(),
        any::<Index>(),
    );
    let cut = prop_oneof![
        2 => Just(None),
        1 => (0..20_usize).prop_map(Some),
    ];
    (place, any::<Index>(), any::<bool>(), cut).prop_map(
        |((value, form, from, to), at, wrapped, cut)| Piece {
            value,
            form,
            from,
            to,
            wrapped,
            at,
            cut,
        },
    )
}

fn haystack(pages: usize, noise: u8, pieces: &[Piece], values: &[Vec<u8>]) -> Vec<u8> {
    let mut haystack = vec![0; pages * PAGE];
    // Zero pages stay between others.
    for (page, bytes) in haystack.chunks_mut(PAGE).enumerate() {
        if noise >> (page % 8) & 1 != 0 {
            let mut state = u32::from(noise) + 1;
            for byte in bytes {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = state.to_le_bytes()[3];
            }
        }
    }
    for piece in pieces {
        let forms = forms(&values[piece.value.index(values.len())]);
        let form = piece.form.get(&forms);
        let ends = [piece.from, piece.to].map(|end| end.index(form.len() + 1));
        let mut bytes = form[ends[0].min(ends[1])..ends[0].max(ends[1])].to_vec();
        if piece.wrapped {
            bytes = bytes.chunks(76).collect::<Vec<_>>().join(&b'\n');
        }
        let mut put = |at: usize, bytes: &[u8]| {
            let end = haystack.len().min(at + bytes.len());
            haystack[at..end].copy_from_slice(&bytes[..end - at]);
        };
        let at = piece.at.index(pages * PAGE);
        match piece.cut {
            None => put(at, &bytes),
            Some(cut) => {
                let (left, right) = bytes.split_at(cut.min(bytes.len()));
                put(at.next_multiple_of(PAGE).max(PAGE) - left.len(), left);
                put(piece.from.index(pages) * PAGE, right);
            }
        }
    }
    haystack
}

struct Ram(Vec<u8>);

impl Target for Ram {
    type Error = ();

    fn write(&mut self, _: Place, at: u64, bytes: &[u8]) -> Result<(), ()> {
        let range = range(&(at..at + bytes.len() as u64));
        self.0.get_mut(range).ok_or(())?.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, _: Place, at: u64) -> Option<u8> {
        self.0.get(usize::try_from(at).ok()?).copied()
    }
}

fn range(range: &Range<u64>) -> Range<usize> {
    let index = |at: u64| usize::try_from(at).expect("small");
    index(range.start)..index(range.end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn test_search_and_redaction_hold_to_the_definition(
        values in values(),
        pages in 1..5_usize,
        noise in any::<u8>(),
        pieces in prop::collection::vec(piece(), 0..12),
    ) {
        let original = haystack(pages, noise, &pieces, &values);
        let residue = Residue::of(&values);
        let needles = needles(&values);

        let hits = scan(&needles, &original);

        let mut covered = vec![false; original.len()];
        for hit in &hits {
            check(hit, &values, &original);
            covered[hit.start..hit.start + hit.len].fill(true);
        }
        let expected = residue.in_pages(&original);
        let missed = (0..original.len()).find(|at| expected[*at] && !covered[*at]);
        prop_assert_eq!(missed, None, "{:?}", hits);

        let mut builder = PlanBuilder::new(&needles, &KEY, []);
        for hit in &hits {
            builder.add(Place::Ram, 0, &original, hit);
        }
        builder.settle(Place::Ram, 0, &original, Edges::PAGES).expect("few rounds");
        let plan = builder.build().expect("few hits");
        let mut redacted = original.clone();
        for left_out in plan.left_out() {
            redacted[range(&left_out)].fill(0);
        }
        let left = residue.in_pages(&redacted);
        prop_assert_eq!(left.iter().position(|is_residue| *is_residue), None);

        let values: BTreeMap<_, _> = values.iter().enumerate().map(|(number, bytes)| {
            (name(number), SecretValue::copy_of(bytes).expect("a value"))
        }).collect();
        let mut ram = Ram(redacted);
        let done = refill(&plan, &values, Some(&KEY), &mut ram).expect("all in memory");
        prop_assert_eq!(ram.0 == original, true);
        prop_assert!(done.left_zero.is_empty());
    }
}
