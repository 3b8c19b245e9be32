//! A session: one command in a guest, connected to the user's standard streams.
//!
//! [`Life`](life::Life) decides; this module waits with `poll`, moves bytes and carries out what was
//! decided, on one thread. It waits nowhere else.

mod frames;
pub mod life;
mod relay;
mod streams;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use cachot_control::{FrameError, MAX_FRAME, Start, ToHost, WindowSize};
use cachot_vmm::protocol::{self, ChannelError, ToKeeper};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::signals::Signals;
use frames::{Incoming, Outgoing};
use life::{Action, Ending, Life, SessionError, killed};
use streams::{Stdio, Streams, Written};

/// What a session is connected to.
pub struct Ends<'a> {
    /// The socket to the monitor.
    pub monitor: BorrowedFd<'a>,
    /// Where the guest's init connects.
    pub control: &'a UnixListener,
    /// Where it connects for the command's streams.
    pub streams: &'a UnixListener,
    /// Signals for the keeper.
    pub signals: &'a Signals,
    /// The user's standard input, if it is connected.
    pub input: Option<BorrowedFd<'a>>,
    /// The user's standard output.
    pub output: BorrowedFd<'a>,
    /// The user's standard error.
    pub error: BorrowedFd<'a>,
    /// Finds out the size of the user's terminal.
    pub window_size: &'a dyn Fn() -> Option<WindowSize>,
    /// Called once the command runs, for a terminal that is the command's from then on.
    pub started: &'a dyn Fn() -> io::Result<()>,
}

/// Runs a session to its end.
///
/// # Errors
/// What `poll`, a listener or the signal descriptor said; what befalls the session itself is in the
/// [`Ending`].
pub fn run(ends: &Ends<'_>, start: Start, timeout: Option<Duration>) -> io::Result<Ending> {
    ends.control.set_nonblocking(true)?;
    ends.streams.set_nonblocking(true)?;
    let stdio = Stdio {
        input: ends.input.filter(|_| start.stdin),
        output: ends.output,
        error: Some(ends.error).filter(|_| start.terminal.is_none()),
    };
    Session {
        ends,
        streams: Streams::new(start.session, ends.streams, stdio),
        life: Life::new(start, timeout, Instant::now()),
        monitor_open: true,
        control: None,
        outgoing: Outgoing::default(),
    }
    .run()
}

/// A descriptor that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    ControlListener,
    Control { writable: bool },
    Stream(streams::Source),
    Monitor,
}

/// The connection of the guest's init.
struct Control {
    socket: UnixStream,
    incoming: Incoming,
}

struct Session<'a> {
    ends: &'a Ends<'a>,
    life: Life,
    streams: Streams<'a>,
    monitor_open: bool,
    control: Option<Control>,
    /// Frames for the guest.
    outgoing: Outgoing,
}

impl Session<'_> {
    fn run(mut self) -> io::Result<Ending> {
        loop {
            let ready = self.wait()?;
            for source in ready {
                if let Some(ending) = self.serve(source)? {
                    return Ok(ending);
                }
                if matches!(source, Source::Stream(streams::Source::Output(_))) {
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
        match self.life.deadline() {
            Some(deadline) if deadline <= now => self.life.expired(self.streams.writing(), now),
            _ => None,
        }
    }

    /// Waits until something can be done or the deadline has passed.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = Vec::new();
        let mut descriptors = Vec::new();
        let mut add = |source, descriptor, flags| {
            sources.push(source);
            descriptors.push(PollFd::from_borrowed_fd(descriptor, flags));
        };
        add(Source::Signals, self.ends.signals.as_fd(), PollFlags::IN);
        match &self.control {
            None if self.monitor_open => {
                let listener = self.ends.control.as_fd();
                add(Source::ControlListener, listener, PollFlags::IN);
            }
            None => {}
            Some(control) => {
                let socket = control.socket.as_fd();
                add(Source::Control { writable: false }, socket, PollFlags::IN);
                if self.outgoing.pending() {
                    add(Source::Control { writable: true }, socket, PollFlags::OUT);
                }
            }
        }
        if self.monitor_open {
            add(Source::Monitor, self.ends.monitor, PollFlags::IN);
        }
        self.streams.sources(|source, descriptor, flags| {
            add(Source::Stream(source), descriptor, flags);
        });

        let timeout = self.life.deadline().map(|deadline| {
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
            Source::Stream(source) => self.serve_stream(source)?,
            Source::Monitor => self.hear_monitor(now)?,
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

    /// Passes the size of the terminal on, if the command has one.
    fn resized(&self) -> Option<Action> {
        let size = (self.ends.window_size)()?;
        self.life.resized(size)
    }

    fn accept_control(&mut self) -> io::Result<()> {
        if let Some(socket) = streams::accept(self.ends.control)? {
            self.control = Some(Control {
                socket,
                incoming: Incoming::new(MAX_FRAME),
            });
        }
        Ok(())
    }

    /// Hears all that has arrived.
    fn read_control(&mut self, now: Instant) -> Option<Ending> {
        let control = self.control.as_mut()?;
        let open = control.incoming.fill(&control.socket);
        while let Some(next) = self.next_message() {
            let action = match next {
                Ok(message) => self.life.heard(message, now),
                Err(error) => killed(Err(SessionError::Protocol(error))),
            };
            let ending = self.carry_out(action);
            if ending.is_some() {
                return ending;
            }
        }
        if !open {
            self.control = None;
            self.life.control_closed(now);
        }
        None
    }

    fn next_message(&mut self) -> Option<Result<ToHost, FrameError>> {
        self.control.as_mut()?.incoming.next().transpose()
    }

    fn serve_stream(&mut self, source: streams::Source) -> io::Result<Option<Action>> {
        Ok(match self.streams.serve(source)? {
            Written::Fine => None,
            Written::Refused => self.life.output_refused(),
            Written::Failed(error) => killed(Err(error)),
        })
    }

    fn hear_monitor(&mut self, now: Instant) -> io::Result<Option<Action>> {
        match protocol::receive(self.ends.monitor) {
            Ok((ToKeeper::Running, _)) => Ok(None),
            Ok((ToKeeper::Stopped { reason }, _)) => {
                self.life.stopped(reason);
                Ok(None)
            }
            Ok((ToKeeper::Failed { message }, _)) => {
                Ok(killed(Err(SessionError::Monitor(message))))
            }
            Ok((
                ToKeeper::SnapshotProgress(_)
                | ToKeeper::SnapshotWritten(_)
                | ToKeeper::SnapshotFailed { .. },
                _,
            )) => {
                let message = "the monitor speaks of a snapshot that nobody asked for";
                Ok(killed(Err(SessionError::Monitor(message.into()))))
            }
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
}

#[cfg(test)]
mod tests;
