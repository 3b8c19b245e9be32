//! The event loop of PID 1: the control connection, sessions, signals and the power button.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_control::{Renewal, Root, Start, ToGuest, ToHost};
use rustix::event::PollFlags;
use rustix::process::{Signal, WaitOptions, wait};

use crate::cgroup::Cgroups;
use crate::child::{Failure, Places};
use crate::control::Control;
use crate::freezer::Freezer;
use crate::kernel::Kernel;
use crate::link::{Interest, Transport};
use crate::power;
use crate::renew::{self, Renewing};
use crate::session::Session;
use crate::sessions::Sessions;
use crate::sys;

/// How long the host may be out of reach before there is a workload.
const HOST_WAIT: Duration = Duration::from_secs(10);

/// How long commands beside the workload run on without a keeper, who alone could take up their streams.
const KEEPER_WAIT: Duration = Duration::from_secs(30);

/// How long the sessions have, after SIGTERM, until they get SIGKILL.
const TERM_WAIT: Duration = Duration::from_secs(5);

/// How long the rest of the output has, after SIGKILL, to reach the host.
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
    /// Control groups of the sessions, where the kernel has any.
    pub cgroups: Option<Cgroups>,
    /// What is renewed in a copy of the guest.
    pub renewed: renew::Places,
    /// The kernel below.
    pub kernel: Box<dyn Kernel>,
}

/// The state of the event loop.
pub struct Supervisor<T> {
    surroundings: Surroundings<T>,
    signals: OwnedFd,
    control: Control,
    sessions: Sessions,
    freezer: Freezer,
    renewing: Option<Renewing>,
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
            sessions: Sessions::default(),
            freezer: Freezer::default(),
            renewing: None,
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
            self.sessions.reaped(pid, status, now);
            if let Some(renewing) = &mut self.renewing {
                renewing.reaped(pid, status);
            }
        }
        Ok(())
    }

    fn talk(&mut self, now: Instant) {
        self.exchange(now);
        for news in self.sessions.run(&self.surroundings.transport, now) {
            self.control.tell(&news);
        }
        if self.sessions.workload().is_some_and(Session::is_over) {
            self.control.say_goodbye();
        }
        let frozen = self
            .freezer
            .advance(self.surroundings.cgroups.as_ref(), now);
        self.answer(frozen);
        self.keep_renewing(now);
        self.keep_stopping(now);
        // What was just queued goes out before the loop waits. Nothing is heard here: what a message begins would
        // wait for whatever wakes the loop next.
        self.control.flush(now);
        if self.control.is_flushed() && self.sessions.forget_ended() {
            self.tidy();
        }
        let alone = self.control.alone_since();
        if alone.is_some_and(|since| now >= since + KEEPER_WAIT) {
            self.dismiss_commands();
        }
    }

    fn exchange(&mut self, now: Instant) {
        let transport = &self.surroundings.transport;
        let state = self.sessions.reports();
        for message in self.control.exchange(transport, now, &state) {
            self.obey(message, now);
        }
    }

    fn obey(&mut self, message: ToGuest, now: Instant) {
        match message {
            ToGuest::Start(start) => self.start(&start, now),
            // The session may just have ended; its keeper will learn that, or has.
            ToGuest::Signal { session, signal } => {
                let signal = Signal::from_named_raw(signal);
                if let (Some(session), Some(signal)) = (self.sessions.find(session), signal) {
                    session.signal(signal);
                }
            }
            ToGuest::WindowSize { session, size } => {
                if let Some(session) = self.sessions.find(session) {
                    session.resize(size);
                }
            }
            ToGuest::Freeze => {
                let cgroups = self.surroundings.cgroups.as_ref();
                let answer = self.freezer.freeze(cgroups, now);
                self.answer(answer);
            }
            ToGuest::Thaw => {
                if let Err(message) = self.thaw() {
                    // The keeper does not wait for an answer, and the console is somewhere to look.
                    eprintln!("cachot-init: {message}");
                }
            }
            ToGuest::Renew(renewal) => self.renew(renewal, now),
        }
    }

    fn answer(&mut self, answer: Option<ToHost>) {
        if let Some(answer) = answer {
            self.control.tell(&answer);
        }
    }

    fn start(&mut self, start: &Start, now: Instant) {
        if let Err(failure) = self.check(start) {
            // Not kept: the number may be that of a session that goes on.
            let refusal = Session::failed(start.session, failure).report();
            return self.answer(refusal);
        }
        let session = self
            .launch(start, now)
            .unwrap_or_else(|failure| Session::failed(start.session, failure));
        if session.is_over() {
            self.answer(session.report());
        }
        self.sessions.add(session);
    }

    fn check(&self, start: &Start) -> Result<(), Failure> {
        if self.stopping.is_some() {
            return Err(Failure::not_started("the guest is shutting down"));
        }
        self.sessions.check(start.session)?;
        if self.sessions.workload().is_some() && start.root.is_some() {
            return Err(Failure::not_started(
                "the guest has its root file system already; a further command takes no other",
            ));
        }
        Ok(())
    }

    fn launch(&self, start: &Start, now: Instant) -> Result<Session, Failure> {
        let root = start.root.map_or(Ok(()), self.surroundings.change_root);
        root.map_err(Failure::not_started)?;
        let cgroups = self.surroundings.cgroups.as_ref();
        let group = cgroups.map(|cgroups| cgroups.admit(start.session));
        let group = group.transpose().map_err(|error| {
            Failure::not_started(format!("cannot create a control group: {error}"))
        })?;
        Session::start(start, group.as_ref(), &self.surroundings.places, now)
    }

    fn thaw(&mut self) -> Result<(), String> {
        let answer = self.freezer.thaw(self.surroundings.cgroups.as_ref())?;
        self.answer(answer);
        Ok(())
    }

    fn renew(&mut self, renewal: Renewal, now: Instant) {
        let Surroundings {
            renewed, kernel, ..
        } = &self.surroundings;
        // An earlier one was for a keeper that is not here any more.
        self.renewing = None;
        self.renewing = Some(Renewing::begin(renewal, renewed, kernel.as_ref(), now));
    }

    fn keep_renewing(&mut self, now: Instant) {
        let Surroundings {
            renewed, kernel, ..
        } = &self.surroundings;
        let renewing = self.renewing.as_mut();
        let done = renewing.and_then(|renewing| renewing.advance(renewed, kernel.as_ref(), now));
        let Some(mut failures) = done else {
            return;
        };
        self.renewing = None;
        self.dismiss_commands();
        if failures.is_empty() {
            failures.extend(self.thaw().err());
        }
        let workload = self.sessions.workload().is_some();
        self.control.tell(&ToHost::Renewed { failures, workload });
    }

    /// Kills and forgets all sessions but the workload's.
    fn dismiss_commands(&mut self) {
        let commands = self.sessions.take_commands();
        for command in &commands {
            command.signal(Signal::KILL);
            if let Some(cgroups) = &self.surroundings.cgroups {
                // Of an older kernel, only what is in other process groups lives on, without its streams.
                cgroups.kill(command.id()).ok();
            }
        }
        if !commands.is_empty() {
            self.tidy();
        }
    }

    fn tidy(&self) {
        if let Some(cgroups) = &self.surroundings.cgroups {
            cgroups.tidy(|session| self.sessions.find(session).is_some());
        }
    }

    /// Begins an orderly shutdown.
    fn stop(&mut self, now: Instant) {
        if self.stopping.is_none() {
            self.sessions.signal(Signal::TERM);
            // What is frozen cannot end by itself. SIGKILL gets through in any case.
            self.thaw().ok();
            self.stopping = Some(Stopping {
                kill_at: now + TERM_WAIT,
                killed: false,
            });
        }
    }

    fn keep_stopping(&mut self, now: Instant) {
        if let Some(stopping) = &mut self.stopping
            && !stopping.killed
            && now >= stopping.kill_at
        {
            self.sessions.signal(Signal::KILL);
            stopping.killed = true;
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let stopped = self.stopping.as_ref().is_some_and(|stopping| {
            self.sessions.workload().is_none() || now >= stopping.kill_at + KILL_WAIT
        });
        stopped || self.control.is_over(now)
    }

    fn expect_host(&mut self, now: Instant) -> Result<(), SupervisorError> {
        if self.sessions.workload().is_some() {
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
        self.sessions.interest(&mut interest);
        self.freezer.interest(&mut interest);
        if let Some(renewing) = &self.renewing {
            renewing.interest(&mut interest);
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
