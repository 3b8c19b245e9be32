//! The keeper of a running VM: one workload connected to the user's standard streams, further commands, snapshots.
//!
//! [`Life`](life::Life) decides; this module waits with `poll`, moves bytes and carries out what was
//! decided, on one thread. It waits nowhere else.

pub mod arrivals;
mod clients;
pub mod console;
mod exec;
pub mod frames;
pub mod life;
mod relay;
pub mod request;
mod snapshots;
pub mod streams;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use cachot_control::{FrameError, MAX_FRAME, Start, ToGuest, ToHost, WindowSize};
use cachot_snapshot::needles::Needles;
use cachot_vmm::protocol::{self, ChannelError, ToKeeper};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::signals::Signals;
use arrivals::Arrivals;
use clients::Client;
use console::Console;
use exec::Command;
use frames::{Incoming, Outgoing};
use life::{Action, Ending, Life, SessionError, killed};
use snapshots::Snapshotting;
use streams::{Stdio, Streams, Written};

/// What a keeper is connected to.
pub struct Ends<'a> {
    /// The socket to the monitor.
    pub monitor: BorrowedFd<'a>,
    /// Where the guest's init connects.
    pub control: &'a UnixListener,
    /// Where it connects for the streams of sessions.
    pub streams: &'a UnixListener,
    /// Where commands connect ([`request`]).
    pub commands: &'a OwnedFd,
    /// Signals for the keeper.
    pub signals: &'a Signals,
    /// Finds out the size of the user's terminal.
    pub window_size: &'a dyn Fn() -> Option<WindowSize>,
    /// Called once the workload runs, for a terminal that is the workload's from then on.
    pub started: &'a dyn Fn() -> io::Result<()>,
    /// Called when something was written to the workload's output.
    pub written: &'a dyn Fn(),
    /// How the workload is run: further commands have the same variables.
    pub workload: &'a Start,
}

/// A descriptor that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    ControlListener,
    Control { writable: bool },
    Arrival(arrivals::Source),
    Workload(streams::Source),
    Monitor,
    Console,
    CommandListener,
    Client(u32),
    Command(u32, streams::Source),
}

impl Source {
    /// The session whose output this is.
    fn output(self) -> Option<u32> {
        match self {
            Self::Workload(streams::Source::Output(_)) => Some(0),
            Self::Command(number, streams::Source::Output(_)) => Some(number),
            _ => None,
        }
    }
}

/// The connection of the guest's init.
struct Control {
    socket: UnixStream,
    incoming: Incoming,
}

/// Keeps a VM.
pub struct Keeper<'a> {
    ends: &'a Ends<'a>,
    life: Life,
    streams: Streams,
    arrivals: Arrivals<'a>,
    console: Console,
    monitor_open: bool,
    control: Option<Control>,
    /// Frames for the guest.
    outgoing: Outgoing,
    /// Connections of commands.
    clients: BTreeMap<u32, Client>,
    /// Further commands in the guest, by the numbers of their clients, which are those of their sessions.
    commands: BTreeMap<u32, Command>,
    /// Number of the next client.
    next_client: u32,
    snapshot: Option<Snapshotting>,
    /// Orders to bring the workload to rest that the guest has not answered.
    freezes: u32,
    /// What output is searched for.
    needles: Option<Arc<Needles>>,
    /// The session whose output was written last.
    last_output: u32,
}

impl<'a> Keeper<'a> {
    /// Of a VM that has been told to boot.
    ///
    /// # Errors
    /// When a listener cannot be made non-blocking.
    pub fn new(ends: &'a Ends<'a>, life: Life, stdio: Stdio, console: Console) -> io::Result<Self> {
        ends.control.set_nonblocking(true)?;
        ends.streams.set_nonblocking(true)?;
        rustix::io::ioctl_fionbio(ends.commands, true)?;
        Ok(Self {
            next_client: life.session() + 1,
            ends,
            life,
            streams: Streams::new(stdio),
            arrivals: Arrivals::new(ends.streams),
            console,
            monitor_open: true,
            control: None,
            outgoing: Outgoing::default(),
            clients: BTreeMap::new(),
            commands: BTreeMap::new(),
            snapshot: None,
            freezes: 0,
            needles: None,
            last_output: 0,
        })
    }

    /// Masks all that the guest prints from now on.
    pub fn mask(&mut self, needles: Arc<Needles>) {
        self.streams.mask(&needles);
        self.console.mask(&needles);
        self.needles = Some(needles);
    }

    /// Keeps the VM until its workload's end; the console is given back, for what is still in it.
    ///
    /// # Errors
    /// What `poll`, a listener or the signal descriptor said; what befalls the workload itself is in the
    /// [`Ending`].
    pub fn run(mut self) -> io::Result<(Ending, Console)> {
        let ending = self.keep()?;
        // Clients hear of the end by the end of their connections, when the VM is gone: they belong to this process.
        std::mem::forget(std::mem::take(&mut self.clients));
        Ok((ending, self.console))
    }

    fn keep(&mut self) -> io::Result<Ending> {
        loop {
            for source in self.wait()? {
                if let Some(ending) = self.serve(source)? {
                    return Ok(ending);
                }
                if let Some(session) = source.output() {
                    self.last_output = session;
                    // What else is ready is such an output too, which may not be any more.
                    break;
                }
            }
            let action = self.conclude();
            if let Some(ending) = self.carry_out(action) {
                return Ok(ending);
            }
        }
    }

    /// What follows from there being nothing more to hear, or from the time.
    fn conclude(&mut self) -> Option<Action> {
        if self.control.is_none() && self.life.finishing() {
            let action = self.life.goodbye(self.streams.done());
            if action.is_some() {
                return action;
            }
        } else if self.control.is_none() && !self.monitor_open {
            return self.life.monitor_gone();
        }
        let now = Instant::now();
        self.streams.expire(now);
        self.console.expire(now);
        self.expire_commands(now);
        self.expire_snapshot(now);
        match self.life.deadline() {
            Some(deadline) if deadline <= now => self.life.expired(self.streams.writing(), now),
            _ => None,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let commands = self.commands.values().filter_map(Command::deadline);
        [
            self.life.deadline(),
            self.streams.deadline(),
            self.console.deadline(),
            self.snapshot.as_ref().and_then(Snapshotting::deadline),
        ]
        .into_iter()
        .flatten()
        .chain(commands)
        .min()
    }

    /// All that is waited for; outputs last, and of these those of the session last that was served last.
    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = vec![(Source::Signals, self.ends.signals.as_fd(), PollFlags::IN)];
        match &self.control {
            None if self.monitor_open => {
                let listener = self.ends.control.as_fd();
                sources.push((Source::ControlListener, listener, PollFlags::IN));
            }
            None => {}
            Some(control) => {
                let socket = control.socket.as_fd();
                let readable = Source::Control { writable: false };
                sources.push((readable, socket, PollFlags::IN));
                if self.outgoing.pending() {
                    let writable = Source::Control { writable: true };
                    sources.push((writable, socket, PollFlags::OUT));
                }
            }
        }
        if self.monitor_open {
            sources.push((Source::Monitor, self.ends.monitor, PollFlags::IN));
        }
        if let Some(console) = self.console.source() {
            sources.push((Source::Console, console, PollFlags::IN));
        }
        let listener = self.ends.commands.as_fd();
        sources.push((Source::CommandListener, listener, PollFlags::IN));
        for (number, client) in &self.clients {
            sources.push((Source::Client(*number), client.as_fd(), PollFlags::IN));
        }
        let commands = || self.commands.iter();
        let expected = self.streams.incomplete()
            || commands().any(|(_, command)| command.streams.incomplete());
        self.arrivals.sources(expected, |source, descriptor| {
            sources.push((Source::Arrival(source), descriptor, PollFlags::IN));
        });
        self.streams.sources(|source, descriptor, flags| {
            sources.push((Source::Workload(source), descriptor, flags));
        });
        for (number, command) in commands() {
            command.streams.sources(|source, descriptor, flags| {
                sources.push((Source::Command(*number, source), descriptor, flags));
            });
        }
        sources.sort_by_key(|(source, ..)| match source.output() {
            None => 0,
            Some(session) if session != self.last_output => 1,
            Some(_) => 2,
        });
        sources
    }

    /// Waits until something can be done or the deadline has passed.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let (sources, mut descriptors): (Vec<_>, Vec<_>) = self
            .sources()
            .into_iter()
            .map(|(source, fd, flags)| (source, PollFd::from_borrowed_fd(fd, flags)))
            .unzip();
        let timeout = self.deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        let ready = sources
            .iter()
            .zip(&descriptors)
            .filter(|(_, descriptor)| !descriptor.revents().is_empty())
            .map(|(source, _)| *source);
        Ok(ready.collect())
    }

    fn serve(&mut self, source: Source) -> io::Result<Option<Ending>> {
        let now = Instant::now();
        let action = match source {
            Source::Signals => self.take_signal(now)?,
            Source::ControlListener => {
                self.accept_control()?;
                None
            }
            Source::Control { writable: true } => {
                if let Some(control) = &self.control {
                    self.outgoing.flush(&control.socket);
                }
                None
            }
            Source::Control { writable: false } => return Ok(self.read_control(now)),
            Source::Arrival(source) => {
                self.take_arrival(source)?;
                None
            }
            Source::Workload(source) => self.serve_workload(source),
            Source::Monitor => self.hear_monitor(now)?,
            Source::Console => {
                self.console.serve();
                None
            }
            Source::CommandListener => {
                self.accept_client()?;
                None
            }
            Source::Client(number) => self.hear_client(number, now),
            Source::Command(number, source) => {
                self.serve_command(number, source);
                None
            }
        };
        Ok(self.carry_out(action))
    }

    fn take_signal(&mut self, now: Instant) -> io::Result<Option<Action>> {
        Ok(match self.ends.signals.next()? {
            None => None,
            Some(libc::SIGWINCH) => self.resized(),
            Some(signal) => self.life.signalled(signal, now),
        })
    }

    /// Passes the size of the terminal on, if the workload has one.
    fn resized(&self) -> Option<Action> {
        let size = (self.ends.window_size)()?;
        self.life.resized(size)
    }

    fn accept_control(&mut self) -> io::Result<()> {
        if let Some(socket) = arrivals::accept(self.ends.control)? {
            self.control = Some(Control {
                socket,
                incoming: Incoming::new(MAX_FRAME),
            });
        }
        Ok(())
    }

    fn take_arrival(&mut self, source: arrivals::Source) -> io::Result<()> {
        if let Some(arrival) = self.arrivals.serve(source)? {
            let session = arrival.header.session;
            if session == self.life.session() {
                self.streams.connect(arrival);
            } else if let Some(command) = self.commands.get_mut(&session) {
                command.streams.connect(arrival);
            }
        }
        Ok(())
    }

    /// Hears all that has arrived.
    fn read_control(&mut self, now: Instant) -> Option<Ending> {
        let control = self.control.as_mut()?;
        let open = control.incoming.fill(&control.socket);
        while let Some(next) = self.next_message() {
            let action = match next {
                Ok(message) => self.heard(message, now),
                Err(error) => killed(Err(SessionError::Protocol(error))),
            };
            let ending = self.carry_out(action);
            if ending.is_some() {
                return ending;
            }
        }
        if !open {
            self.control = None;
            self.freezes = 0;
            self.life.control_closed(now);
            self.lose_commands();
        }
        None
    }

    fn next_message(&mut self) -> Option<Result<ToHost, FrameError>> {
        self.control.as_mut()?.incoming.next().transpose()
    }

    /// The guest has said something: of which session?
    fn heard(&mut self, message: ToHost, now: Instant) -> Option<Action> {
        match message {
            ToHost::Frozen { failure } => {
                self.frozen(failure);
                None
            }
            ToHost::Started { session }
            | ToHost::Exited { session, .. }
            | ToHost::Failed { session, .. }
                if session != self.life.session() =>
            {
                self.command_heard(session, message, now);
                None
            }
            message => self.life.heard(message, now),
        }
    }

    fn serve_workload(&mut self, source: streams::Source) -> Option<Action> {
        let written = self.streams.serve(source);
        if let streams::Source::Output(_) = source {
            (self.ends.written)();
        }
        match written {
            Written::Fine => None,
            Written::Refused => self.life.output_refused(),
            Written::Failed(error) => killed(Err(error)),
        }
    }

    fn hear_monitor(&mut self, now: Instant) -> io::Result<Option<Action>> {
        match protocol::receive(self.ends.monitor) {
            Ok((ToKeeper::LeftZero { secret, copies }, _)) => {
                eprintln!(
                    "cachot: warning: secret {secret}: its copies in guest memory stay zero ({copies} of them), for it \
                     has no value now that fits"
                );
                Ok(None)
            }
            Ok((ToKeeper::Running, _)) => Ok(None),
            Ok((ToKeeper::Stopped { reason }, _)) => {
                self.life.stopped(reason);
                Ok(None)
            }
            Ok((ToKeeper::Failed { message }, _)) => {
                Ok(killed(Err(SessionError::Monitor(message))))
            }
            Ok((
                message @ (ToKeeper::SnapshotProgress(_)
                | ToKeeper::SnapshotWritten(_)
                | ToKeeper::SnapshotFailed { .. }),
                _,
            )) => Ok(self.snapshot_heard(message)),
            Err(ChannelError::Closed) => {
                self.monitor_open = false;
                self.life.monitor_closed(now);
                if self.control.is_none() {
                    self.accept_control()?;
                }
                Ok(None)
            }
            Err(error) => Ok(killed(Err(SessionError::Monitor(error.to_string())))),
        }
    }

    /// Carries an action out; the ending, if it is one.
    fn carry_out(&mut self, action: Option<Action>) -> Option<Ending> {
        match action? {
            Action::End(ending) => Some(ending),
            Action::Started => {
                if let Err(error) = (self.ends.started)() {
                    return self.carry_out(killed(Err(SessionError::Terminal(error))));
                }
                let resized = self.resized();
                self.carry_out(resized)
            }
            Action::Send(message) => match self.outgoing.push(&message) {
                Ok(()) => None,
                Err(error) => self.carry_out(killed(Err(SessionError::Protocol(error)))),
            },
        }
    }

    /// Tells the guest something that nothing depends on.
    fn tell_guest(&mut self, message: &ToGuest) -> Result<(), FrameError> {
        self.outgoing.push(message)
    }
}

#[cfg(test)]
mod tests;
