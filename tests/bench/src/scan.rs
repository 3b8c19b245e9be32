//! The search for residue beside `memcpy`: rates on one core, of RAM that is in no cache.
//!
//! Every round copies all of a text and then searches it, so that both see the same machine; ratios are of rounds.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::ensure;
use cachot_secrets::SecretValue;
use cachot_snapshot::needles::{Needles, Value};
use cachot_snapshot::scan::Edges;

use crate::stats::Samples;

const PAGE: usize = 4096;

/// Bytes of a value.
const VALUE_LEN: usize = 40;

/// Bytes that a page of adversarial text repeats before another needle's turn.
const PREFIX_LEN: usize = 64;

/// How fast a search has to be at least, as a share of `memcpy`'s rate.
fn target(values: usize, text: Text) -> f64 {
    match (values, text) {
        (_, Text::Zero) => 1.0,
        (_, Text::Guest) if values <= 64 => 1.0 / 3.0,
        (_, Text::Guest) => 1.0 / 6.0,
        _ => 1.0 / 20.0,
    }
}

/// What is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// A quarter each of zero pages, prose, pointers and random bytes.
    Guest,
    /// Zero pages only.
    Zero,
    /// Nothing but the first 8 to 15 bytes of needles: everything passes the filter, nothing is residue.
    Fragments,
    /// The common beginning of all needles, again and again, with other bytes behind it.
    Prefixes,
    /// One whole needle again and again.
    OneNeedle,
    /// All needles, again and again.
    AllNeedles,
}

impl Text {
    const ALL: [Self; 6] = [
        Self::Guest,
        Self::Zero,
        Self::Fragments,
        Self::Prefixes,
        Self::OneNeedle,
        Self::AllNeedles,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest-like",
            Self::Zero => "all zero",
            Self::Fragments => "adversarial: fragments of 8 to 15 bytes",
            Self::Prefixes => "adversarial: the beginning of all needles",
            Self::OneNeedle => "adversarial: one needle everywhere",
            Self::AllNeedles => "adversarial: all needles everywhere",
        }
    }

    /// Values have a common beginning where that is what makes the text hard.
    fn prefix_len(self) -> usize {
        match self {
            Self::Prefixes => PREFIX_LEN,
            _ => 0,
        }
    }

    fn generate(self, values: &[Vec<u8>], len: usize, random: &mut Random) -> Vec<u8> {
        let mut text = Vec::with_capacity(len + PAGE);
        let mut turn = 0;
        while text.len() < len {
            let value = &values[turn % values.len()];
            match self {
                Self::Guest => guest_page(&mut text, random),
                Self::Zero => text.resize(text.len() + PAGE, 0),
                Self::Fragments => {
                    text.extend_from_slice(&value[..8 + turn / values.len() % 8]);
                }
                Self::Prefixes => {
                    text.extend_from_slice(&value[..PREFIX_LEN]);
                    text.push(random.byte());
                }
                Self::OneNeedle => text.extend_from_slice(&values[0]),
                Self::AllNeedles => text.extend_from_slice(value),
            }
            turn += 1;
        }
        text.truncate(len);
        text
    }
}

/// Prints the rates for each number of values and each text.
///
/// # Errors
/// Where a needle that is in the text is not found, or one that is not in it is.
pub fn bench(mib: usize, rounds: usize) -> anyhow::Result<()> {
    let len = mib << 20;
    let mut copy = vec![1_u8; len];
    println!(
        "search for residue of values of {VALUE_LEN} bytes in all encodings, {mib} MiB, one core; \
         rates in GB/s, ratios to memcpy of the same round:"
    );
    for count in [64, 1000] {
        for text in Text::ALL {
            let mut random = Random(0x0123_4567_89ab_cdef);
            let values = values(count, text.prefix_len(), &mut random);
            let haystack = text.generate(&values, len, &mut random);
            let needles = needles(&values)?;
            let (mut copying, mut searching) = (Samples::default(), Samples::default());
            let mut hits = 0_u64;
            // The first round faults pages in and is not counted.
            for round in 0..=rounds {
                let start = Instant::now();
                copy.copy_from_slice(black_box(&haystack));
                black_box(&copy);
                let copied = start.elapsed();
                let start = Instant::now();
                hits = count_hits(&needles, &haystack);
                let searched = start.elapsed();
                if round > 0 {
                    copying.push(copied);
                    searching.push(searched);
                }
            }
            let none = matches!(text, Text::Guest | Text::Zero);
            ensure!(
                none == (hits == 0) || text == Text::Fragments,
                "{text:?}: {hits} hits"
            );
            let rates = |times: &Samples| {
                #[expect(clippy::cast_precision_loss, reason = "under 2^53")]
                let bytes = len as f64;
                Samples(times.0.iter().map(|ms| bytes / ms / 1e6).collect())
            };
            let ratio = copying.ratios(&searching);
            println!("  {count} values, {}: {hits} hits", text.name());
            println!("    memcpy {}", rates(&copying));
            println!("    search {}", rates(&searching));
            println!(
                "    ratio median {:.3}, worst {:.3}; wanted {:.3}",
                ratio.median(),
                ratio.quantile(0.01),
                target(count, text)
            );
        }
    }
    Ok(())
}

fn count_hits(needles: &Needles, haystack: &[u8]) -> u64 {
    let mut hits = 0;
    let searched = needles.scan(haystack, Edges::PAGES, &mut |hit| {
        black_box(hit);
        hits += 1;
        ControlFlow::Continue(())
    });
    assert!(searched.is_continue(), "nobody ends it");
    hits
}

fn needles(values: &[Vec<u8>]) -> anyhow::Result<Needles> {
    let values = values.iter().map(|bytes| {
        Ok(Value {
            name: "BENCH".parse()?,
            version: 1,
            bytes: SecretValue::copy_of(bytes)?,
        })
    });
    Ok(Needles::new(values.collect::<anyhow::Result<_>>()?)?)
}

/// Values as tokens are: letters and digits, a sign here and there.
pub fn values(count: usize, prefix_len: usize, random: &mut Random) -> Vec<Vec<u8>> {
    const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| SIGNS[usize::from(random.byte()) % SIGNS.len()])
            .collect()
    };
    let prefix = text(prefix_len);
    (0..count)
        .map(|_| [prefix.clone(), text(VALUE_LEN)].concat())
        .collect()
}

/// Appends a page such as a guest may have.
pub fn guest_page(text: &mut Vec<u8>, random: &mut Random) {
    const WORDS: [&str; 16] = [
        "the ",
        "return ",
        "struct ",
        "0x",
        "null",
        ", ",
        "value",
        "\n    ",
        "of ",
        "error: ",
        "(self) ",
        "==",
        "https://",
        "name=",
        "\"id\": ",
        "1970-01-01 ",
    ];
    let end = text.len() + PAGE;
    match random.byte() % 4 {
        0 => {}
        1 => {
            while text.len() < end {
                let word = WORDS[usize::from(random.byte()) % WORDS.len()];
                text.extend_from_slice(word.as_bytes());
            }
            text.truncate(end);
        }
        2 => {
            while text.len() < end {
                let pointer = 0xffff_8880_0000_0000 | (random.next() >> 36 << 4);
                let word = if random.byte() < 96 { 0 } else { pointer };
                text.extend_from_slice(&word.to_le_bytes());
            }
        }
        _ => {
            while text.len() < end {
                text.extend_from_slice(&random.next().to_le_bytes());
            }
        }
    }
    text.resize(end, 0);
}

/// Xorshift: the same bytes in every run.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}
