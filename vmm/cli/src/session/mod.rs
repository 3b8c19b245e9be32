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

use cachot_control::{MAX_FRAME, Start, WindowSize};
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
                let action = self.serve(source)?;
                if let Some(ending) = self.carry_out(action) {
                    return Ok(ending);
                }
                if matches!(source, Source::Stream(streams::Source::Output(_))) {
                    // What else is ready is such an output too, which may not be any more.
                    break;
                }
            }
            let now = Instant::now();
            let mut action = None;
            if !self.monitor_open && self.control.is_none() && !self.life.finishing() {
                action = self.life.monitor_gone();
            } else if self.life.finishing() && self.streams.done() {
                action = self.life.output_done();
            } else if self.life.deadline().is_some_and(|deadline| deadline <= now) {
                action = self.life.expired(self.streams.writing(), now);
            }
            if let Some(ending) = self.carry_out(action) {
                return Ok(ending);
            }
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

    fn serve(&mut self, source: Source) -> io::Result<Option<Action>> {
        let now = Instant::now();
        Ok(match source {
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
            Source::Control { writable: false } => self.read_control(now),
            Source::Stream(source) => self.serve_stream(source)?,
            Source::Monitor => self.hear_monitor(now)?,
        })
    }

    fn take_signal(&mut self, now: Instant) -> io::Result<Option<Action>> {
        Ok(match self.ends.signals.next()? {
            None => None,
            Some(libc::SIGWINCH) => {
                (self.ends.window_size)().and_then(|size| self.life.resized(size))
            }
            Some(signal) => self.life.signalled(signal, now),
        })
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

    /// Hears what has arrived, up to the first thing that there is something to do about.
    fn read_control(&mut self, now: Instant) -> Option<Action> {
        let control = self.control.as_mut()?;
        let open = control.incoming.fill(&control.socket);
        loop {
            match control.incoming.next() {
                Ok(Some(message)) => {
                    let action = self.life.heard(message, now);
                    if action.is_some() {
                        return action;
                    }
                }
                Ok(None) => break,
                Err(error) => return killed(Err(SessionError::Protocol(error))),
            }
        }
        if !open {
            self.control = None;
            self.life.control_closed(now);
        }
        None
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
            Action::Send(message) => match self.outgoing.push(&message) {
                Ok(()) => None,
                Err(error) => Some(Ending {
                    result: Err(SessionError::Protocol(error)),
                    orderly: false,
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests;
