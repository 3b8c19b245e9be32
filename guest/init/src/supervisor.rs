//! The event loop of PID 1: the control connection, one session, signals and the power button.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_control::{Root, Start, ToGuest};
use rustix::event::PollFlags;
use rustix::process::{Signal, WaitOptions, wait};

use crate::child::{Failure, Places};
use crate::control::Control;
use crate::link::{Interest, Transport};
use crate::power;
use crate::session::Session;
use crate::sys;

/// How long the host may be out of reach before there is a workload.
const HOST_WAIT: Duration = Duration::from_secs(10);

/// How long the workload has, after SIGTERM, until it gets SIGKILL.
const TERM_WAIT: Duration = Duration::from_secs(5);

/// How long the rest of its output has, after SIGKILL, to reach the host.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// Why the event loop ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Nobody answers where the keeper should be.
    #[error(
        "no host answers on vsock port {port} within {seconds} s \
         (is the keeper still running?)"
    )]
    NoHost {
        /// The control port.
        port: u32,
        /// How long was waited, in seconds.
        seconds: u64,
        /// The latest failure to connect.
        source: io::Error,
    },
    /// A system call of the loop itself failed.
    #[error("{call} failed")]
    System {
        /// Which.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What the event loop needs from its surroundings.
pub struct Surroundings<T> {
    /// The way to the host.
    pub transport: T,
    /// Changes into the root file system that the keeper asked for, or says why not.
    pub change_root: fn(Root) -> Result<(), String>,
    /// Where the child looks things up.
    pub places: Places,
    /// Devices that may report the power button.
    pub buttons: Vec<File>,
}

/// The state of the event loop.
pub struct Supervisor<T> {
    surroundings: Surroundings<T>,
    signals: OwnedFd,
    control: Control,
    session: Option<Session>,
    stopping: Option<Stopping>,
}

struct Stopping {
    kill_at: Instant,
    killed: bool,
}

impl<T: Transport> Supervisor<T> {
    /// Takes over the signals of this process, which must have one thread.
    ///
    /// # Errors
    /// [`SupervisorError::System`].
    pub fn new(surroundings: Surroundings<T>) -> Result<Self, SupervisorError> {
        let ours = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR];
        let signals = sys::signal_descriptor(&ours).map_err(system("signalfd"))?;
        Ok(Self {
            surroundings,
            signals,
            control: Control::new(Instant::now()),
            session: None,
            stopping: None,
        })
    }

    /// Serves the host until the workload has ended and the host knows, or until it is told to
    /// stop.
    ///
    /// # Errors
    /// [`SupervisorError`].
    pub fn run(mut self) -> Result<(), SupervisorError> {
        loop {
            let now = Instant::now();
            self.take_signals(now)?;
            if power::pressed(&mut self.surroundings.buttons) {
                self.stop(now);
            }
            self.talk(now);
            self.expect_host(now)?;
            if self.is_over(now) {
                return Ok(());
            }
            self.wait(now)?;
        }
    }

    fn take_signals(&mut self, now: Instant) -> Result<(), SupervisorError> {
        for signal in sys::take_signals(&self.signals).map_err(system("signalfd"))? {
            if signal != libc::SIGCHLD {
                self.stop(now);
            }
        }
        // Signals of the same number merge, so each wake-up reaps all there is; no child at all
        // is an error that means nothing.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(session) = &mut self.session {
                session.reaped(pid, status, now);
            }
        }
        Ok(())
    }

    fn talk(&mut self, now: Instant) {
        self.exchange(now);
        if let Some(session) = &mut self.session {
            for news in session.run(&self.surroundings.transport, now) {
                self.control.tell(&news);
            }
            if session.is_over() {
                self.control.say_goodbye();
            }
        }
        self.keep_stopping(now);
        // What was just queued goes out before the loop waits.
        self.exchange(now);
    }

    fn exchange(&mut self, now: Instant) {
        let transport = &self.surroundings.transport;
        let state = self.session.as_ref().and_then(Session::report);
        for message in self.control.exchange(transport, now, state) {
            self.obey(message, now);
        }
    }

    fn obey(&mut self, message: ToGuest, now: Instant) {
        match (message, &self.session) {
            (ToGuest::Start(start), None) => self.start(&start, now),
            (ToGuest::Start(start), Some(_)) => {
                let failure = Failure::not_started("this guest already has its workload");
                if let Some(refusal) = Session::failed(start.session, failure).report() {
                    self.control.tell(&refusal);
                }
            }
            (
                ToGuest::Signal {
                    session: id,
                    signal,
                },
                Some(session),
            ) if id == session.id() => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    session.signal(signal);
                }
            }
            (ToGuest::WindowSize { session: id, size }, Some(session)) if id == session.id() => {
                session.resize(size);
            }
            // The session may just have ended; its keeper will learn that.
            (ToGuest::Signal { .. } | ToGuest::WindowSize { .. }, _) => {}
        }
    }

    fn start(&mut self, start: &Start, now: Instant) {
        let root = start.root.map_or(Ok(()), self.surroundings.change_root);
        let session = root
            .map_err(Failure::not_started)
            .and_then(|()| Session::start(start, &self.surroundings.places, now));
        let session = session.unwrap_or_else(|failure| Session::failed(start.session, failure));
        if let (true, Some(report)) = (session.is_over(), session.report()) {
            self.control.tell(&report);
        }
        self.session = Some(session);
    }

    /// Begins an orderly shutdown.
    fn stop(&mut self, now: Instant) {
        if self.stopping.is_none() {
            if let Some(session) = &self.session {
                session.signal(Signal::TERM);
            }
            self.stopping = Some(Stopping {
                kill_at: now + TERM_WAIT,
                killed: false,
            });
        }
    }

    fn keep_stopping(&mut self, now: Instant) {
        if let (Some(stopping), Some(session)) = (&mut self.stopping, &self.session)
            && !stopping.killed
            && now >= stopping.kill_at
        {
            session.signal(Signal::KILL);
            stopping.killed = true;
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let stopped = self
            .stopping
            .as_ref()
            .is_some_and(|stopping| self.session.is_none() || now >= stopping.kill_at + KILL_WAIT);
        stopped || self.control.is_over(now)
    }

    fn expect_host(&mut self, now: Instant) -> Result<(), SupervisorError> {
        if self.session.is_some() {
            // A workload runs on without its keeper.
            return Ok(());
        }
        match self.control.alone_since() {
            Some(since) if now >= since + HOST_WAIT => Err(SupervisorError::NoHost {
                port: cachot_control::CONTROL_PORT,
                seconds: HOST_WAIT.as_secs(),
                source: self.control.take_error(),
            }),
            _ => Ok(()),
        }
    }

    fn wait(&self, now: Instant) -> Result<(), SupervisorError> {
        let mut interest = Interest::default();
        interest.fd(self.signals.as_fd(), PollFlags::IN);
        for button in &self.surroundings.buttons {
            interest.fd(button.as_fd(), PollFlags::IN);
        }
        self.control.interest(&mut interest);
        if let Some(session) = &self.session {
            session.interest(&mut interest);
        }
        if let Some(stopping) = &self.stopping {
            let wait = if stopping.killed {
                KILL_WAIT
            } else {
                Duration::ZERO
            };
            interest.at(stopping.kill_at + wait);
        }
        interest.wait(now).map_err(system("poll"))
    }
}

fn system(call: &'static str) -> impl FnOnce(io::Error) -> SupervisorError {
    move |source| SupervisorError::System { call, source }
}
