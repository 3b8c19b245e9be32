//! The search of one file after the other, each by several threads.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use cachot_secrets::LockError;
use cachot_snapshot::needles::Needles;
use cachot_snapshot::stream::{StreamHit, StreamSearch};

use super::content::{Content, ContentError};
use crate::progress::Progress;

/// Most hits of one file that are kept; the others are counted.
pub(super) const SHOWN: usize = 100;

/// Most threads of a search: memory is no faster with more.
const MAX_THREADS: usize = 8;

/// What a thread searches at a time, in bytes; a multiple of a page.
const SECTION: u64 = 32 << 20;

/// What was found in one file.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The first [`SHOWN`] hits, by position.
    pub shown: Vec<StreamHit>,
    /// Number of hits.
    pub hits: u64,
    /// Number of hits by value and encoding.
    pub by: BTreeMap<(usize, &'static str), u64>,
    /// Bytes that were searched: all but holes.
    pub bytes: u64,
}

impl Found {
    fn add(&mut self, hit: StreamHit) {
        self.hits += 1;
        *self.by.entry((hit.value, hit.encoding.name())).or_default() += 1;
        // A thread finds them by position.
        if self.shown.len() < SHOWN {
            self.shown.push(hit);
        }
    }

    fn merge(&mut self, other: Self) {
        self.hits += other.hits;
        self.bytes += other.bytes;
        for (key, count) in other.by {
            *self.by.entry(key).or_default() += count;
        }
        self.shown.extend(other.shown);
        self.shown.sort_unstable();
        self.shown.truncate(SHOWN);
    }
}

/// Where content is handed to while it is read.
pub(super) struct Sink<'a, 'n> {
    search: &'a mut StreamSearch<'n>,
    found: &'a mut Found,
    progress: &'a Progress,
    /// What is searched; of its neighbours a little is handed over too.
    section: Range<u64>,
    /// Up to where progress was reported.
    told: u64,
}

impl Sink<'_, '_> {
    /// Takes bytes, as [`StreamSearch::feed`].
    pub fn feed(&mut self, at: u64, bytes: &[u8]) {
        let found = &mut *self.found;
        self.search.feed(at, bytes, &mut |hit| found.add(hit));
        self.took(at, bytes.len());
    }

    /// Takes bytes, as [`StreamSearch::feed_by`].
    pub fn feed_by(
        &mut self,
        at: u64,
        most: u64,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let found = &mut *self.found;
        let len = self
            .search
            .feed_by(at, most, read, &mut |hit| found.add(hit))?;
        self.took(at, len);
        Ok(len)
    }

    fn took(&mut self, at: u64, len: usize) {
        let end = (at + len as u64).clamp(self.section.start, self.section.end);
        let start = at.clamp(self.section.start, end);
        self.found.bytes += end - start;
        self.tell(end);
    }

    fn tell(&mut self, to: u64) {
        if to > self.told {
            self.progress.advance(to - self.told);
            self.told = to;
        }
    }
}

/// Searches files for needles, in locked memory that it has from the beginning.
pub(super) struct Searcher<'n> {
    progress: &'n Progress,
    /// One for each thread.
    searches: Vec<StreamSearch<'n>>,
}

impl<'n> Searcher<'n> {
    /// As many threads as there are CPUs and locked memory for, one at least.
    pub fn new(needles: &'n Needles, progress: &'n Progress) -> Result<Self, LockError> {
        let mut searches = vec![StreamSearch::new(needles)?];
        let threads = thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        while searches.len() < threads
            && let Ok(search) = StreamSearch::new(needles)
        {
            searches.push(search);
        }
        Ok(Self { progress, searches })
    }

    /// Searches all of `content`; what was found also if it could not be read to its end.
    pub fn search(&mut self, content: &impl Content) -> (Found, Result<(), ContentError>) {
        let work = Work {
            content,
            progress: self.progress,
            sections: match content.has_ranges() {
                true => content.len().div_ceil(SECTION).max(1),
                false => 1,
            },
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        let threads = usize::try_from(work.sections).unwrap_or(usize::MAX);
        let (first, others) = self
            .searches
            .split_first_mut()
            .expect("there is one at least");
        let work = &work;
        thread::scope(|scope| {
            let others: Vec<_> = others
                .iter_mut()
                .take(threads - 1)
                .map(|search| scope.spawn(|| work.run(search)))
                .collect();
            let (mut found, mut result) = work.run(first);
            for other in others {
                let (more, ended) = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                found.merge(more);
                result = result.and(ended);
            }
            (found, result)
        })
    }
}

/// What the threads share.
struct Work<'a, C> {
    content: &'a C,
    progress: &'a Progress,
    sections: u64,
    next: AtomicU64,
    stop: AtomicBool,
}

impl<C: Content> Work<'_, C> {
    /// Takes section after section.
    fn run(&self, search: &mut StreamSearch<'_>) -> (Found, Result<(), ContentError>) {
        let mut found = Found::default();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.sections {
                break;
            }
            let before = found.hits;
            let result = match self.skip(number) {
                Ok(true) => continue,
                Ok(false) => self.section(number, search, &mut found),
                Err(error) => Err(error.into()),
            };
            self.progress.add_hits(found.hits - before);
            if result.is_err() {
                self.stop.store(true, Ordering::Relaxed);
                return (found, result);
            }
        }
        (found, Ok(()))
    }

    /// Passes over this section and those behind it that are holes, so that a file of any length is searched in a
    /// time that its data takes; whether there was nothing to search in this one.
    fn skip(&self, number: u64) -> io::Result<bool> {
        let data = self.content.next_data(number * SECTION)?;
        // What begins in a section with zeros ends in the next one at the latest: forms are shorter.
        let reached = (data / SECTION).saturating_sub(1);
        if reached <= number {
            return Ok(false);
        }
        let next = self.next.fetch_max(reached, Ordering::Relaxed);
        let skipped = 1 + reached.saturating_sub(next);
        self.progress.advance(skipped * SECTION);
        Ok(true)
    }

    fn section(
        &self,
        number: u64,
        search: &mut StreamSearch<'_>,
        found: &mut Found,
    ) -> Result<(), ContentError> {
        let start = number * SECTION;
        let section = match number + 1 < self.sections {
            true => start..start + SECTION,
            false => start..u64::MAX,
        };
        let needed = search.begin(section.clone());
        let end_of_section = section.end.min(self.content.len());
        let mut sink = Sink {
            search,
            found,
            progress: self.progress,
            section,
            told: start,
        };
        let read = self.content.read(needed, &mut sink);
        sink.tell(end_of_section);
        let Sink { search, found, .. } = sink;
        // What was read before an error is searched as well.
        let end = read.as_ref().map_or(0, |end| *end);
        search.finish(end, &mut |hit| found.add(hit));
        read.map(|_| ())
    }
}
