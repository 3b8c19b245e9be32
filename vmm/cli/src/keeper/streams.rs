//! A session's standard streams: connections of the guest on one side, the user's descriptors on the other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use cachot_control::Stream;
use cachot_snapshot::mask::Mask;
use cachot_snapshot::needles::Needles;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::arrivals::Arrival;
use super::life::SessionError;
use super::relay::Relay;

/// The user's standard streams.
#[derive(Debug)]
pub struct Stdio {
    /// Input, if it is connected.
    pub input: Option<OwnedFd>,
    /// Output.
    pub output: OwnedFd,
    /// Error; with a terminal the command has none.
    pub error: Option<OwnedFd>,
}

/// A descriptor that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The user's input is readable.
    Input,
    /// The guest takes input.
    GuestInput,
    /// The guest has output.
    GuestOutput(Which),
    /// The user takes output.
    Output(Which),
}

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How the user's descriptors took output.
#[derive(Debug)]
pub enum Written {
    /// Well, or there was none.
    Fine,
    /// Nobody will read it; what follows is thrown away. Said once for each output.
    Refused,
    /// Not at all, as with a full disk.
    Failed(SessionError),
}

/// An output that is expected or connected.
struct Output {
    name: &'static str,
    user: OwnedFd,
    guest: Option<UnixStream>,
    relay: Relay,
    refused: bool,
}

/// All streams of one session.
pub struct Streams {
    user_input: Option<OwnedFd>,
    input: Relay,
    stdout: Output,
    stderr: Option<Output>,
    /// The output that was written last: the other one is next.
    written: Which,
}

impl Output {
    fn new(name: &'static str, user: OwnedFd) -> Self {
        Self {
            name,
            user,
            guest: None,
            relay: Relay::default(),
            refused: false,
        }
    }

    /// Writes some of it to the user.
    fn write(&mut self) -> Written {
        if self.refused {
            self.relay.discard();
            return Written::Fine;
        }
        match self.relay.drain(&self.user) {
            Ok(()) => Written::Fine,
            Err(Errno::PIPE | Errno::CONNRESET) => {
                self.relay.discard();
                self.refused = true;
                Written::Refused
            }
            Err(errno) => Written::Failed(SessionError::Output {
                stream: self.name,
                source: errno.into(),
            }),
        }
    }
}

impl Streams {
    /// Between these ends and the guest, which is still to connect.
    pub fn new(stdio: Stdio) -> Self {
        let error = |user| Output::new("standard error", user);
        Self {
            user_input: stdio.input,
            input: Relay::default(),
            stdout: Output::new("standard output", stdio.output),
            stderr: stdio.error.map(error),
            written: Which::Stderr,
        }
    }

    /// Masks what the guest prints from now on.
    pub fn mask(&mut self, needles: &Arc<Needles>) {
        for output in std::iter::once(&mut self.stdout).chain(&mut self.stderr) {
            output.relay.set_mask(Mask::new(Arc::clone(needles)));
        }
    }

    /// Whether all output has come to its end and is written.
    pub fn done(&self) -> bool {
        self.outputs().all(|(_, output)| output.relay.done())
    }

    /// Whether output waits for the user to read it.
    pub fn writing(&self) -> bool {
        self.outputs().any(|(_, output)| output.relay.pending())
    }

    fn outputs(&self) -> impl Iterator<Item = (Which, &Output)> {
        let stderr = self.stderr.iter().map(|output| (Which::Stderr, output));
        std::iter::once((Which::Stdout, &self.stdout)).chain(stderr)
    }

    fn output(&mut self, which: Which) -> Option<&mut Output> {
        match which {
            Which::Stdout => Some(&mut self.stdout),
            Which::Stderr => self.stderr.as_mut(),
        }
    }

    /// Whether a connection is still to come.
    pub fn incomplete(&self) -> bool {
        self.outputs()
            .any(|(_, output)| output.guest.is_none() && !output.relay.done())
    }

    /// Names all that is to be waited for; the user's outputs last, and of these the one first that
    /// was not written last.
    pub fn sources<'s>(&'s self, mut add: impl FnMut(Source, BorrowedFd<'s>, PollFlags)) {
        if let (Some(user), Some(guest)) = (&self.user_input, &self.stdout.guest) {
            if self.input.hungry() {
                add(Source::Input, user.as_fd(), PollFlags::IN);
            } else if self.input.pending() {
                add(Source::GuestInput, guest.as_fd(), PollFlags::OUT);
            }
        }
        for (which, output) in self.outputs() {
            if let Some(guest) = output.guest.as_ref().filter(|_| output.relay.hungry()) {
                add(Source::GuestOutput(which), guest.as_fd(), PollFlags::IN);
            }
        }
        let mut pending: Vec<_> = self
            .outputs()
            .filter(|(_, output)| output.relay.pending())
            .collect();
        pending.sort_by_key(|(which, _)| *which == self.written);
        for (which, output) in pending {
            add(Source::Output(which), output.user.as_fd(), PollFlags::OUT);
        }
    }

    /// Does what a source is ready for.
    ///
    /// Between two calls with [`Source::Output`] there must be a `poll`: both outputs can be one pipe
    /// that has room for one write only.
    pub fn serve(&mut self, source: Source) -> Written {
        match source {
            Source::Input => {
                if let Some(user) = &self.user_input {
                    self.input.fill(user);
                    self.end_input();
                }
            }
            Source::GuestInput => {
                if let Some(guest) = &self.stdout.guest {
                    if self.input.drain(guest).is_err() {
                        // The command takes no more input.
                        self.input.close();
                    }
                    self.end_input();
                }
            }
            Source::GuestOutput(which) => {
                if let Some(output) = self.output(which)
                    && let Some(guest) = &output.guest
                {
                    output.relay.fill(guest);
                }
            }
            Source::Output(which) => {
                self.written = which;
                if let Some(output) = self.output(which) {
                    return output.write();
                }
            }
        }
        Written::Fine
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines = self.outputs().map(|(_, output)| output.relay.deadline());
        deadlines.flatten().min()
    }

    /// Passes on what masks held back for too long.
    pub fn expire(&mut self, now: Instant) {
        for output in std::iter::once(&mut self.stdout).chain(&mut self.stderr) {
            output.relay.expire(now);
        }
    }

    /// Nobody is there any more who reads output or gives input: what comes is thrown away.
    pub fn abandon(&mut self) {
        self.user_input = None;
        for output in std::iter::once(&mut self.stdout).chain(&mut self.stderr) {
            output.refused = true;
        }
    }

    /// Passes the end of the input on, once everything before it is.
    fn end_input(&self) {
        if let Some(guest) = self.stdout.guest.as_ref().filter(|_| self.input.done()) {
            // A guest that is gone needs not be told.
            rustix::net::shutdown(guest, Shutdown::Write).ok();
        }
    }

    /// Takes a connection of the guest, for a stream that has none yet.
    pub fn connect(&mut self, arrival: Arrival) {
        let output = self.output(match arrival.header.stream {
            Stream::Stdio => Which::Stdout,
            Stream::Stderr => Which::Stderr,
        });
        if let Some(output) = output.filter(|output| output.guest.is_none()) {
            output.relay.take(&arrival.first);
            output.guest = Some(arrival.socket);
        }
    }
}
