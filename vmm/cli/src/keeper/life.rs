//! The life of a VM and of its workload: what to do about each thing that happens, without any input or output.

use std::time::{Duration, Instant};

use cachot_control::{FrameError, Renewal, Start, ToGuest, ToHost, VERSION, WindowSize};
use cachot_vmm::protocol::StopReason;
use libc::{SIGINT, SIGKILL, SIGPIPE, SIGTERM};

/// How long a guest may take from its start to the start of the command; generous, for hosts that emulate.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// How long a command may take to end after the SIGTERM of a timeout.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long output of a command with a time limit may wait to be read after the command has ended. An honest guest
/// has sent all of it by then; another one could send for ever.
const READING_PATIENCE: Duration = Duration::from_secs(60);

/// How long the guest may take to close its connections when the command has ended, or to end itself
/// once its control connection is gone.
pub const CLOSING_PATIENCE: Duration = Duration::from_secs(5);

/// Two interrupts within this time end the VM.
pub const DOUBLE_INTERRUPT: Duration = Duration::from_secs(2);

/// Exit code of `--timeout`, as of timeout(1).
const TIMED_OUT: u8 = 124;

/// What to do next.
#[derive(Debug)]
pub enum Action {
    /// Tell the guest.
    Send(Box<ToGuest>),
    /// The command runs: the user's terminal is its from now on.
    Started,
    /// The session is over.
    End(Ending),
}

/// How a session ended.
#[derive(Debug)]
pub struct Ending {
    /// What to report.
    pub result: Result<u8, SessionError>,
    /// Whether the guest is about to power itself off; otherwise the VM is to be killed.
    pub orderly: bool,
}

/// Why there is no exit code of the command.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The guest's init could not start the command; `code` is 125 to 127.
    #[error("{message}")]
    NotStarted {
        /// Exit code.
        code: u8,
        /// What the guest says.
        message: String,
    },
    /// A copy that could not become a guest of its own.
    #[error("the guest shares with other copies what it must not: {0}")]
    NotRenewed(String),
    /// An image without its workload.
    #[error(
        "the image was made before its command had started, and does not say which one: a secret's value was among \
         its arguments or variables. Take the snapshot once the command runs"
    )]
    Withheld,
    /// No command within [`BOOT_PATIENCE`].
    #[error(
        "the guest has not started the command within {} s: check that its initial RAM disk has cachot's init as /init",
        BOOT_PATIENCE.as_secs()
    )]
    Silent,
    /// A guest of another version.
    #[error(
        "the guest's init speaks version {0} of the control channel, this cachot version {VERSION}: \
         rebuild the guest with `make guest`"
    )]
    Version(u32),
    /// Bytes that are no message.
    #[error(
        "the guest broke the rules of the control channel: rebuild the guest with `make guest`"
    )]
    Protocol(#[source] FrameError),
    /// The connection to the guest's init was closed, and the VM did not end.
    #[error("the guest's init closed its control connection before the command had ended")]
    Abandoned,
    /// The VM stopped before the command had ended.
    #[error("the VM stopped before the command had ended")]
    Stopped(StopReason),
    /// The monitor reports a failure.
    #[error("{0}")]
    Monitor(String),
    /// The monitor is gone without a word.
    #[error("the monitor died")]
    MonitorDied,
    /// The user's terminal cannot be set up.
    #[error("cannot put the terminal into raw mode")]
    Terminal(#[source] std::io::Error),
    /// The user's standard output or error does not take what the command writes.
    #[error("cannot write the command's output to {stream}")]
    Output {
        /// Which one.
        stream: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

#[derive(Debug)]
enum Phase {
    /// A copy of a guest, which does not know it yet or has not become one of its own.
    Waking(Box<Waking>),
    /// No Hello yet.
    Booting(Box<Start>),
    /// Start is sent.
    Starting,
    /// The command runs.
    Running,
    /// The command has ended with this code; its output is being written.
    Finishing(u8),
    /// It could not be started, with this code and message.
    Failing(u8, String),
    /// The control connection is gone, and with it the guest, soon.
    Lost,
}

#[derive(Debug)]
struct Waking {
    renewal: Renewal,
    /// When it was made: its time of day is of then.
    made: Instant,
    /// For a copy of a guest that had no workload yet; none if it is not known how to start that.
    start: Option<Start>,
    /// What the guest has said of its workload meanwhile.
    news: Vec<ToHost>,
}

/// One session in one guest.
#[derive(Debug)]
pub struct Life {
    phase: Phase,
    session: u32,
    terminal: bool,
    deadline: Option<Instant>,
    timeout: Option<Duration>,
    /// When the VM ends whatever the guest says or sends: the time limit and its grace.
    last_moment: Option<Instant>,
    timed_out: bool,
    interrupted: Option<Instant>,
    /// When the VM is killed that was asked to end.
    kill_at: Option<Instant>,
    stopped: Option<StopReason>,
}

impl Life {
    /// Of a guest that is started now, with the command to run in it.
    pub fn new(start: Start, timeout: Option<Duration>, now: Instant) -> Self {
        Self {
            session: start.session,
            terminal: start.terminal.is_some(),
            phase: Phase::Booting(Box::new(start)),
            deadline: Some(now + BOOT_PATIENCE),
            timeout,
            last_moment: None,
            timed_out: false,
            interrupted: None,
            kill_at: None,
            stopped: None,
        }
    }

    /// Of a copy of a guest, whose workload was started with `start`, or would have been if that is `complete`.
    pub fn restored(
        start: Start,
        complete: bool,
        renewal: Renewal,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Self {
        let mut life = Self::new(start.clone(), timeout, now);
        life.phase = Phase::Waking(Box::new(Waking {
            renewal,
            made: now,
            start: complete.then_some(start),
            news: Vec::new(),
        }));
        life
    }

    /// Number of the workload's session.
    pub fn session(&self) -> u32 {
        self.session
    }

    /// Whether the workload runs.
    pub fn running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// When [`Life::expired`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.deadline, self.last_moment, self.kill_at];
        deadlines.into_iter().flatten().min()
    }

    /// Whether the command has ended, so that only its output is still to come.
    pub fn finishing(&self) -> bool {
        matches!(self.phase, Phase::Finishing(_) | Phase::Failing(..))
    }

    /// The guest has said something.
    pub fn heard(&mut self, message: ToHost, now: Instant) -> Option<Action> {
        match message {
            ToHost::Hello { version, .. } if version != VERSION => {
                killed(Err(SessionError::Version(version)))
            }
            message if matches!(self.phase, Phase::Waking(_)) => self.heard_waking(message, now),
            ToHost::Hello { .. } => match std::mem::replace(&mut self.phase, Phase::Starting) {
                Phase::Booting(start) => Some(Action::Send(Box::new(ToGuest::Start(*start)))),
                other => {
                    self.phase = other;
                    None
                }
            },
            ToHost::Started { session } => {
                if session == self.session && matches!(self.phase, Phase::Starting) {
                    self.phase = Phase::Running;
                    self.deadline = self.timeout.map(|timeout| now + timeout);
                    self.last_moment = self.deadline.map(|deadline| deadline + GRACE);
                    return Some(Action::Started);
                }
                None
            }
            ToHost::Exited { session, code } => {
                if session == self.session && matches!(self.phase, Phase::Running) {
                    let code = if self.timed_out { TIMED_OUT } else { code };
                    self.phase = Phase::Finishing(code);
                    self.deadline = Some(now + CLOSING_PATIENCE);
                    let read = now + READING_PATIENCE;
                    self.last_moment = self.last_moment.map(|last| last.max(read));
                }
                None
            }
            ToHost::Frozen { .. } | ToHost::Renewed { .. } => None,
            ToHost::Failed { code, message, .. } => {
                if !self.finishing() {
                    let code = if (125..=127).contains(&code) {
                        code
                    } else {
                        125
                    };
                    self.phase = Phase::Failing(code, one_line(&message));
                    self.deadline = Some(now + CLOSING_PATIENCE);
                }
                None
            }
        }
    }

    /// The same of a copy that is becoming a guest of its own.
    fn heard_waking(&mut self, message: ToHost, now: Instant) -> Option<Action> {
        let Phase::Waking(waking) = &mut self.phase else {
            return None;
        };
        let failures = match message {
            // On every new connection: the guest may not have heard it on the one before.
            ToHost::Hello { .. } => {
                waking.news.clear();
                let mut renewal = waking.renewal.clone();
                let since = now.saturating_duration_since(waking.made).as_nanos();
                renewal.realtime_ns += u64::try_from(since).unwrap_or(0);
                return Some(Action::Send(Box::new(ToGuest::Renew(renewal))));
            }
            ToHost::Renewed { failures, workload } if failures.is_empty() => {
                let waking = std::mem::replace(&mut self.phase, Phase::Starting);
                let Phase::Waking(waking) = waking else {
                    return None;
                };
                match (workload, waking.start) {
                    (true, _) => {}
                    (false, None) => return killed(Err(SessionError::Withheld)),
                    (false, Some(start)) => {
                        return Some(Action::Send(Box::new(ToGuest::Start(start))));
                    }
                }
                let news = waking.news.into_iter();
                let actions: Vec<_> = news.filter_map(|news| self.heard(news, now)).collect();
                return actions.into_iter().next();
            }
            ToHost::Renewed { failures, .. } => failures,
            ToHost::Frozen { .. } => return None,
            news => {
                // The beginning and the end of one workload.
                if waking.news.len() < 2 {
                    waking.news.push(news);
                }
                return None;
            }
        };
        killed(Err(SessionError::NotRenewed(one_line(
            &failures.join("; "),
        ))))
    }

    /// A command wants the VM to end: its workload gets SIGTERM, and the VM is killed after `grace`.
    pub fn stop(&mut self, grace: Duration, now: Instant) -> Option<Action> {
        match self.phase {
            Phase::Running => {
                self.kill_at = Some(now + grace);
                self.signal(SIGTERM)
            }
            Phase::Finishing(_) | Phase::Failing(..) | Phase::Lost => None,
            Phase::Waking(_) | Phase::Booting(_) | Phase::Starting => killed(Ok(exit_by(SIGTERM))),
        }
    }

    /// The control connection is closed.
    pub fn control_closed(&mut self, now: Instant) {
        // A copy may hear the end of a connection that it has as a copy of its first self.
        if !self.finishing() && !matches!(self.phase, Phase::Waking(_)) {
            self.phase = Phase::Lost;
            self.deadline = Some(now + CLOSING_PATIENCE);
        }
    }

    /// The monitor says why the guest ended. What the guest said before may still be on its way.
    pub fn stopped(&mut self, reason: StopReason) {
        self.stopped = Some(reason);
    }

    /// The monitor has closed its end; what it passed on from the guest may still have to be heard.
    pub fn monitor_closed(&mut self, now: Instant) {
        if !self.finishing() {
            self.deadline = Some(now + CLOSING_PATIENCE);
        }
    }

    /// The monitor is gone, all that the guest has said was heard, and it was not that the command
    /// has ended.
    pub fn monitor_gone(&self) -> Option<Action> {
        if self.timed_out {
            return killed(Ok(TIMED_OUT));
        }
        killed(Err(match self.stopped {
            Some(reason) => SessionError::Stopped(reason),
            None => SessionError::MonitorDied,
        }))
    }

    /// The guest has closed its half of the control connection, which is the last thing it does, and
    /// `output_done` says that all output of the command has been written, or could not be.
    pub fn goodbye(&mut self, output_done: bool) -> Option<Action> {
        let result = match &self.phase {
            Phase::Finishing(code) if output_done => Ok(*code),
            Phase::Failing(code, message) => Err(SessionError::NotStarted {
                code: *code,
                message: message.clone(),
            }),
            _ => return None,
        };
        Some(Action::End(Ending {
            result,
            orderly: true,
        }))
    }

    /// Nobody reads the command's output any more.
    pub fn output_refused(&self) -> Option<Action> {
        self.signal(SIGPIPE)
    }

    /// The keeper has received a signal.
    pub fn signalled(&mut self, signal: i32, now: Instant) -> Option<Action> {
        let code = exit_by(signal);
        match self.phase {
            Phase::Waking(_) | Phase::Booting(_) | Phase::Starting | Phase::Lost => {
                killed(Ok(code))
            }
            Phase::Finishing(code) | Phase::Failing(code, _) => killed(Ok(code)),
            Phase::Running => {
                if matches!(signal, SIGINT | SIGTERM) {
                    let before = self.interrupted.replace(now);
                    if before.is_some_and(|before| now - before <= DOUBLE_INTERRUPT) {
                        return killed(Ok(code));
                    }
                }
                self.signal(signal)
            }
        }
    }

    /// The terminal has this size now.
    pub fn resized(&self, size: WindowSize) -> Option<Action> {
        let session = self.session;
        (self.terminal && matches!(self.phase, Phase::Running))
            .then(|| Action::Send(Box::new(ToGuest::WindowSize { session, size })))
    }

    /// The deadline has passed. `writing` says that output waits for the user to read it.
    pub fn expired(&mut self, writing: bool, now: Instant) -> Option<Action> {
        self.deadline = None;
        let overdue = self.last_moment.is_some_and(|last| last <= now);
        if self.kill_at.is_some_and(|kill_at| kill_at <= now) {
            return killed(Ok(exit_by(SIGKILL)));
        }
        match &self.phase {
            Phase::Finishing(code) if overdue => killed(Ok(*code)),
            Phase::Waking(_) | Phase::Booting(_) | Phase::Starting => {
                killed(Err(SessionError::Silent))
            }
            Phase::Lost => killed(Err(SessionError::Abandoned)),
            Phase::Finishing(_) if writing => {
                self.deadline = Some(now + CLOSING_PATIENCE);
                None
            }
            Phase::Finishing(code) => killed(Ok(*code)),
            Phase::Failing(code, message) => killed(Err(SessionError::NotStarted {
                code: *code,
                message: message.clone(),
            })),
            Phase::Running if self.timed_out => killed(Ok(TIMED_OUT)),
            Phase::Running => {
                self.timed_out = true;
                self.deadline = Some(now + GRACE);
                self.signal(SIGTERM)
            }
        }
    }

    fn signal(&self, signal: i32) -> Option<Action> {
        let session = self.session;
        matches!(self.phase, Phase::Running)
            .then(|| Action::Send(Box::new(ToGuest::Signal { session, signal })))
    }
}

/// The exit code of what a signal has ended.
fn exit_by(signal: i32) -> u8 {
    128 | u8::try_from(signal & 127).unwrap_or_default()
}

/// The session ends here, and the VM with it.
pub fn killed(result: Result<u8, SessionError>) -> Option<Action> {
    Some(Action::End(Ending {
        result,
        orderly: false,
    }))
}

/// A message of the guest on one line and without control characters.
pub fn one_line(message: &str) -> String {
    let plain = message.chars().map(|character| match character {
        character if character.is_control() => ' ',
        character => character,
    });
    plain.take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::SIGHUP;

    fn start() -> Start {
        Start {
            session: 1,
            root: None,
            argv: vec!["true".into()],
            env: Vec::new(),
            secrets: Vec::new(),
            secret_env: Vec::new(),
            user: None,
            workdir: None,
            terminal: None,
            stdin: false,
        }
    }

    const HELLO: ToHost = ToHost::Hello {
        version: VERSION,
        uptime_us: 1,
    };
    const STARTED: ToHost = ToHost::Started { session: 1 };
    const EXITED: ToHost = ToHost::Exited {
        session: 1,
        code: 3,
    };

    fn running(timeout: Option<Duration>) -> (Life, Instant) {
        let now = Instant::now();
        let mut life = Life::new(start(), timeout, now);
        life.heard(HELLO, now);
        life.heard(STARTED, now);
        (life, now)
    }

    fn ending(action: Option<Action>) -> (Result<u8, String>, bool) {
        match action {
            Some(Action::End(ending)) => (
                ending.result.map_err(|error| error.to_string()),
                ending.orderly,
            ),
            other => panic!("no ending: {other:?}"),
        }
    }

    fn sent(action: Option<Action>) -> ToGuest {
        match action {
            Some(Action::Send(message)) => *message,
            other => panic!("nothing sent: {other:?}"),
        }
    }

    #[test]
    fn test_life_of_an_ordinary_command() {
        let now = Instant::now();
        let mut life = Life::new(start(), None, now);
        assert_eq!(life.deadline(), Some(now + BOOT_PATIENCE));
        assert_eq!(sent(life.heard(HELLO, now)), ToGuest::Start(start()));
        assert!(matches!(life.heard(STARTED, now), Some(Action::Started)));
        assert_eq!(life.deadline(), None);
        assert!(life.goodbye(true).is_none());
        assert!(life.heard(EXITED, now).is_none());
        assert!(life.goodbye(false).is_none());
        assert_eq!(ending(life.goodbye(true)), (Ok(3), true));
    }

    #[test]
    fn test_signals_are_passed_on_and_a_double_interrupt_ends_the_vm() {
        let (mut life, now) = running(None);
        let signal = |signal| ToGuest::Signal { session: 1, signal };
        assert_eq!(sent(life.signalled(SIGHUP, now)), signal(SIGHUP));
        assert_eq!(sent(life.signalled(SIGINT, now)), signal(SIGINT));
        let later = now + Duration::from_secs(3);
        assert_eq!(sent(life.signalled(SIGTERM, later)), signal(SIGTERM));
        let soon = later + Duration::from_secs(1);
        assert_eq!(ending(life.signalled(SIGINT, soon)), (Ok(130), false));
    }

    #[test]
    fn test_signal_before_the_command_runs_ends_the_vm() {
        let now = Instant::now();
        let mut life = Life::new(start(), None, now);
        assert_eq!(ending(life.signalled(SIGTERM, now)), (Ok(143), false));
        let mut life = Life::new(start(), None, now);
        life.heard(HELLO, now);
        assert_eq!(ending(life.signalled(SIGHUP, now)), (Ok(129), false));
    }

    #[test]
    fn test_timeout_terminates_then_kills() {
        let timeout = Duration::from_secs(9);
        let (mut life, now) = running(Some(timeout));
        assert_eq!(life.deadline(), Some(now + timeout));
        let term = ToGuest::Signal {
            session: 1,
            signal: SIGTERM,
        };
        assert_eq!(sent(life.expired(false, now)), term);
        assert_eq!(life.deadline(), Some(now + GRACE));
        assert_eq!(ending(life.expired(false, now)), (Ok(124), false));
    }

    #[test]
    fn test_timeout_counts_even_if_the_command_then_ends_well() {
        let (mut life, now) = running(Some(Duration::from_secs(9)));
        life.expired(false, now);
        life.heard(EXITED, now);
        assert_eq!(ending(life.goodbye(true)), (Ok(124), true));
    }

    #[test]
    fn test_timeout_ends_a_guest_that_sends_for_ever_after_the_end() {
        let (mut life, now) = running(Some(Duration::from_secs(9)));
        life.heard(EXITED, now);
        assert!(life.expired(true, now + CLOSING_PATIENCE).is_none());
        let last = now + READING_PATIENCE;
        assert!(life.deadline() <= Some(last));
        assert_eq!(ending(life.expired(true, last)), (Ok(3), false));
    }

    #[test]
    fn test_unread_output_is_waited_for_and_open_streams_are_not() {
        let (mut life, now) = running(None);
        life.heard(EXITED, now);
        assert!(life.expired(true, now).is_none());
        assert_eq!(life.deadline(), Some(now + CLOSING_PATIENCE));
        assert_eq!(ending(life.expired(false, now)), (Ok(3), false));
    }

    #[test]
    fn test_monitor_gone_after_the_command_ended_keeps_its_code() {
        let (mut life, now) = running(None);
        life.heard(EXITED, now);
        life.stopped(StopReason::PowerOff);
        life.monitor_closed(now);
        assert!(life.finishing());
        assert_eq!(ending(life.goodbye(true)), (Ok(3), true));
    }

    #[test]
    fn test_monitor_gone_before_the_command_ended_is_an_error() {
        let (mut life, _) = running(None);
        life.stopped(StopReason::Reset);
        let action = life.monitor_gone();
        assert!(matches!(
            action,
            Some(Action::End(Ending {
                result: Err(SessionError::Stopped(StopReason::Reset)),
                orderly: false
            }))
        ));
        let (life, _) = running(None);
        let (result, _) = ending(life.monitor_gone());
        assert_eq!(result, Err("the monitor died".to_owned()));
    }

    #[test]
    fn test_silent_abandoned_and_foreign_guests_are_errors() {
        let now = Instant::now();
        let mut life = Life::new(start(), None, now);
        let (result, _) = ending(life.expired(false, now));
        assert!(result.is_err_and(|error| error.contains("120 s")));

        let (mut life, now) = running(None);
        life.control_closed(now);
        let (result, _) = ending(life.expired(false, now));
        assert!(result.is_err_and(|error| error.contains("closed its control connection")));

        let mut life = Life::new(start(), None, now);
        let other = ToHost::Hello {
            version: VERSION + 1,
            uptime_us: 1,
        };
        let (result, _) = ending(life.heard(other, now));
        assert!(result.is_err_and(|error| error.contains("make guest")));
    }

    #[test]
    fn test_failed_start_has_the_guests_code_and_message() {
        let now = Instant::now();
        for (code, expected) in [(127, 127), (126, 126), (0, 125)] {
            let mut life = Life::new(start(), None, now);
            life.heard(HELLO, now);
            let failed = ToHost::Failed {
                session: 1,
                code,
                message: "no\nsuch".into(),
            };
            assert!(life.heard(failed, now).is_none());
            match life.goodbye(false) {
                Some(Action::End(Ending {
                    result: Err(SessionError::NotStarted { code, message }),
                    orderly: true,
                })) => assert_eq!((code, message.as_str()), (expected, "no such")),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn test_messages_of_other_sessions_and_repeated_ones_change_nothing() {
        let (mut life, now) = running(None);
        assert!(life.heard(HELLO, now).is_none());
        let other = ToHost::Exited {
            session: 2,
            code: 0,
        };
        assert!(life.heard(other, now).is_none());
        assert!(!life.finishing());
        life.heard(EXITED, now);
        let again = ToHost::Exited {
            session: 1,
            code: 0,
        };
        life.heard(again, now);
        assert_eq!(ending(life.goodbye(true)), (Ok(3), true));
    }
}
