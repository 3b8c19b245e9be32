//! Connections of the guest to the port of streams, until they have said whose they are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use cachot_control::StreamHeader;
use zeroize::Zeroizing;

use super::frames::Incoming;

/// Most connections whose header has not arrived; further ones are turned away.
const MAX_PENDING: usize = 8;

/// Largest header, in bytes; a real one has about 40.
const MAX_HEADER: usize = 256;

/// A connection for one stream of one session.
pub struct Arrival {
    /// Whose.
    pub header: StreamHeader,
    /// The connection.
    pub socket: UnixStream,
    /// What came behind the header.
    pub first: Zeroizing<Vec<u8>>,
}

/// A descriptor that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// There is a new connection.
    Listener,
    /// A connection without a header, by its place, has something.
    Pending(usize),
}

/// A connection whose header is awaited.
struct Pending {
    socket: UnixStream,
    header: Incoming,
}

/// The listener, and the connections that have not said what they are.
pub struct Arrivals<'a> {
    listener: &'a UnixListener,
    pending: Vec<Pending>,
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

impl<'a> Arrivals<'a> {
    /// Those at this listener, which does not block.
    pub fn new(listener: &'a UnixListener) -> Self {
        Self {
            listener,
            pending: Vec::new(),
        }
    }

    /// Names all that is to be waited for. New connections are taken only where one is `expected`.
    pub fn sources<'s>(&'s self, expected: bool, mut add: impl FnMut(Source, BorrowedFd<'s>)) {
        if expected {
            add(Source::Listener, self.listener.as_fd());
        }
        for (place, pending) in self.pending.iter().enumerate() {
            add(Source::Pending(place), pending.socket.as_fd());
        }
    }

    /// Does what a source is ready for; returns a connection that has said whose it is.
    ///
    /// # Errors
    /// What the kernel said of the listener.
    pub fn serve(&mut self, source: Source) -> io::Result<Option<Arrival>> {
        match source {
            Source::Listener => {
                if let Some(socket) = accept(self.listener)?
                    && self.pending.len() < MAX_PENDING
                {
                    self.pending.push(Pending {
                        socket,
                        header: Incoming::new(MAX_HEADER),
                    });
                }
                Ok(None)
            }
            Source::Pending(place) => Ok(self.read_header(place)),
        }
    }

    /// Reads from a connection without a header; the place may be another one's by now, which does
    /// no harm, as nothing here waits.
    fn read_header(&mut self, place: usize) -> Option<Arrival> {
        let pending = self.pending.get_mut(place)?;
        let open = pending.header.fill(&pending.socket);
        match pending.header.next() {
            Ok(None) if open => None,
            Ok(Some(header)) => {
                let Pending {
                    socket,
                    header: incoming,
                } = self.pending.swap_remove(place);
                let first = Zeroizing::new(incoming.rest().to_vec());
                Some(Arrival {
                    header,
                    socket,
                    first,
                })
            }
            // Whatever it was, it is no stream.
            Ok(None) | Err(_) => {
                self.pending.swap_remove(place);
                None
            }
        }
    }
}
