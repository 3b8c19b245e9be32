//! The command's standard streams: connections of the guest on one side, the user's descriptors on
//! the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use cachot_control::{Stream, StreamHeader};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::frames::Incoming;
use super::life::SessionError;
use super::relay::Relay;

/// Most connections whose header has not arrived; further ones are turned away.
const MAX_PENDING: usize = 8;

/// Largest header, in bytes; a real one has about 40.
const MAX_HEADER: usize = 256;

/// The user's standard streams.
pub struct Stdio<'a> {
    /// Input, if it is connected.
    pub input: Option<BorrowedFd<'a>>,
    /// Output.
    pub output: BorrowedFd<'a>,
    /// Error; with a terminal the command has none.
    pub error: Option<BorrowedFd<'a>>,
}

/// A descriptor that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Listener,
    /// A connection without a header, by its place.
    Pending(usize),
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
    Stdout,
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

/// A connection whose header is awaited.
struct Pending {
    socket: UnixStream,
    header: Incoming,
}

/// An output that is expected or connected.
struct Output<'a> {
    name: &'static str,
    user: BorrowedFd<'a>,
    guest: Option<UnixStream>,
    relay: Relay,
    refused: bool,
}

/// All streams of one session.
pub struct Streams<'a> {
    session: u32,
    listener: &'a UnixListener,
    pending: Vec<Pending>,
    user_input: Option<BorrowedFd<'a>>,
    input: Relay,
    stdout: Output<'a>,
    stderr: Option<Output<'a>>,
    /// The output that was written last: the other one is next.
    written: Which,
}

/// Accepts a connection, if there is one, that is not waited for.
///
/// # Errors
/// What the kernel said.
pub fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((socket, _)) => {
            socket.set_nonblocking(true)?;
            Ok(Some(socket))
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl<'a> Output<'a> {
    fn new(name: &'static str, user: BorrowedFd<'a>) -> Self {
        Self {
            name,
            user,
            guest: None,
            relay: Relay::new(b""),
            refused: false,
        }
    }

    /// Writes some of it to the user.
    fn write(&mut self) -> Written {
        if self.refused {
            self.relay.discard();
            return Written::Fine;
        }
        match self.relay.drain(self.user) {
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

impl<'a> Streams<'a> {
    /// Of the session with this number, whose connections come in at `listener`.
    pub fn new(session: u32, listener: &'a UnixListener, stdio: Stdio<'a>) -> Self {
        Self {
            session,
            listener,
            pending: Vec::new(),
            user_input: stdio.input,
            input: Relay::new(b""),
            stdout: Output::new("standard output", stdio.output),
            stderr: stdio.error.map(|user| Output::new("standard error", user)),
            written: Which::Stderr,
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

    fn outputs(&self) -> impl Iterator<Item = (Which, &Output<'a>)> {
        let stderr = self.stderr.iter().map(|output| (Which::Stderr, output));
        std::iter::once((Which::Stdout, &self.stdout)).chain(stderr)
    }

    fn output(&mut self, which: Which) -> Option<&mut Output<'a>> {
        match which {
            Which::Stdout => Some(&mut self.stdout),
            Which::Stderr => self.stderr.as_mut(),
        }
    }

    /// Whether a connection is still to come.
    fn incomplete(&self) -> bool {
        self.outputs()
            .any(|(_, output)| output.guest.is_none() && !output.relay.done())
    }

    /// Names all that is to be waited for; the user's outputs last, and of these the one first that
    /// was not written last.
    pub fn sources<'s>(&'s self, mut add: impl FnMut(Source, BorrowedFd<'s>, PollFlags)) {
        if self.incomplete() {
            add(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        }
        for (place, pending) in self.pending.iter().enumerate() {
            let socket = pending.socket.as_fd();
            add(Source::Pending(place), socket, PollFlags::IN);
        }
        if let (Some(user), Some(guest)) = (self.user_input, &self.stdout.guest) {
            if self.input.hungry() {
                add(Source::Input, user, PollFlags::IN);
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
            add(Source::Output(which), output.user, PollFlags::OUT);
        }
    }

    /// Does what a source is ready for.
    ///
    /// Between two calls with [`Source::Output`] there must be a `poll`: both outputs can be one pipe
    /// that has room for one write only.
    ///
    /// # Errors
    /// What the kernel said of the listener.
    pub fn serve(&mut self, source: Source) -> io::Result<Written> {
        match source {
            Source::Listener => self.take_connection()?,
            Source::Pending(place) => self.read_header(place),
            Source::Input => {
                if let Some(user) = self.user_input {
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
                    return Ok(output.write());
                }
            }
        }
        Ok(Written::Fine)
    }

    /// Passes the end of the input on, once everything before it is.
    fn end_input(&self) {
        if let Some(guest) = self.stdout.guest.as_ref().filter(|_| self.input.done()) {
            // A guest that is gone needs not be told.
            rustix::net::shutdown(guest, Shutdown::Write).ok();
        }
    }

    fn take_connection(&mut self) -> io::Result<()> {
        if let Some(socket) = accept(self.listener)?
            && self.pending.len() < MAX_PENDING
        {
            self.pending.push(Pending {
                socket,
                header: Incoming::new(MAX_HEADER),
            });
        }
        Ok(())
    }

    /// Reads from a connection without a header; the place may be another one's by now, which does
    /// no harm, as nothing here waits.
    fn read_header(&mut self, place: usize) {
        let Some(pending) = self.pending.get_mut(place) else {
            return;
        };
        let open = pending.header.fill(&pending.socket);
        match pending.header.next() {
            Ok(None) if open => {}
            Ok(Some(header)) => {
                let Pending {
                    socket,
                    header: incoming,
                } = self.pending.swap_remove(place);
                self.connect(header, socket, incoming.rest());
            }
            // Whatever it was, it is not a stream of this session.
            Ok(None) | Err(_) => {
                self.pending.swap_remove(place);
            }
        }
    }

    fn connect(&mut self, header: StreamHeader, socket: UnixStream, first: &[u8]) {
        if header.session != self.session {
            return;
        }
        let output = self.output(match header.stream {
            Stream::Stdio => Which::Stdout,
            Stream::Stderr => Which::Stderr,
        });
        if let Some(output) = output.filter(|output| output.guest.is_none()) {
            output.relay = Relay::new(first);
            output.guest = Some(socket);
        }
    }
}
