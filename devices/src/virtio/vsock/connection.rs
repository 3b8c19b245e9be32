//! One connection between a guest socket and a Unix socket of the host: the state machine.
//!
//! Each direction ends on its own. The host's end of file becomes `SHUTDOWN(SEND)` once all bytes before
//! it went to the guest; the guest's `SHUTDOWN(SEND)` becomes `shutdown(2)` of the Unix socket once the
//! backlog is flushed. A connection whose guest side is over, but whose backlog is not empty, lives on
//! as a [`Drain`].

use std::io::{self, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::backlog::{Backlog, CAPACITY};
use super::host;
use super::packet::{Header, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

/// Bytes taken from the guest that it may not know of before it is told: small enough that it never
/// runs dry while the host keeps up, large enough that updates are rare.
const UPDATE_AFTER: u32 = CAPACITY / 4;

/// Why a connection is over for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The guest must be told with a `RST`.
    Reset,
    /// The guest knows.
    Known,
}

/// One connection.
pub(super) struct Connection {
    ports: Ports,
    stream: UnixStream,
    /// A host client asked for the connection and the guest has yet to accept.
    requested: bool,
    /// `REQUEST` or `RESPONSE`, until the guest has been sent it.
    greeting: Option<u16>,
    /// When a requested connection is given up.
    pub(super) deadline: Option<Instant>,
    /// Whether the muxer has the connection in its list of those with something for the guest.
    pub(super) queued: bool,
    /// Whether the muxer watches the Unix socket for room to write.
    pub(super) watched_for_writing: bool,

    /// The Unix socket may have something to read: nothing has said otherwise since the last event.
    readable: bool,
    /// Nothing more goes to the guest: the host's end of file, or the guest does not want more.
    host_done: bool,
    /// Bytes sent to the guest, those it has consumed, and the buffer it has for them.
    sent: Wrapping<u32>,
    guest_fwd_cnt: Wrapping<u32>,
    guest_buf_alloc: u32,
    credit_requested: bool,

    backlog: Backlog,
    /// The host does not read any more.
    host_deaf: bool,
    /// Bytes received from the guest, those of them passed on, and what the guest knows of the latter.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    reported: Wrapping<u32>,
    update_due: bool,

    /// `SHUTDOWN` flags: what the guest has told, what it has to be told, what it has been told.
    guest_shutdown: u32,
    shutdown_due: u32,
    shutdown_sent: u32,
}

impl Connection {
    /// A connection that the guest asked for with `request`; `stream` is connected and non-blocking.
    pub(super) fn from_guest(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, op::RESPONSE);
        connection.take_credit(request);
        connection
    }

    /// A connection that a host client asked for over `stream`, which is non-blocking.
    pub(super) fn from_host(ports: Ports, stream: UnixStream, deadline: Instant) -> Self {
        let mut connection = Self::new(ports, stream, op::REQUEST);
        connection.requested = true;
        connection.deadline = Some(deadline);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, greeting: u16) -> Self {
        Self {
            ports,
            stream,
            requested: false,
            greeting: Some(greeting),
            deadline: None,
            queued: false,
            watched_for_writing: false,
            readable: true,
            host_done: false,
            sent: Wrapping(0),
            guest_fwd_cnt: Wrapping(0),
            guest_buf_alloc: 0,
            credit_requested: false,
            backlog: Backlog::default(),
            host_deaf: false,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            reported: Wrapping(0),
            update_due: false,
            guest_shutdown: 0,
            shutdown_due: 0,
            shutdown_sent: 0,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the connection waits for the Unix socket to become writable.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the guest has not heard of the connection: it waits for a buffer to be asked in.
    pub(super) fn is_unknown_to_guest(&self) -> bool {
        self.greeting == Some(op::REQUEST)
    }

    /// Takes a packet from the guest; `payload` is `header.len` bytes.
    pub(super) fn handle<B: BitmapSlice>(
        &mut self,
        header: &Header,
        payload: &[VolatileSlice<'_, B>],
    ) -> Result<(), End> {
        self.take_credit(header);
        match header.op {
            op::RST => Err(End::Known),
            op::RESPONSE if self.requested && self.greeting.is_none() => self.establish(),
            _ if self.requested => Err(End::Reset),
            op::RW => self.receive(header.len, payload),
            op::SHUTDOWN => self.shutdown_by_guest(header.flags),
            op::CREDIT_REQUEST => {
                self.update_due = true;
                Ok(())
            }
            op::CREDIT_UPDATE => Ok(()),
            _ => Err(End::Reset),
        }
    }

    /// The Unix socket has become readable, writable, or closed at the far end.
    pub(super) fn host_event(&mut self, readable: bool, writable: bool, closed: bool) {
        self.readable |= readable;
        if writable {
            self.flush();
        }
        if closed && !self.requested {
            self.host_is_deaf();
        }
    }

    /// Whether [`Self::next_packet`] may have something.
    pub(super) fn has_packet(&self) -> bool {
        if self.requested || self.greeting.is_some() {
            return self.greeting.is_some();
        }
        self.update_due
            || self.shutdown_due & !self.shutdown_sent != 0
            || self.readable && !self.host_done && (self.credit() > 0 || !self.credit_requested)
    }

    /// The next packet for the guest; its payload is already in `space`, which is not empty.
    pub(super) fn next_packet<B: BitmapSlice>(
        &mut self,
        space: &[VolatileSlice<'_, B>],
    ) -> Result<Option<Header>, End> {
        if let Some(greeting) = self.greeting.take() {
            return Ok(Some(self.packet(greeting)));
        }
        if self.requested {
            return Ok(None);
        }
        if self.readable && !self.host_done {
            if self.credit() > 0 {
                let len = self.read_host(space)?;
                if len > 0 {
                    self.sent += len;
                    return Ok(Some(Header {
                        len,
                        ..self.packet(op::RW)
                    }));
                }
            } else if !self.credit_requested {
                self.credit_requested = true;
                return Ok(Some(self.packet(op::CREDIT_REQUEST)));
            }
        }
        if self.shutdown_due & !self.shutdown_sent != 0 {
            self.shutdown_sent |= self.shutdown_due;
            return Ok(Some(Header {
                flags: self.shutdown_sent,
                ..self.packet(op::SHUTDOWN)
            }));
        }
        Ok(self.update_due.then(|| self.packet(op::CREDIT_UPDATE)))
    }

    /// Both directions are over and the guest has been told. Its `RST` may or may not follow, so nobody
    /// waits for it.
    pub(super) fn is_over(&self) -> bool {
        self.shutdown_sent == SHUTDOWN_BOTH
    }

    /// What still has to reach the host after the guest is done: everything it sent before it said so.
    /// A guest that breaks a connection off takes the backlog with it.
    pub(super) fn into_drain(self) -> Option<Drain> {
        (self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.backlog.is_empty()).then_some(Drain {
            stream: self.stream,
            backlog: self.backlog,
        })
    }

    fn packet(&mut self, op: u16) -> Header {
        self.reported = self.forwarded;
        self.update_due = false;
        Header {
            buf_alloc: CAPACITY,
            fwd_cnt: self.forwarded.0,
            ..Header::to_guest(self.ports, op)
        }
    }

    /// Bytes the guest has room for.
    fn credit(&self) -> u32 {
        // The guest may shrink its buffer below what is on the way.
        self.guest_buf_alloc
            .saturating_sub((self.sent - self.guest_fwd_cnt).0)
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        let fwd_cnt = Wrapping(header.fwd_cnt);
        // A counter outside what is on the way is an older one (Linux fills in headers before it
        // orders packets), or nonsense; neither is news.
        if fwd_cnt - self.guest_fwd_cnt <= self.sent - self.guest_fwd_cnt {
            self.guest_fwd_cnt = fwd_cnt;
        }
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// The guest has accepted; the client learns the port its connection seems to come from.
    fn establish(&mut self) -> Result<(), End> {
        self.requested = false;
        self.deadline = None;
        let line = format!("OK {}\n", self.ports.host);
        // The socket is fresh: a line that does not fit at once never will.
        match (&self.stream).write(line.as_bytes()) {
            Ok(written) if written == line.len() => Ok(()),
            _ => Err(End::Reset),
        }
    }

    fn receive<B: BitmapSlice>(
        &mut self,
        len: u32,
        payload: &[VolatileSlice<'_, B>],
    ) -> Result<(), End> {
        let free = CAPACITY.saturating_sub((self.received - self.forwarded).0);
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || len > free {
            return Err(End::Reset);
        }
        self.received += len;
        for slice in payload {
            let mut written = 0;
            while !self.host_deaf && self.backlog.is_empty() && written < slice.len() {
                match host::write(&self.stream, slice, written) {
                    Ok(0) => break,
                    Ok(count) => {
                        written += count;
                        self.forwarded += wrapping(count);
                    }
                    Err(_) => self.host_is_deaf(),
                }
            }
            if self.host_deaf {
                self.forwarded = self.received;
                break;
            }
            // In range: no more was written than there is.
            if let (true, Ok(rest)) = (written < slice.len(), slice.offset(written)) {
                self.backlog.push(&rest);
            }
        }
        self.note_forwarded();
        Ok(())
    }

    fn flush(&mut self) {
        match self.backlog.flush_to(&self.stream) {
            Ok(count) => self.forwarded += wrapping(count),
            Err(_) => self.host_is_deaf(),
        }
        self.note_forwarded();
        self.end_writing();
    }

    fn note_forwarded(&mut self) {
        self.update_due |= (self.forwarded - self.reported).0 >= UPDATE_AFTER;
    }

    /// Tells the host of the guest's end of file once all that precedes it is written.
    fn end_writing(&self) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            // Fails only where the far end is closed already.
            drop(self.stream.shutdown(Shutdown::Write));
        }
    }

    fn host_is_deaf(&mut self) {
        self.host_deaf = true;
        self.backlog.clear();
        self.forwarded = self.received;
        self.shutdown_due |= SHUTDOWN_RECEIVE;
    }

    fn host_is_done(&mut self) {
        self.host_done = true;
        self.shutdown_due |= SHUTDOWN_SEND;
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            self.shutdown_due = SHUTDOWN_BOTH;
        }
    }

    fn shutdown_by_guest(&mut self, flags: u32) -> Result<(), End> {
        let news = flags & SHUTDOWN_BOTH & !self.guest_shutdown;
        self.guest_shutdown |= news;
        if news & SHUTDOWN_RECEIVE != 0 {
            self.host_done = true;
            host::discard_unread(&self.stream);
        }
        if news & SHUTDOWN_SEND != 0 {
            self.end_writing();
        }
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // The reply that the guest waits for ("Device Operation: Connections").
            return Err(End::Reset);
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.host_done {
            self.shutdown_due = SHUTDOWN_BOTH;
        }
        Ok(())
    }

    /// Reads from the host into `space`, no more than the guest has credit for. 0: nothing for now, or
    /// the end, which is noted.
    fn read_host<B: BitmapSlice>(&mut self, space: &[VolatileSlice<'_, B>]) -> Result<u32, End> {
        let mut left = usize::try_from(self.credit()).unwrap_or(usize::MAX);
        let mut total = 0;
        for slice in space {
            let wanted = slice.len().min(left);
            let Ok(mut target) = slice.subslice(0, wanted) else {
                break;
            };
            if wanted == 0 {
                break;
            }
            let count = match host::read(&self.stream, &mut target) {
                Ok(0) => {
                    self.host_is_done();
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                Err(_) if total == 0 => return Err(End::Reset),
                Err(_) => break,
            };
            total += count;
            left -= count;
            if count < wanted {
                break;
            }
        }
        Ok(u32::try_from(total).unwrap_or(u32::MAX))
    }
}

/// Bytes that the host has yet to read of a connection that is over for the guest.
pub(super) struct Drain {
    stream: UnixStream,
    backlog: Backlog,
}

impl Drain {
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Writes what the host takes; answers whether that was all, or the host reads no more.
    pub(super) fn flush(&mut self) -> bool {
        self.backlog.flush_to(&self.stream).is_err() || self.backlog.is_empty()
    }
}

fn wrapping(count: usize) -> Wrapping<u32> {
    Wrapping(u32::try_from(count).unwrap_or(u32::MAX))
}
