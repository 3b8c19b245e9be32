//! A connection to the host that comes back: after a restore every vsock connection is gone, and
//! PID 1 opens new ones until the host answers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_control::HOST_CID;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::sys::VsockAddress;

/// First pause between two attempts; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// Longest pause between two attempts.
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection has to last for the host to have wanted it.
const STEADY: Duration = Duration::from_secs(1);

/// A way to open connections to the host.
pub trait Transport {
    /// Starts to connect to a host port and returns the non-blocking stream socket; it turns
    /// writable when the attempt is over.
    ///
    /// # Errors
    /// Those that are known at once.
    fn connect(&self, port: u32) -> io::Result<OwnedFd>;
}

/// Connections to the host's `AF_VSOCK` ports.
#[derive(Debug, Clone, Copy)]
pub struct Vsock;

impl Transport for Vsock {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
        let cid = HOST_CID;
        match connect(&socket, &VsockAddress { cid, port }) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }
}

enum State {
    Down(Instant),
    Connecting(OwnedFd),
    /// Since when.
    Up(OwnedFd, Instant),
}

/// A connection to one host port, opened again whenever it is lost.
pub struct Link {
    port: u32,
    state: State,
    pause: Duration,
    lost_at: Instant,
    error: Option<io::Error>,
}

impl Link {
    /// A link that will connect at once.
    pub fn new(port: u32, now: Instant) -> Self {
        Self {
            port,
            state: State::Down(now),
            pause: FIRST_PAUSE,
            lost_at: now,
            error: None,
        }
    }

    /// The connection, while there is one.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Up(fd, _) => Some(fd.as_fd()),
            State::Down(_) | State::Connecting(_) => None,
        }
    }

    /// Since when there has been no connection, or only such as the host closed at once.
    pub fn lost_since(&self) -> Option<Instant> {
        self.fd().is_none().then_some(self.lost_at)
    }

    /// Why the latest attempt or connection failed.
    pub fn take_error(&mut self) -> io::Error {
        let error = self.error.take();
        error.unwrap_or_else(|| io::ErrorKind::TimedOut.into())
    }

    /// Works on getting connected. Once it is, sends `greeting` first and returns true.
    pub fn advance(
        &mut self,
        transport: &impl Transport,
        now: Instant,
        greeting: impl FnOnce() -> Vec<u8>,
    ) -> bool {
        if let State::Down(again) = self.state
            && again <= now
        {
            match transport.connect(self.port) {
                Ok(fd) => self.state = State::Connecting(fd),
                Err(error) => self.lose(now, error),
            }
        }
        let State::Connecting(fd) = &self.state else {
            return false;
        };
        let connected = match attempt_result(fd) {
            Ok(false) => return false,
            // A few bytes always fit into a fresh connection; one without room is of no use.
            Ok(true) => send_all(fd, &greeting()),
            Err(error) => Err(error),
        };
        if let Err(error) = connected {
            self.lose(now, error);
            return false;
        }
        let down = State::Down(now);
        if let State::Connecting(fd) = std::mem::replace(&mut self.state, down) {
            self.state = State::Up(fd, now);
        }
        true
    }

    /// Gives the connection up and plans the next attempt.
    pub fn lose(&mut self, now: Instant, error: impl Into<io::Error>) {
        self.error = Some(error.into());
        if let State::Up(_, since) = self.state
            && now >= since + STEADY
        {
            self.lost_at = now;
            self.pause = FIRST_PAUSE;
        }
        self.state = State::Down(now + self.pause);
        self.pause = LAST_PAUSE.min(self.pause * 2);
    }

    /// What wakes a link that is not connected.
    pub fn interest<'a>(&'a self, interest: &mut Interest<'a>) {
        match &self.state {
            State::Down(again) => interest.at(*again),
            State::Connecting(fd) => interest.fd(fd.as_fd(), PollFlags::OUT),
            State::Up(..) => {}
        }
    }
}

/// Whether an attempt to connect is over.
fn attempt_result(fd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    if poll(&mut fds, Some(&Timespec::default()))? == 0 {
        return Ok(false);
    }
    sockopt::socket_error(fd)??;
    Ok(true)
}

fn send_all(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    match rustix::net::send(fd, bytes, rustix::net::SendFlags::NOSIGNAL)? {
        sent if sent == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// What the event loop waits for: descriptors and a time.
#[derive(Default)]
pub struct Interest<'a> {
    fds: Vec<PollFd<'a>>,
    wake: Option<Instant>,
}

impl<'a> Interest<'a> {
    /// Wake when `fd` is ready for `events`.
    pub fn fd(&mut self, fd: BorrowedFd<'a>, events: PollFlags) {
        self.fds.push(PollFd::from_borrowed_fd(fd, events));
    }

    /// Wake at `time` at the latest.
    pub fn at(&mut self, time: Instant) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    /// Waits.
    ///
    /// # Errors
    /// What `poll(2)` reports, but for interruption.
    pub fn wait(mut self, now: Instant) -> io::Result<()> {
        let timeout = self.wake.map(|wake| {
            let left = wake.saturating_duration_since(now);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut self.fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A host that accepts, and drops, every connection.
    struct Fickle;

    impl Transport for Fickle {
        fn connect(&self, _port: u32) -> io::Result<OwnedFd> {
            let (ours, theirs) = UnixStream::pair()?;
            // Kept open, so that the greeting can be sent.
            std::mem::forget(theirs);
            Ok(ours.into())
        }
    }

    fn connect(link: &mut Link, now: Instant) {
        assert!(link.advance(&Fickle, now, Vec::new), "it connects");
    }

    #[test]
    fn test_lost_since_connections_that_are_closed_at_once_do_not_count() {
        let begun = Instant::now();
        let mut link = Link::new(1, begun);
        let mut now = begun;
        for _ in 0..100 {
            now += LAST_PAUSE;
            connect(&mut link, now);
            link.lose(now, io::ErrorKind::ConnectionReset);
        }
        assert_eq!(link.lost_since(), Some(begun));
        assert_eq!(link.pause, LAST_PAUSE);

        connect(&mut link, now + LAST_PAUSE);
        assert_eq!(link.lost_since(), None);
        now += LAST_PAUSE + STEADY;
        link.lose(now, io::ErrorKind::ConnectionReset);

        assert_eq!(link.lost_since(), Some(now));
        assert!(matches!(link.state, State::Down(again) if again == now + FIRST_PAUSE));
    }
}
