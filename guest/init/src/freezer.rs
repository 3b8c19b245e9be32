//! Freezes the sessions for a snapshot and says when they are, without waiting.

use std::time::{Duration, Instant};

use cachot_control::ToHost;

use crate::cgroup::Cgroups;
use crate::link::Interest;

/// How long the sessions may take to be frozen: a process freezes when it leaves the kernel.
const FREEZE_WAIT: Duration = Duration::from_secs(5);

/// How often to look whether they are.
const FREEZE_PAUSE: Duration = Duration::from_millis(5);

enum State {
    Thawed,
    Freezing { deadline: Instant, look: Instant },
    Frozen,
}

/// What is known of the sessions' state.
pub struct Freezer {
    state: State,
}

impl Default for Freezer {
    fn default() -> Self {
        Self {
            state: State::Thawed,
        }
    }
}

impl Freezer {
    /// Begins to freeze the sessions; returns the answer if it is known at once.
    pub fn freeze(&mut self, cgroups: Option<&Cgroups>, now: Instant) -> Option<ToHost> {
        let Some(cgroups) = cgroups else {
            return answer(Some(
                "the guest kernel has no cgroup2: use one that is built with CONFIG_CGROUPS"
                    .to_owned(),
            ));
        };
        if let Err(error) = cgroups.set_frozen(true) {
            return answer(Some(format!(
                "the guest kernel cannot freeze control groups: {error}; use version 5.2 or later"
            )));
        }
        self.state = State::Freezing {
            deadline: now + FREEZE_WAIT,
            look: now,
        };
        self.advance(Some(cgroups), now)
    }

    /// Looks whether the sessions are frozen; returns the answer once it is known.
    pub fn advance(&mut self, cgroups: Option<&Cgroups>, now: Instant) -> Option<ToHost> {
        let (State::Freezing { deadline, look }, Some(cgroups)) = (&mut self.state, cgroups) else {
            return None;
        };
        if now < *look {
            return None;
        }
        let failure = match cgroups.is_frozen() {
            Ok(true) => {
                self.state = State::Frozen;
                return answer(None);
            }
            Ok(false) if now < *deadline => {
                *look = now + FREEZE_PAUSE;
                return None;
            }
            Ok(false) => format!(
                "some process is not frozen after {} s: it waits inside the kernel",
                FREEZE_WAIT.as_secs()
            ),
            Err(error) => format!("cannot see whether the processes are frozen: {error}"),
        };
        self.state = State::Thawed;
        let thawed = cgroups.set_frozen(false);
        let error = thawed
            .err()
            .map(|error| format!("; cannot thaw them either: {error}"));
        answer(Some(failure + &error.unwrap_or_default()))
    }

    /// Lets the sessions go on; returns the answer that is owed to a request to freeze them.
    ///
    /// # Errors
    /// A message that says why they stay frozen.
    pub fn thaw(&mut self, cgroups: Option<&Cgroups>) -> Result<Option<ToHost>, String> {
        let Some(cgroups) = cgroups else {
            return Ok(None);
        };
        cgroups
            .set_frozen(false)
            .map_err(|error| format!("cannot thaw the processes: {error}"))?;
        match std::mem::replace(&mut self.state, State::Thawed) {
            State::Freezing { .. } => Ok(answer(Some("they were told to go on".to_owned()))),
            State::Thawed | State::Frozen => Ok(None),
        }
    }

    /// What wakes it.
    pub fn interest(&self, interest: &mut Interest<'_>) {
        if let State::Freezing { look, .. } = self.state {
            interest.at(look);
        }
    }
}

// Always some: it keeps the callers short.
#[allow(clippy::unnecessary_wraps)]
fn answer(failure: Option<String>) -> Option<ToHost> {
    Some(ToHost::Frozen { failure })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn cgroups(root: &Path) -> Cgroups {
        fs::write(root.join("cgroup.procs"), "").expect("written");
        Cgroups::open(root).expect("opened").expect("there")
    }

    fn failure(answer: Option<ToHost>) -> String {
        match answer {
            Some(ToHost::Frozen { failure }) => failure.unwrap_or_default(),
            other => panic!("{other:?} is no answer"),
        }
    }

    #[test]
    fn test_freeze_without_groups_or_their_freezer_says_what_the_kernel_lacks() {
        let root = tempfile::tempdir().expect("a directory");
        let now = Instant::now();

        assert!(failure(Freezer::default().freeze(None, now)).contains("CONFIG_CGROUPS"));
        let cgroups = cgroups(root.path());
        fs::create_dir(root.path().join("sessions/cgroup.freeze")).expect("in the way");
        let failure = failure(Freezer::default().freeze(Some(&cgroups), now));
        assert!(failure.contains("5.2"), "{failure}");
    }

    #[test]
    fn test_freeze_answers_once_when_the_groups_are_frozen() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroups = cgroups(root.path());
        let events = root.path().join("sessions/cgroup.events");
        fs::write(&events, "frozen 0\n").expect("written");
        let (mut freezer, now) = (Freezer::default(), Instant::now());

        assert_eq!(freezer.freeze(Some(&cgroups), now), None);
        fs::write(&events, "frozen 1\n").expect("written");
        assert_eq!(
            freezer.advance(Some(&cgroups), now),
            None,
            "too early to look"
        );
        let answer = freezer.advance(Some(&cgroups), now + FREEZE_PAUSE);

        assert_eq!(answer, Some(ToHost::Frozen { failure: None }));
        assert_eq!(freezer.advance(Some(&cgroups), now + FREEZE_WAIT), None);
        assert_eq!(freezer.thaw(Some(&cgroups)), Ok(None));
    }

    #[test]
    fn test_freeze_that_takes_too_long_is_undone() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroups = cgroups(root.path());
        fs::write(root.path().join("sessions/cgroup.events"), "frozen 0\n").expect("written");
        let (mut freezer, now) = (Freezer::default(), Instant::now());
        assert_eq!(freezer.freeze(Some(&cgroups), now), None);

        let failure = failure(freezer.advance(Some(&cgroups), now + FREEZE_WAIT));

        assert!(failure.contains("not frozen after 5 s"), "{failure}");
        let wish = fs::read(root.path().join("sessions/cgroup.freeze"));
        assert_eq!(wish.expect("read"), b"0");
    }

    #[test]
    fn test_thaw_meanwhile_answers_the_request_to_freeze() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroups = cgroups(root.path());
        fs::write(root.path().join("sessions/cgroup.events"), "frozen 0\n").expect("written");
        let mut freezer = Freezer::default();
        assert_eq!(freezer.freeze(Some(&cgroups), Instant::now()), None);

        let answer = freezer.thaw(Some(&cgroups)).expect("thawed");

        assert!(failure(answer).contains("told to go on"));
    }
}
