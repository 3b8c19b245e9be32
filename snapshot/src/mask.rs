//! A filter for streams of bytes, such as what a workload prints: runs of a needle become [`MASKED`].
//!
//! **What is masked**: every window of 16 bytes of a form that [`Needles::scan`] searches for (a shorter form: all of
//! it), wherever it begins in the form; and values of 4 to 15 bytes that are not searched for, because they have
//! fewer than 8 bytes or fewer than 4 distinct ones, where they occur whole and as they are. Windows that touch or
//! overlap become one [`MASKED`].
//!
//! **What is held back**: until a window is complete, nothing tells it from ordinary output. At the end of what was
//! fed, [`Mask`] keeps the longest tail, of 15 bytes at most, with which a window may begin and that
//!
//! - begins where a form or a value begins: with one byte or more;
//! - or begins a line, as the second line of a wrapped value does: with one byte or more;
//! - or has at least [`HELD_RUN`] bytes.
//!
//! A shorter tail from the middle of a form is not kept: any single letter is one, and would be late. So as long as
//! [`Mask::flush`] is not called, and however the stream is cut:
//!
//! - a value that is printed from the beginning of a form, or of one of its lines, shows none of its windows' bytes;
//! - of another window, at most the first `HELD_RUN - 1` bytes are shown, if what is fed ends behind them;
//! - what is fed at once shows none; apart from these bytes the output is the same for every cut.
//!
//! [`Mask::flush`] is for the end of a stream and for one that is silent, so that a prompt does not wait for the
//! answer to it. It passes on what is held back, but for a tail of at least 8 bytes of a form, which is residue
//! at an edge and becomes [`MASKED`]. What is printed with a pause after each byte shows at most its first 7
//! bytes (of a run with fewer than 4 distinct ones, 15; of a value that is masked only as a whole, all but its last).
//!
//! **What is not masked**: values under 4 bytes; windows with fewer than 4 distinct bytes; runs shorter than a window;
//! and what is no form of a value.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::needles::{EDGE_WINDOW, Needles, WINDOW, is_telling};
use crate::scan::Edges;

/// What is put in the place of a run of a needle.
pub const MASKED: &[u8] = b"***";

/// Bytes of a form that are held back wherever they begin in it.
pub const HELD_RUN: usize = 4;

/// Bytes before a place that decide with it, and behind it: all of a window but one.
const REACH: usize = WINDOW - 1;

/// The filter of one stream. It keeps the last 15 bytes of the stream, and wipes them when it is dropped.
pub struct Mask {
    needles: Arc<Needles>,
    /// The last bytes of the stream, passed on or not, and room for the first ones that follow.
    seam: Zeroizing<[u8; 2 * REACH]>,
    /// How many last bytes.
    known: usize,
    /// How many of them are not passed on.
    held: usize,
    /// Length of the tail they are held back for, which may begin in what was passed on.
    tail: usize,
    /// Whether the last that was passed on is [`MASKED`], which goes on if the next byte is masked.
    hiding: bool,
    /// Bytes that were searched.
    #[cfg(test)]
    searched: usize,
}

impl Mask {
    /// The filter at the beginning of a stream.
    #[must_use]
    pub fn new(needles: Arc<Needles>) -> Self {
        Self {
            needles,
            seam: Zeroizing::new([0; 2 * REACH]),
            known: 0,
            held: 0,
            tail: 0,
            hiding: false,
            #[cfg(test)]
            searched: 0,
        }
    }

    /// Takes the next bytes of the stream; what can be passed on is appended to `output`. Takes time that is linear
    /// in their number.
    pub fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) {
        // Places are counted from the beginning of the seam on; the input begins where the known bytes end.
        let begin = self.known;
        let len = begin + input.len();
        let seam_len = len.min(begin + REACH);
        self.seam[begin..seam_len].copy_from_slice(&input[..seam_len - begin]);

        // Windows that cross the cut are in the seam; the others are in the input.
        let mut found = self.search(&self.seam[..seam_len]);
        if seam_len < len {
            let behind = self.search(input).into_iter();
            found.extend(behind.map(|run| run.start + begin..run.end + begin));
        }
        #[cfg(test)]
        {
            self.searched += seam_len + if seam_len < len { input.len() } else { 0 };
        }
        let found = merged(found);

        let recent = match input.last_chunk::<REACH>() {
            Some(last) => last,
            None => &self.seam[len.saturating_sub(REACH)..len],
        };
        self.tail = self.tail_of(recent);
        let kept = recent.len();

        let from = begin - self.held;
        let mut to = from.max(len - self.tail);
        if let Some(run) = found.iter().find(|run| run.contains(&to)) {
            to = run.end;
        }
        self.pass(input, &found, from..to, output);
        self.held = len - to;

        match input.last_chunk::<REACH>() {
            Some(last) => self.seam[..REACH].copy_from_slice(last),
            None => self.seam.copy_within(len - kept..len, 0),
        }
        self.known = kept;
    }

    /// Whether bytes are held back. If there are, and nothing follows for a short time, [`Self::flush`] is due.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.held > 0
    }

    /// Passes on what is held back, at the end of a stream or when it is silent.
    pub fn flush(&mut self, output: &mut Vec<u8>) {
        let known = &self.seam[..self.known];
        let mut found = self.search(known);
        let tail = self.known - self.tail;
        if self.tail >= EDGE_WINDOW && is_telling(&known[tail..]) {
            found.push(tail..self.known);
        }
        self.pass(
            &[],
            &merged(found),
            self.known - self.held..self.known,
            output,
        );
        self.held = 0;
        self.tail = 0;
    }

    /// What has to be masked in `bytes`, in any order.
    fn search(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let mut found: Vec<_> = self.needles.whole(bytes).collect();
        let search = self.needles.scan(bytes, Edges::None, &mut |hit| {
            // A hit grows over windows that are not telling, but a stream may have passed them on.
            let window = hit.len.min(WINDOW);
            for at in hit.start..=hit.start + hit.len - window {
                if is_telling(&bytes[at..at + window]) {
                    match found.last_mut() {
                        Some(last) if last.contains(&at) => last.end = last.end.max(at + window),
                        _ => found.push(at..at + window),
                    }
                }
            }
            ControlFlow::Continue(())
        });
        debug_assert!(search.is_continue());
        found
    }

    /// Length of the longest tail that may be the beginning of a window.
    fn tail_of(&self, recent: &[u8]) -> usize {
        let may_go_on = |at: &usize| {
            let tail = &recent[*at..];
            // Where nothing comes before it, it begins the stream, or is long enough anyway.
            let begins_line = at
                .checked_sub(1)
                .is_none_or(|before| matches!(recent[before], b'\n' | b'\r'));
            self.needles.has_beginning(tail)
                || ((begins_line || tail.len() >= HELD_RUN) && self.needles.index.has_run(tail))
        };
        let start = (0..recent.len()).find(may_go_on);
        start.map_or(0, |start| recent.len() - start)
    }

    /// Passes on the bytes at `places` of the known ones and the input; `found` is sorted and has gaps.
    fn pass(
        &mut self,
        input: &[u8],
        found: &[Range<usize>],
        places: Range<usize>,
        output: &mut Vec<u8>,
    ) {
        let mut at = places.start;
        for run in found {
            if run.end <= at {
                continue;
            }
            if run.start >= places.end {
                break;
            }
            self.show(input, at..run.start, output);
            if !self.hiding {
                output.extend_from_slice(MASKED);
                self.hiding = true;
            }
            at = run.end;
        }
        self.show(input, at..places.end, output);
    }

    fn show(&mut self, input: &[u8], places: Range<usize>, output: &mut Vec<u8>) {
        if places.is_empty() {
            return;
        }
        self.hiding = false;
        let cut = self.known;
        output.extend_from_slice(&self.seam[places.start.min(cut)..places.end.min(cut)]);
        output.extend_from_slice(
            &input[places.start.saturating_sub(cut)..places.end.saturating_sub(cut)],
        );
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mask")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// The same ranges in order, those that touch or overlap as one.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let one = next.start <= last.end;
        if one {
            last.end = last.end.max(next.end);
        }
        one
    });
    ranges
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
