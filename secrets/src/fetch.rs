//! Many values at once: a thread for each that may take time, so that one that hangs keeps no other waiting.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::schemes::{Fetched, ResolveError, Scheme};

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

type Answer = Result<Fetched, ResolveError>;

/// Fetches all and calls `done` once for each, as they come.
///
/// When this returns every thread has ended but those whose scheme did not answer in time: they are left to
/// themselves, and what they fetch is wiped.
pub(crate) fn fetch_all(fetches: Vec<Fetch>, mut done: impl FnMut(usize, Answer)) {
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
        sender: Sender<(usize, Answer)>,
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
fn resolve(scheme: &dyn Scheme, locator: &str) -> Answer {
    // Nothing of the scheme is looked at after a panic but what it shows to all threads anyway.
    catch_unwind(AssertUnwindSafe(|| scheme.resolve(locator)))
        .unwrap_or_else(|_| Err(ResolveError::Panicked(scheme.name())))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::locked::tests::one_at_a_time;
    use crate::schemes::Schemes;
    use crate::{Declarations, SecretError, SecretValue};

    /// How long a scheme of these tests may take.
    const LIMIT: Duration = Duration::from_millis(200);

    fn value(text: &str) -> Fetched {
        SecretValue::copy_of(text.as_bytes())
            .expect("a value")
            .into()
    }

    /// `odd:KIND-N` fares as its kind says; its value is its locator.
    #[derive(Default)]
    struct Odd {
        running: AtomicUsize,
        most: AtomicUsize,
    }

    impl Scheme for Arc<Odd> {
        fn name(&self) -> &'static str {
            "odd"
        }

        fn is_plaintext(&self) -> bool {
            false
        }

        fn time_limit(&self) -> Option<Duration> {
            Some(LIMIT)
        }

        fn resolve(&self, locator: &str) -> Answer {
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            let result = match locator.split('-').next() {
                Some("slow") => {
                    thread::sleep(Duration::from_millis(20));
                    Ok(())
                }
                Some("hang") => {
                    thread::sleep(Duration::from_secs(600));
                    Ok(())
                }
                Some("fail") => Err(ResolveError::NoVariable(locator.to_owned())),
                // Without the message of a panic.
                Some("panic") => {
                    self.running.fetch_sub(1, Ordering::SeqCst);
                    std::panic::resume_unwind(Box::new(()))
                }
                _ => Ok(()),
            };
            self.running.fetch_sub(1, Ordering::SeqCst);
            result.map(|()| value(locator))
        }
    }

    /// `here:` is fetched on the thread that asks, or says that it is not.
    struct Here(thread::ThreadId);

    impl Scheme for Here {
        fn name(&self) -> &'static str {
            "here"
        }

        fn is_plaintext(&self) -> bool {
            false
        }

        fn time_limit(&self) -> Option<Duration> {
            None
        }

        fn resolve(&self, locator: &str) -> Answer {
            if thread::current().id() == self.0 {
                Ok(value(locator))
            } else {
                Err(ResolveError::NoVariable(locator.to_owned()))
            }
        }
    }

    fn schemes() -> (Schemes, Arc<Odd>) {
        let odd = Arc::new(Odd::default());
        let here = Here(thread::current().id());
        (Schemes::default().with(Arc::clone(&odd)).with(here), odd)
    }

    fn kinds(most: usize) -> impl Strategy<Value = Vec<&'static str>> {
        let kind = prop_oneof![
            4 => Just("odd:quick"),
            3 => Just("odd:slow"),
            2 => Just("odd:fail"),
            1 => Just("odd:panic"),
            2 => Just("here:x"),
            2 => Just("file:/cachot/none"),
            1 => Just("unknown:x"),
        ];
        proptest::collection::vec(kind, 0..most)
    }

    /// What a declaration of this kind comes to: its value or a part of its error.
    fn expected(kind: &str, at: usize) -> Result<String, &'static str> {
        match kind {
            "odd:quick" | "odd:slow" => Ok(format!("{}-{at}", &kind[4..])),
            "here:x" => Ok(format!("x-{at}")),
            "odd:fail" => Err("is not set"),
            "odd:panic" => Err("odd: failed where it must not"),
            "file:/cachot/none" => Err("there is no file"),
            "odd:hang" => Err("odd: did not answer within"),
            _ => Err("there is no secret scheme"),
        }
    }

    /// Resolves references of these kinds, and compares with what each comes to by itself.
    fn check(kinds: &[&str]) {
        let (schemes, odd) = schemes();
        let declarations = Declarations::parse(
            kinds
                .iter()
                .enumerate()
                .map(|(at, kind)| format!("S{at}={kind}-{at}")),
        );
        let expected: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(at, kind)| expected(kind, at))
            .collect();

        match declarations.resolve(&schemes) {
            Ok(resolved) => {
                let values: Vec<_> = resolved
                    .iter()
                    .map(|secret| Ok(String::from_utf8_lossy(secret.value.expose()).into_owned()))
                    .collect();
                assert_eq!(values, expected);
            }
            Err(failures) => {
                let expected: Vec<_> = expected
                    .iter()
                    .enumerate()
                    .filter_map(|(at, one)| Some((at, one.as_ref().err()?)))
                    .collect();
                assert_eq!(failures.iter().count(), expected.len());
                for (failure, (at, part)) in failures.iter().zip(expected) {
                    assert_eq!(failure.subject.to_string(), format!("S{at}"));
                    assert!(failure.to_string().contains(part), "{failure}");
                }
            }
        }
        assert!(odd.most.load(Ordering::SeqCst) <= MAX_AT_ONCE);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn test_fetch_order_and_failures_are_those_of_one_after_the_other(kinds in kinds(80)) {
            let _turn = one_at_a_time();
            check(&kinds);
        }
    }

    #[test]
    fn test_fetch_many_at_once_but_not_all() {
        let _turn = one_at_a_time();
        let (schemes, odd) = schemes();
        let many = (0..100).map(|at| format!("S{at}=odd:slow-{at}"));
        let since = Instant::now();

        let resolved = Declarations::parse(many).resolve(&schemes);

        assert_eq!(resolved.expect("all values").len(), 100);
        assert!(since.elapsed() < Duration::from_millis(100 * 20));
        assert_eq!(odd.most.load(Ordering::SeqCst), MAX_AT_ONCE);
    }

    #[test]
    fn test_fetch_those_that_hang_are_given_up_and_keep_no_other() {
        let _turn = one_at_a_time();
        // More than there are at once, in front of the others.
        let mut kinds = vec!["odd:hang"; MAX_AT_ONCE + 2];
        kinds.extend(["odd:quick", "odd:fail", "here:x", "odd:panic", "odd:hang"]);
        let (schemes, _) = schemes();
        let declared = kinds
            .iter()
            .enumerate()
            .map(|(at, kind)| format!("S{at}={kind}-{at}"));
        let since = Instant::now();

        let failures = Declarations::parse(declared)
            .resolve(&schemes)
            .expect_err("some hang");

        assert!(since.elapsed() < 2 * (LIMIT + GRACE) + Duration::from_secs(2));
        let hung = failures.iter().filter(|failure| {
            matches!(
                failure.error,
                SecretError::Resolve(ResolveError::TimedOut { scheme: "odd", .. })
            )
        });
        assert_eq!(hung.count(), MAX_AT_ONCE + 3);
        assert_eq!(failures.iter().count(), MAX_AT_ONCE + 5);
    }

    #[test]
    fn test_fetch_of_references_gives_each_its_result() {
        let _turn = one_at_a_time();
        let (schemes, _) = schemes();
        let references = ["odd:slow-1", "nope:x", "here:x-2", "odd:fail-3"]
            .map(|text| text.parse().expect("a reference"));

        let results = schemes.resolve_all(&references);

        let values: Vec<_> = results
            .iter()
            .map(|result| Some(result.as_ref().ok()?.value.expose()))
            .collect();
        assert_eq!(values, [Some(&b"slow-1"[..]), None, Some(b"x-2"), None]);
        assert!(matches!(results[3], Err(ResolveError::NoVariable(_))));
    }
}
