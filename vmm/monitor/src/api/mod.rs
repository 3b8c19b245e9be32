//! The control socket: HTTP requests over a Unix socket, served by the device thread without ever waiting.
//!
//! `resources/control-api.md` describes it for its users.

pub mod http;
mod routes;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use rustix::net::SocketFlags;

use crate::life::Life;
use http::{MAX_BODY, MAX_HEAD, Response};

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 16;

/// How long a client may take for a request, and may keep a connection that it does not use.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The listener and its connections.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    connections: BTreeMap<RawFd, Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    arrived: Vec<u8>,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    /// Whether the connection ends when all is sent.
    closing: bool,
    deadline: Instant,
}

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Read,
    Write,
    Close,
}

impl Server {
    /// Serves connections to this listener.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            connections: BTreeMap::new(),
        })
    }

    /// The listener, to be watched for reading.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// When the next connection has to be given up.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.connections
            .values()
            .map(|connection| connection.deadline)
            .min()
    }

    /// Takes the connections that wait. Connections are watched with `data`.
    pub fn accept(&mut self, data: u32, ops: &mut EventOps) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(stream) = rustix::net::accept_with(&self.listener, flags) {
            let stream = UnixStream::from(stream);
            let mut connection = Connection {
                stream,
                arrived: Vec::new(),
                unsent: Vec::new(),
                closing: false,
                deadline: Instant::now() + TIMEOUT,
            };
            if self.connections.len() >= MAX_CONNECTIONS {
                connection.answer(
                    &Response::error(503, "there are too many connections"),
                    false,
                );
                continue;
            }
            let events = Events::with_data(&connection.stream, data, EventSet::IN);
            if ops.add(events).is_ok() {
                self.connections
                    .insert(connection.stream.as_raw_fd(), connection);
            }
        }
    }

    /// Serves the connection that an event is for.
    pub fn serve(&mut self, event: Events, ops: &mut EventOps, life: &mut Life) {
        let Some(connection) = self.connections.get_mut(&event.fd()) else {
            return;
        };
        let next = connection.serve(life);
        let set = match next {
            Next::Read => EventSet::IN,
            Next::Write => EventSet::OUT,
            Next::Close => EventSet::empty(),
        };
        let watched = Events::with_data(&connection.stream, event.data(), set);
        if next == Next::Close || ops.modify(watched).is_err() {
            self.close(event.fd(), ops);
        }
    }

    /// Gives up connections whose time is over.
    pub fn expire(&mut self, ops: &mut EventOps) {
        let now = Instant::now();
        let late: Vec<RawFd> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.deadline <= now)
            .map(|(fd, _)| *fd)
            .collect();
        for fd in late {
            if let Some(connection) = self.connections.get_mut(&fd)
                && !connection.arrived.is_empty()
            {
                connection.answer(&Response::error(408, "the request took too long"), false);
            }
            self.close(fd, ops);
        }
    }

    fn close(&mut self, fd: RawFd, ops: &mut EventOps) {
        if let Some(connection) = self.connections.remove(&fd) {
            // Closing the descriptor does it as well.
            drop(ops.remove(Events::empty(&connection.stream)));
        }
    }
}

impl Connection {
    /// Sends, receives and answers as far as that goes without waiting.
    fn serve(&mut self, life: &mut Life) -> Next {
        loop {
            if !self.flush() {
                return Next::Close;
            }
            if !self.unsent.is_empty() {
                return Next::Write;
            }
            if self.closing {
                return Next::Close;
            }
            match http::parse(&self.arrived) {
                Ok(Some((request, len))) => {
                    self.arrived.drain(..len);
                    let response = routes::answer(&request, life);
                    self.answer(&response, request.keep_alive);
                    self.deadline = Instant::now() + TIMEOUT;
                }
                Ok(None) => match self.receive() {
                    Some(0) => return Next::Close,
                    Some(_) => {}
                    None => return Next::Read,
                },
                Err(response) => self.answer(&response, false),
            }
        }
    }

    fn answer(&mut self, response: &Response, keep_alive: bool) {
        self.closing = !keep_alive;
        self.unsent.extend(response.to_bytes(keep_alive));
        // Where it fails, the next attempt fails as well and closes the connection.
        self.flush();
    }

    /// Sends what is waiting; false means that the connection is broken.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// Receives some bytes: how many, 0 at the end or a failure, `None` where there are none now.
    fn receive(&mut self) -> Option<usize> {
        let mut buffer = [0; MAX_HEAD + MAX_BODY];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(len) => {
                    self.arrived.extend_from_slice(&buffer[..len]);
                    return Some(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => return Some(0),
            }
        }
    }
}
