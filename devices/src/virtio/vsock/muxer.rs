//! All connections of a guest: who is who, whose turn it is, and what the host's sockets say.
//!
//! Everything the muxer waits for hangs on one epoll instance, whose descriptor is watched in turn by
//! the device thread. Sockets are edge-triggered: what an event said is kept in flags of the
//! connection, so nothing wakes anybody while the guest has no buffers or no credit.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::connection::{Connection, Drain, End};
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

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;

/// Event data of what is not an entry; entries count up from the last.
const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const WAKE: u64 = 2;
const FIRST_ENTRY: u64 = 3;

const SOCKET_EVENTS: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

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
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_armed: bool,
    wake: OwnedFd,
    entries: BTreeMap<u64, Entry>,
    by_ports: BTreeMap<Ports, u64>,
    /// Connections with something for the guest, in the order of their turns.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_entry: u64,
    next_port: u32,
    timeout: Duration,
}

impl Muxer {
    /// A muxer without connections. Clients come in over `listener`; host port `P` is the Unix socket
    /// `<prefix>_P`.
    pub(super) fn new(listener: UnixListener, prefix: OsString) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), edge)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), edge)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), edge)?;
        Ok(Self {
            listener,
            prefix,
            epoll,
            timer,
            timer_armed: false,
            wake,
            entries: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_entry: FIRST_ENTRY,
            next_port: FIRST_PORT,
            timeout: SETUP_TIMEOUT,
        })
    }

    /// Readable while [`Self::poll`] has something to do.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Makes [`Self::fd`] readable.
    pub(super) fn wake(&self) -> io::Result<()> {
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
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
        let deadline = Instant::now() + self.timeout;
        for entry in self.entries.values_mut() {
            if let Some(own) = entry.deadline() {
                *own = deadline;
            }
        }
    }

    /// Takes in what has happened on the host's side.
    pub(super) fn poll(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        ) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        for event in events {
            match event.data.u64() {
                LISTENER => self.accept(),
                TIMER => self.expire(),
                // Edge-triggered, so the counter may stay as it is.
                WAKE => {}
                id => self.host_event(id, event.flags),
            }
        }
        Ok(())
    }

    /// Whether the guest's next packet can be taken: any packet may need a reply.
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
        let data = EventData::new_u64(id);
        epoll::add(&self.epoll, entry.stream(), data, SOCKET_EVENTS).ok()?;
        self.next_entry += 1;
        self.entries.insert(id, entry);
        Some(id)
    }

    fn accept(&mut self) {
        loop {
            match host::accept(&self.listener) {
                // One too many is turned away at once: it would find no place later either.
                Ok(_) if self.entries.len() >= MAX_CONNECTIONS => {}
                Ok(stream) => {
                    let deadline = Instant::now() + self.timeout;
                    if let Some(id) = self.add(Entry::Client { stream, deadline }) {
                        self.arm(deadline);
                        self.read_client(id);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors or memory: clients wait in the listener's queue.
                Err(_) => return self.arm(Instant::now() + self.timeout),
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

    fn host_event(&mut self, id: u64, flags: EventFlags) {
        let closed = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let readable = closed || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        let writable = flags.intersects(EventFlags::OUT);
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
            let flags = if watched {
                SOCKET_EVENTS
            } else {
                SOCKET_EVENTS | EventFlags::OUT
            };
            let data = EventData::new_u64(id);
            if epoll::modify(&self.epoll, connection.stream(), data, flags).is_err() {
                self.end(id, End::Reset);
                return;
            }
        }
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(id);
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
        }
        if let Some(drain) = connection.into_drain() {
            let data = EventData::new_u64(id);
            let flags = EventFlags::OUT | EventFlags::ET;
            if epoll::modify(&self.epoll, drain.stream(), data, flags).is_ok() {
                self.entries.insert(id, Entry::Drain(drain));
            }
        }
    }

    /// Closes what has waited too long, and accepts again in case that failed.
    fn expire(&mut self) {
        self.timer_armed = false;
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
            self.end(id, End::Reset);
        }
        if let Some(deadline) = next {
            self.arm(deadline);
        }
        self.accept();
    }

    /// Sees to it that [`Self::expire`] runs at `deadline` or before; deadlines are made in order.
    fn arm(&mut self, deadline: Instant) {
        if self.timer_armed {
            return;
        }
        let after = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let after = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            // A few seconds.
            it_value: Timespec::try_from(after).expect("a timeout fits a timespec"),
        };
        self.timer_armed = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &after).is_ok();
    }
}
