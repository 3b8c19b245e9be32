//! Many values at once: a thread for each that may take time, so that one that hangs keeps no other waiting.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::schemes::{ResolveError, Scheme};
use crate::value::SecretValue;

/// Most values that are fetched at once: enough to hide the way to a server, few enough for it and for the
/// memory that may be locked.
const MAX_AT_ONCE: usize = 16;

/// How much longer than its limit a scheme is waited for: one that keeps its limit itself says more of why.
const GRACE: Duration = Duration::from_secs(1);

/// A value to fetch.
pub(crate) struct Fetch {
    /// What the caller knows it by.
    at: usize,
    scheme: Arc<dyn Scheme>,
    locator: String,
}

impl Fetch {
    pub(crate) fn new(at: usize, scheme: &Arc<dyn Scheme>, locator: &str) -> Self {
        Self {
            at,
            scheme: Arc::clone(scheme),
            locator: locator.to_owned(),
        }
    }
}

type Fetched = Result<SecretValue, ResolveError>;

/// Fetches all and calls `done` once for each, as they come.
///
/// When this returns every thread has ended but those whose scheme did not answer in time: they are left to
/// themselves, and what they fetch is wiped.
pub(crate) fn fetch_all(fetches: Vec<Fetch>, mut done: impl FnMut(usize, Fetched)) {
    let mut waiting = VecDeque::new();
    for fetch in fetches {
        match fetch.scheme.time_limit() {
            None => done(fetch.at, resolve(&*fetch.scheme, &fetch.locator)),
            Some(limit) => waiting.push_back((fetch, limit)),
        }
    }
    let (sender, receiver) = channel();
    let mut running: Vec<Running> = vec![];
    loop {
        while running.len() < MAX_AT_ONCE
            && let Some((fetch, limit)) = waiting.pop_front()
        {
            let at = fetch.at;
            match Running::start(fetch, limit, sender.clone()) {
                Ok(thread) => running.push(thread),
                Err(error) => done(at, Err(error)),
            }
        }
        let Some(deadline) = running.iter().map(|thread| thread.deadline).min() else {
            return;
        };
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((at, fetched)) => {
                // One that was given up may answer after all: `done` was called for it.
                if let Some(place) = running.iter().position(|thread| thread.at == at) {
                    running.swap_remove(place).join();
                    done(at, fetched);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                let late: Vec<_> = running
                    .extract_if(.., |thread| thread.deadline <= now)
                    .collect();
                for thread in late {
                    done(thread.at, Err(thread.timed_out()));
                }
            }
            Err(RecvTimeoutError::Disconnected) => unreachable!("this function has a sender"),
        }
    }
}

/// A value that is being fetched.
struct Running {
    at: usize,
    scheme: &'static str,
    limit: Duration,
    deadline: Instant,
    thread: JoinHandle<()>,
}

impl Running {
    fn start(
        fetch: Fetch,
        limit: Duration,
        sender: Sender<(usize, Fetched)>,
    ) -> Result<Self, ResolveError> {
        let (at, scheme) = (fetch.at, fetch.scheme.name());
        let work = move || {
            let fetched = resolve(&*fetch.scheme, &fetch.locator);
            // Whoever has given this up does not listen any more.
            sender.send((fetch.at, fetched)).ok();
        };
        let thread = thread::Builder::new()
            .name(format!("fetch-{scheme}"))
            .spawn(work)
            .map_err(ResolveError::Thread)?;
        Ok(Self {
            at,
            scheme,
            limit,
            deadline: Instant::now() + limit + GRACE,
            thread,
        })
    }

    /// Waits for the end of a thread that has sent its result: it has nothing more to do.
    fn join(self) {
        self.thread.join().expect("the thread catches every panic");
    }

    fn timed_out(&self) -> ResolveError {
        ResolveError::TimedOut {
            scheme: self.scheme,
            limit: self.limit,
        }
    }
}

/// What the scheme says, be it by a panic.
fn resolve(scheme: &dyn Scheme, locator: &str) -> Fetched {
    // Nothing of the scheme is looked at after a panic but what it shows to all threads anyway.
    catch_unwind(AssertUnwindSafe(|| scheme.resolve(locator)))
        .unwrap_or_else(|_| Err(ResolveError::Panicked(scheme.name())))
}
