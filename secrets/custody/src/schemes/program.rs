//! Programs that print a value: started without a shell, in a process group of their own, read straight into
//! locked memory, and killed when they take too long.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cachot_secrets::{ResolveError, SecretValue, ValueError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use zeroize::Zeroizing;

use super::exec::HELPER_VARIABLE;
use super::{Environment, of_value};
use crate::group::Group;

/// The variables that a program gets: where it and its settings are, who the user is, how to reach the user's
/// agents, and the language of messages. None of them is where people keep values.
const PASSED_ON: [&str; 21] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "TZ",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "PASSWORD_STORE_DIR",
    "SSH_AUTH_SOCK",
];

/// Most bytes of a program's standard error that are kept to explain a failure.
const MAX_SAID_LEN: usize = 4096;

/// Most characters of it that are shown.
const MAX_SHOWN_CHARS: usize = 500;

/// Shortest run of a value's bytes that is masked in what is shown, in bytes; all of a value that is shorter.
const MIN_MASKED_LEN: usize = 8;

/// Why a program gave no value.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The words cannot be told apart.
    #[error(
        "exec: the reference is not a program and its arguments: close every quote, and end with no backslash"
    )]
    Words,
    /// The program is looked for nowhere.
    #[error(
        "exec: the program has no absolute path: write exec:/path/to/program and its arguments"
    )]
    RelativeProgram,
    /// No helper is configured.
    #[error("helper: no program is configured: set {HELPER_VARIABLE} to its absolute path")]
    NoHelper,
    /// The helper's path is not absolute.
    #[error("helper: {HELPER_VARIABLE} is {0:?}, which is not an absolute path")]
    RelativeHelper(PathBuf),
    /// It could not be started.
    #[error("cannot start {program:?}: check its path and mode")]
    Start {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not succeed.
    #[error("{program:?} {ending}{}{said}", if .said.is_empty() { ", and said nothing" } else { ": " })]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        ending: String,
        /// The beginning of what it wrote to its standard error, on one line, without the value.
        said: String,
    },
    /// It runs, and a system call on it failed.
    #[error("cannot {action} {program:?}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<ExecError> for ResolveError {
    fn from(error: ExecError) -> Self {
        Self::Scheme(Box::new(error))
    }
}

/// A program to run.
pub(super) struct Program<'a> {
    /// Name of the scheme.
    pub scheme: &'static str,
    /// Absolute.
    pub path: &'a Path,
    pub environment: &'a Environment,
    pub limit: Duration,
}

impl Program<'_> {
    /// What it prints when it is called with these arguments, less one line feed at the end.
    pub fn value<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<SecretValue, ResolveError> {
        let deadline = Instant::now() + self.limit;
        let mut group = self.start(arguments)?;
        let mut output = Output::of(group.child(), deadline);
        let value = SecretValue::read_line_from(&mut output);
        let value = match value {
            Err(ValueError::Read(_)) if output.watch.is_over => return Err(self.timed_out()),
            Err(error @ (ValueError::TooLong | ValueError::Lock(_) | ValueError::Read(_))) => {
                return Err(self.no_value(error));
            }
            other => other,
        };
        match output.watch.wait_for_end(group.child()) {
            Err(_) if output.watch.is_over => return Err(self.timed_out()),
            other => other.map_err(self.system("wait for"))?,
        }
        let status = group.end().map_err(self.system("wait for"))?;
        if !status.success() {
            let printed = value.as_ref().map_or(&[][..], SecretValue::expose);
            return Err(ResolveError::from(ExecError::Failed {
                program: self.path.to_owned(),
                ending: ending(status),
                said: output.watch.said.shown(printed),
            }));
        }
        value.map_err(|error| self.no_value(error))
    }

    fn start<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Group, ExecError> {
        let mut command = Command::new(self.path);
        command
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in PASSED_ON {
            if let Some(value) = self.environment.get(name) {
                command.env(name, value);
            }
        }
        Group::start(&mut command).map_err(|source| ExecError::Start {
            program: self.path.to_owned(),
            source,
        })
    }

    fn no_value(&self, error: ValueError) -> ResolveError {
        let place = format!("what {:?} prints", self.path);
        of_value(place, error, self.system("read what is printed by"))
    }

    fn system(&self, action: &'static str) -> impl FnOnce(io::Error) -> ExecError {
        let program = self.path.to_owned();
        move |source| ExecError::System {
            action,
            program,
            source,
        }
    }

    fn timed_out(&self) -> ResolveError {
        ResolveError::TimedOut {
            scheme: self.scheme,
            limit: self.limit,
        }
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// What a program prints, until a deadline.
struct Output {
    stdout: ChildStdout,
    watch: Watch,
}

impl Output {
    fn of(child: &mut Child, deadline: Instant) -> Self {
        Self {
            stdout: child.stdout.take().expect("it is a pipe"),
            watch: Watch {
                stderr: child.stderr.take(),
                said: Said::default(),
                deadline,
                is_over: false,
            },
        }
    }
}

impl Read for Output {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.watch.wait_for(self.stdout.as_fd())?;
        self.stdout.read(into)
    }
}

/// Waiting for a program: until a deadline, while what it writes to its standard error is taken away.
struct Watch {
    stderr: Option<ChildStderr>,
    said: Said,
    deadline: Instant,
    /// Whether the deadline has passed.
    is_over: bool,
}

impl Watch {
    /// Waits until a descriptor is readable.
    fn wait_for(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut polled = vec![PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
            if let Some(stderr) = &self.stderr {
                polled.push(PollFd::new(stderr, PollFlags::IN));
            }
            let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&left)))?;
            let is_ready = |one: &PollFd<'_>| !one.revents().is_empty();
            let wanted = is_ready(&polled[0]);
            let has_said = polled.get(1).is_some_and(is_ready);
            drop(polled);
            if let Some(stderr) = &mut self.stderr
                && has_said
                && !self.said.read_from(stderr)?
            {
                self.stderr = None;
            }
            if wanted {
                return Ok(());
            }
            // One that says something all the time does not get more of it.
            if ready == 0 || Instant::now() >= self.deadline {
                self.is_over = true;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Waits until the program has ended.
    fn wait_for_end(&mut self, child: &Child) -> io::Result<()> {
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        self.wait_for(process.as_fd())
    }
}

/// The beginning of what a program writes to its standard error. It may hold the value.
#[derive(Default)]
struct Said {
    bytes: Zeroizing<Vec<u8>>,
    is_cut: bool,
}

impl Said {
    /// Takes what is there; whether more can come.
    fn read_from(&mut self, stderr: &mut ChildStderr) -> io::Result<bool> {
        let mut part = Zeroizing::new([0; MAX_SAID_LEN]);
        let len = stderr.read(&mut *part)?;
        // All that there can be, so that it never moves and leaves a copy.
        let room = MAX_SAID_LEN - self.bytes.len();
        self.bytes.reserve_exact(room);
        let kept = len.min(room);
        self.bytes.extend_from_slice(&part[..kept]);
        self.is_cut |= kept < len;
        Ok(len > 0)
    }

    /// It on one line, with `***` for every part of `value`.
    fn without(&self, value: &[u8]) -> String {
        let masked = masked(&self.bytes, value, self.is_cut);
        let text = String::from_utf8_lossy(&masked);
        let words: Vec<_> = text
            .split(|letter: char| letter.is_whitespace() || letter.is_control())
            .filter(|word| !word.is_empty())
            .collect();
        words.join(" ")
    }

    /// The beginning of that.
    fn shown(&self, value: &[u8]) -> String {
        let line = self.without(value);
        match line.char_indices().nth(MAX_SHOWN_CHARS) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line,
        }
    }
}

/// `text` with `***` for every run of at least [`MIN_MASKED_LEN`] bytes that is in `value` too, or of all of a
/// shorter value. Of a text that is cut its end is left out, as it may be a part of the value too short to be known.
fn masked(text: &[u8], value: &[u8], is_cut: bool) -> Zeroizing<Vec<u8>> {
    let window = value.len().min(MIN_MASKED_LEN);
    let mut is_hidden = vec![false; text.len()];
    if window > 0 {
        let mut places: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (at, part) in text.windows(window).enumerate() {
            places.entry(part).or_default().push(at);
        }
        for part in value.windows(window) {
            for at in places.remove(part).unwrap_or_default() {
                is_hidden[at..at + window].fill(true);
            }
        }
    }
    let dropped = if is_cut { MIN_MASKED_LEN - 1 } else { 0 };
    // Three bytes for one at most.
    let mut masked = Zeroizing::new(Vec::with_capacity(3 * text.len()));
    for (at, byte) in text[..text.len().saturating_sub(dropped)]
        .iter()
        .enumerate()
    {
        if !is_hidden[at] {
            masked.push(*byte);
        } else if at == 0 || !is_hidden[at - 1] {
            masked.extend_from_slice(b"***");
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Which bytes of `text` belong to a run that is in `value`, found by trying all.
    fn hidden(text: &[u8], value: &[u8]) -> Vec<bool> {
        let shortest = value.len().clamp(1, MIN_MASKED_LEN);
        let mut hidden = vec![false; text.len()];
        for start in 0..text.len() {
            for end in start + shortest..=text.len() {
                let run = &text[start..end];
                if value.windows(run.len()).any(|part| part == run) {
                    hidden[start..end].fill(true);
                }
            }
        }
        hidden
    }

    proptest! {
        #[test]
        fn test_masked_hides_every_run_of_the_value_and_nothing_else(
            value in proptest::collection::vec(b'a'..b'd', 0..24),
            text in proptest::collection::vec(b'a'..b'd', 0..40),
            at in any::<prop::sample::Index>(),
        ) {
            let mut text = text;
            let at = at.index(text.len() + 1);
            text.splice(at..at, value.iter().copied());
            let mut expected = vec![];
            let hidden = hidden(&text, &value);
            for (at, byte) in text.iter().enumerate() {
                match hidden[at] {
                    false => expected.push(*byte),
                    true if at == 0 || !hidden[at - 1] => expected.extend(b"***"),
                    true => {}
                }
            }
            prop_assert_eq!(&**masked(&text, &value, false), &expected);
        }

        #[test]
        fn test_shown_is_one_short_line(bytes in any::<Vec<u8>>(), is_cut in any::<bool>()) {
            let said = Said { bytes: Zeroizing::new(bytes), is_cut };
            let shown = said.shown(b"");
            prop_assert!(!shown.contains(char::is_control));
            prop_assert!(shown.chars().count() <= MAX_SHOWN_CHARS + 3);
        }
    }

    #[test]
    fn test_shown_has_no_part_of_a_value_that_is_cut() {
        let value = b"0123456789abcdef";
        for len in 0..value.len() {
            let mut bytes = vec![b'x'; MAX_SAID_LEN - len];
            bytes.extend(&value[..len]);
            let said = Said {
                bytes: Zeroizing::new(bytes),
                is_cut: true,
            };
            let masked = said.without(value);
            assert!(!masked.contains('0'), "{len}");
        }
    }
}
