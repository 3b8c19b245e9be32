//! The progress of a search or a copy: a bar on standard error while that is a terminal, and nothing otherwise.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Bytes that are done of those there are, how many values are searched for, and how often one was found. Can be
/// told of progress by several threads; the bar goes away on drop.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    needles: usize,
    hits: AtomicU64,
}

impl Progress {
    /// A bar for so many bytes, with a word for what is done to them.
    pub fn new(what: &'static str, bytes: u64, needles: usize) -> Self {
        const TEMPLATE: &str =
            "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg}";
        let bar = ProgressBar::new(bytes);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        let progress = Self {
            bar,
            needles,
            hits: AtomicU64::new(0),
        };
        progress.add_hits(0);
        progress
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// So many hits more were found.
    pub fn add_hits(&self, hits: u64) {
        let hits = self.hits.fetch_add(hits, Ordering::Relaxed) + hits;
        let needles = self.needles;
        self.bar.set_message(format!(
            "{needles} {}, {hits} {}",
            if needles == 1 { "needle" } else { "needles" },
            if hits == 1 { "hit" } else { "hits" }
        ));
    }

    /// The bytes that are done, and what stands beside the bar.
    #[cfg(test)]
    pub fn shown(&self) -> (u64, String) {
        (self.bar.position(), self.bar.message())
    }

    /// Does `write`, which may write to the terminal, while the bar is out of the way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_progress_counts_what_threads_tell_it() {
        let progress = Progress::new("searching", 1000, 2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    progress.advance(100);
                    progress.add_hits(1);
                });
            }
        });
        progress.add_hits(0);
        assert_eq!(progress.shown(), (400, "2 needles, 4 hits".to_owned()));
        assert_eq!(progress.aside(|| 7), 7);
    }
}
