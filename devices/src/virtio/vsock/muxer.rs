//! All connections of a guest: who is who, whose turn it is, and what the host's sockets say.
//!
//! Packets for the guest are made when the guest has a buffer for them; until then there are flags in
//! the connections, and a list of those whose turn it is, each at most once.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::connection::{Connection, Drain, End};
use super::events::{Event, Events, FIRST_STREAM};
use super::host::{self, Line};
use super::packet::{GUEST_CID, HOST_CID, Header, Ports, TYPE_STREAM, op};

/// Connections at a time, in whatever state.
pub(super) const MAX_CONNECTIONS: usize = 1024;

/// `RST` replies to wait for guest buffers; with so many the guest's packets wait too.
const MAX_RESETS: usize = 256;

/// From a client's connection to the guest's answer.
const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Host ports of connections that clients asked for: 2^30 and up, far from those one listens on.
pub(super) const FIRST_PORT: u32 = 1 << 30;
pub(super) const LAST_PORT: u32 = (1 << 31) - 1;

/// What has a host socket.
enum Entry {
    /// A client whose `CONNECT` line has yet to come.
    Client {
        stream: UnixStream,
        deadline: Instant,
    },
    Connection(Box<Connection>),
    Drain(Drain),
}

impl Entry {
    fn stream(&self) -> &UnixStream {
        match self {
            Self::Client { stream, .. } => stream,
            Self::Connection(connection) => connection.stream(),
            Self::Drain(drain) => drain.stream(),
        }
    }

    fn deadline(&mut self) -> Option<&mut Instant> {
        match self {
            Self::Client { deadline, .. } => Some(deadline),
            Self::Connection(connection) => connection.deadline.as_mut(),
            Self::Drain(_) => None,
        }
    }
}

/// The connections of one guest.
pub(super) struct Muxer {
    listener: UnixListener,
    prefix: OsString,
    events: Events,
    entries: BTreeMap<u64, Entry>,
    by_ports: BTreeMap<Ports, u64>,
    /// Connections with something for the guest, in the order of their turns.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_entry: u64,
    next_port: u32,
}

impl Muxer {
    /// A muxer without connections. Clients come in over `listener`; host port `P` is the Unix socket
    /// `<prefix>_P`.
    pub(super) fn new(listener: UnixListener, prefix: OsString) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let events = Events::new(&listener)?;
        Ok(Self {
            listener,
            prefix,
            events,
            entries: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_entry: FIRST_STREAM,
            next_port: FIRST_PORT,
        })
    }

    /// Readable while [`Self::poll`] has something to do.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Makes [`Self::fd`] readable.
    pub(super) fn wake(&self) -> io::Result<()> {
        self.events.wake()
    }

    /// The host port that the next client's connection comes from.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Continues the numbering of a saved device: the guest may still know older connections.
    pub(super) fn set_next_port(&mut self, port: u32) {
        self.next_port = port;
    }

    /// Drops all connections, without a word to the guest.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Gives everyone who waits for the guest the whole time again: it was paused.
    pub(super) fn restart_deadlines(&mut self) {
        let deadline = Instant::now() + SETUP_TIMEOUT;
        for entry in self.entries.values_mut() {
            if let Some(own) = entry.deadline() {
                *own = deadline;
            }
        }
    }

    /// Takes in what has happened on the host's side.
    pub(super) fn poll(&mut self) -> io::Result<()> {
        for event in self.events.take()? {
            match event {
                Event::Listener => self.accept()?,
                Event::Timer => self.expire()?,
                Event::Stream {
                    id,
                    readable,
                    writable,
                    closed,
                } => self.host_event(id, readable, writable, closed),
            }
        }
        Ok(())
    }

    /// Whether the guest's next packet can be taken: almost any packet may need a reply.
    pub(super) fn can_take(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether [`Self::next_packet`] may have something.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Takes a packet from the guest; `payload` is `header.len` bytes, or `None` where the guest
    /// announced more than it sent.
    pub(super) fn take_packet<B: BitmapSlice>(
        &mut self,
        header: &Header,
        payload: Option<&[VolatileSlice<'_, B>]>,
    ) {
        if header.src_cid != GUEST_CID || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports {
            guest: header.src_port,
            host: header.dst_port,
        };
        let id = self.by_ports.get(&ports).copied();
        let entry = id.and_then(|id| Some((id, self.entries.get_mut(&id)?)));
        match entry {
            _ if header.kind != TYPE_STREAM => self.reset(ports, header),
            Some((id, Entry::Connection(connection))) => {
                let result = match payload {
                    Some(payload) => connection.handle(header, payload),
                    None => Err(End::Reset),
                };
                self.settle(id, result);
            }
            _ if header.op == op::REQUEST && payload.is_some() => self.connect(ports, header),
            _ => self.reset(ports, header),
        }
    }

    /// The next packet for the guest, connections taking turns; its payload is already in `space`.
    pub(super) fn next_packet<B: BitmapSlice>(
        &mut self,
        space: &[VolatileSlice<'_, B>],
    ) -> Option<Header> {
        loop {
            if let Some(reset) = self.resets.pop_front() {
                return Some(reset);
            }
            let id = self.ready.pop_front()?;
            let Some(Entry::Connection(connection)) = self.entries.get_mut(&id) else {
                continue;
            };
            connection.queued = false;
            let (result, packet) = match connection.next_packet(space) {
                Ok(packet) if connection.is_over() => (Err(End::Known), packet),
                Ok(packet) => (Ok(()), packet),
                Err(end) => (Err(end), None),
            };
            self.settle(id, result);
            if packet.is_some() {
                return packet;
            }
        }
    }

    /// Answers a packet that belongs to no connection; a `RST` is never answered.
    fn reset(&mut self, ports: Ports, header: &Header) {
        if header.op != op::RST {
            self.resets.push_back(Header {
                kind: header.kind,
                ..Header::to_guest(ports, op::RST)
            });
        }
    }

    fn connect(&mut self, ports: Ports, header: &Header) {
        let stream = if self.entries.len() < MAX_CONNECTIONS {
            host::connect(&self.prefix, ports.host).ok()
        } else {
            None
        };
        let added = stream.and_then(|stream| {
            let connection = Connection::from_guest(ports, stream, header);
            self.add(Entry::Connection(Box::new(connection)))
        });
        match added {
            Some(id) => {
                self.by_ports.insert(ports, id);
                self.settle(id, Ok(()));
            }
            None => self.reset(ports, header),
        }
    }

    /// Adds and watches an entry; `None` where the kernel has no room to watch it.
    fn add(&mut self, entry: Entry) -> Option<u64> {
        let id = self.next_entry;
        self.events.watch(id, entry.stream()).ok()?;
        self.next_entry += 1;
        self.entries.insert(id, entry);
        Some(id)
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match host::accept(&self.listener) {
                // One too many is turned away at once: it would find no place later either.
                Ok(_) if self.entries.len() >= MAX_CONNECTIONS => {}
                Ok(stream) => {
                    let deadline = Instant::now() + SETUP_TIMEOUT;
                    if let Some(id) = self.add(Entry::Client { stream, deadline }) {
                        self.events.arm(deadline)?;
                        self.read_client(id);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Out of descriptors or memory: clients wait in the listener's queue.
                Err(_) => return self.events.arm(Instant::now() + SETUP_TIMEOUT),
            }
        }
    }

    fn read_client(&mut self, id: u64) {
        let Some(Entry::Client { stream, deadline }) = self.entries.get(&id) else {
            return;
        };
        let deadline = *deadline;
        match host::read_line(stream) {
            Line::Incomplete => {}
            Line::Invalid => {
                self.entries.remove(&id);
            }
            Line::Connect(guest) => {
                let ports = Ports {
                    guest,
                    host: self.take_port(guest),
                };
                if let Some(Entry::Client { stream, .. }) = self.entries.remove(&id) {
                    let connection = Connection::from_host(ports, stream, deadline);
                    self.entries
                        .insert(id, Entry::Connection(Box::new(connection)));
                    self.by_ports.insert(ports, id);
                    self.settle(id, Ok(()));
                }
            }
        }
    }

    /// A host port that no connection with `guest` uses; there are a million times more than
    /// connections.
    fn take_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host >= LAST_PORT {
                FIRST_PORT
            } else {
                host + 1
            };
            if !self.by_ports.contains_key(&Ports { guest, host }) {
                return host;
            }
        }
    }

    fn host_event(&mut self, id: u64, readable: bool, writable: bool, closed: bool) {
        match self.entries.get_mut(&id) {
            Some(Entry::Client { .. }) => self.read_client(id),
            Some(Entry::Connection(connection)) => {
                connection.host_event(readable, writable, closed);
                self.settle(id, Ok(()));
            }
            Some(Entry::Drain(drain)) => {
                let over = drain.flush();
                if over {
                    self.entries.remove(&id);
                }
            }
            None => {}
        }
    }

    /// Draws the consequences of whatever a connection has just done.
    fn settle(&mut self, id: u64, result: Result<(), End>) {
        let Some(Entry::Connection(connection)) = self.entries.get_mut(&id) else {
            return;
        };
        if let Err(end) = result {
            self.end(id, end);
            return;
        }
        let watched = connection.watched_for_writing;
        if connection.wants_to_write() != watched {
            connection.watched_for_writing = !watched;
            let stream = connection.stream();
            if self.events.watch_writable(id, stream, !watched).is_err() {
                self.end(id, End::Reset);
                return;
            }
        }
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(id);
            debug_assert!(self.ready.len() <= self.entries.len());
            debug_assert!(self.by_ports.len() <= self.entries.len());
        }
    }

    /// Removes an entry; a connection with what follows for the guest and the host.
    fn end(&mut self, id: u64, end: End) {
        let Some(Entry::Connection(connection)) = self.entries.remove(&id) else {
            return;
        };
        let ports = connection.ports();
        self.by_ports.remove(&ports);
        if connection.queued {
            self.ready.retain(|&other| other != id);
        }
        if end == End::Reset {
            self.resets.push_back(Header::to_guest(ports, op::RST));
            // One for every packet that was taken, and for every connection that ended by itself.
            debug_assert!(self.resets.len() <= MAX_RESETS + MAX_CONNECTIONS);
        }
        if let Some(drain) = connection.into_drain() {
            // It is watched for room to write since there is a backlog.
            self.entries.insert(id, Entry::Drain(drain));
        }
    }

    /// Closes what has waited too long, and accepts again in case that failed.
    fn expire(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let mut next = None;
        let mut due = Vec::new();
        for (&id, entry) in &mut self.entries {
            match entry.deadline() {
                Some(deadline) if *deadline <= now => due.push(id),
                Some(deadline) => next = Some(next.map_or(*deadline, |t| (*deadline).min(t))),
                None => {}
            }
        }
        for id in due {
            // Resets for a guest that takes no packets would pile up with every client that comes and goes.
            let end = match self.entries.get(&id) {
                Some(Entry::Connection(connection)) if connection.is_unknown_to_guest() => {
                    End::Known
                }
                _ => End::Reset,
            };
            self.end(id, end);
        }
        if let Some(deadline) = next {
            self.events.arm(deadline)?;
        }
        self.accept()
    }
}
