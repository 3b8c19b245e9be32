//! What the muxer waits for: host sockets, a timer, and its own wish to go on, behind one descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;

/// Event data of what is not a stream; streams are numbered from the last one on.
const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const WAKE: u64 = 2;
pub(super) const FIRST_STREAM: u64 = 3;

/// Edge-triggered throughout: what an event said is kept by its receiver, so that nothing wakes the
/// device thread again while the guest has no buffers or no credit.
const READABLE: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);
const READABLE_OR_WRITABLE: EventFlags = READABLE.union(EventFlags::OUT);

const ZERO: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A client may be waiting to be accepted.
    Listener,
    /// The time of [`Events::arm`] has come.
    Timer,
    /// The state of a stream has changed.
    Stream {
        id: u64,
        readable: bool,
        writable: bool,
        /// Both directions are over.
        closed: bool,
    },
}

/// The descriptors; an epoll instance holds the others.
pub(super) struct Events {
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_armed: bool,
    wake: OwnedFd,
}

impl Events {
    pub(super) fn new(listener: &UnixListener) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, listener, EventData::new_u64(LISTENER), READABLE)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), READABLE)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), READABLE)?;
        Ok(Self {
            epoll,
            timer,
            timer_armed: false,
            wake,
        })
    }

    /// Readable while [`Self::take`] has something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Makes [`Self::fd`] readable.
    pub(super) fn wake(&self) -> io::Result<()> {
        // Nobody reads the counter: it takes centuries to fill.
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Watches a stream until it is closed.
    pub(super) fn watch(&self, id: u64, stream: &UnixStream) -> io::Result<()> {
        epoll::add(&self.epoll, stream, EventData::new_u64(id), READABLE)?;
        Ok(())
    }

    /// Watches a stream for room to write, too, or no longer.
    pub(super) fn watch_writable(
        &self,
        id: u64,
        stream: &UnixStream,
        writable: bool,
    ) -> io::Result<()> {
        let flags = if writable {
            READABLE_OR_WRITABLE
        } else {
            READABLE
        };
        epoll::modify(&self.epoll, stream, EventData::new_u64(id), flags)?;
        Ok(())
    }

    /// Sees to it that there is a [`Event::Timer`] at `deadline` or before.
    pub(super) fn arm(&mut self, deadline: Instant) -> io::Result<()> {
        if self.timer_armed {
            // Every deadline is the same time after its making, so the first is the earliest.
            return Ok(());
        }
        let after = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let timer = Itimerspec {
            it_interval: ZERO,
            it_value: Timespec::try_from(after).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        self.timer_armed = true;
        Ok(())
    }

    /// What has happened since the last call, or part of it.
    pub(super) fn take(&mut self) -> io::Result<Vec<Event>> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, room, Some(&ZERO)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events
            .iter()
            .filter_map(|event| self.event(event))
            .collect())
    }

    fn event(&mut self, event: &epoll::Event) -> Option<Event> {
        let (data, flags) = (event.data, event.flags);
        match data.u64() {
            LISTENER => Some(Event::Listener),
            TIMER => {
                self.timer_armed = false;
                Some(Event::Timer)
            }
            WAKE => None,
            id => {
                let closed = flags.intersects(EventFlags::HUP | EventFlags::ERR);
                Some(Event::Stream {
                    id,
                    readable: closed || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                    writable: flags.intersects(EventFlags::OUT),
                    closed,
                })
            }
        }
    }
}
