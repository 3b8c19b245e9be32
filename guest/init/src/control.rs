//! PID 1's end of the control connection: frames without blocking.

use std::io;
use std::time::{Duration, Instant};

use cachot_control::{CONTROL_PORT, FrameError, MAX_FRAME, ToGuest, ToHost, VERSION};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use zeroize::{Zeroize, Zeroizing};

use crate::link::{Interest, Link, Transport};

/// How long the host has to close the connection after it has been told how the workload ended.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Bytes read at once; most messages are far shorter.
const READ: usize = 4096;

enum Goodbye {
    NotYet,
    Wanted,
    Said(Instant),
    Heard,
}

/// The control connection.
pub struct Control {
    link: Link,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    goodbye: Goodbye,
    alone_since: Instant,
}

impl Control {
    /// A connection that will be opened at once.
    pub fn new(now: Instant) -> Self {
        Self {
            link: Link::new(CONTROL_PORT, now),
            inbox: Vec::with_capacity(READ),
            outbox: Vec::new(),
            goodbye: Goodbye::NotYet,
            alone_since: now,
        }
    }

    /// Queues a message; without a connection it is dropped, because each new connection begins
    /// with what the host has to know.
    pub fn tell(&mut self, message: &ToHost) {
        if self.link.fd().is_some() {
            self.outbox.extend_from_slice(&encode(message));
        }
    }

    /// Half-closes the connection once everything has been sent.
    pub fn say_goodbye(&mut self) {
        if matches!(self.goodbye, Goodbye::NotYet) {
            self.goodbye = Goodbye::Wanted;
        }
    }

    /// Whether the host has closed its half after our goodbye, or has had its time for it.
    pub fn is_over(&self, now: Instant) -> bool {
        match self.goodbye {
            Goodbye::NotYet | Goodbye::Wanted => false,
            Goodbye::Said(at) => now >= at + CLOSE_WAIT,
            Goodbye::Heard => true,
        }
    }

    /// Whether the host has been told everything.
    pub fn is_flushed(&self) -> bool {
        self.link.fd().is_some() && self.outbox.is_empty()
    }

    /// Since when there has been no connection.
    pub fn alone_since(&self) -> Option<Instant> {
        self.link.fd().is_none().then_some(self.alone_since)
    }

    /// Why there is no connection.
    pub fn take_error(&mut self) -> io::Error {
        self.link.take_error()
    }

    /// Connects, sends and receives as far as possible without waiting. A new connection begins
    /// with [`ToHost::Hello`] and then `state`, all that the host has to know.
    pub fn exchange(
        &mut self,
        transport: &impl Transport,
        now: Instant,
        state: &[ToHost],
    ) -> Vec<ToGuest> {
        if self.link.advance(transport, now, || encode(&hello())) {
            self.inbox.clear();
            self.outbox = state.iter().flat_map(encode).collect();
        }
        let mut received = Vec::new();
        let exchanged = self.receive(&mut received).and_then(|()| self.send(now));
        self.lose_on_error(exchanged, now);
        received
    }

    /// Sends what was queued, as far as possible without waiting.
    pub fn flush(&mut self, now: Instant) {
        let sent = self.send(now);
        self.lose_on_error(sent, now);
    }

    fn lose_on_error(&mut self, result: io::Result<()>, now: Instant) {
        if let Err(error) = result {
            self.link.lose(now, error);
            self.alone_since = now;
            if let Goodbye::Said(_) = self.goodbye {
                self.goodbye = Goodbye::Wanted;
            }
        }
    }

    /// What wakes it.
    pub fn interest<'a>(&'a self, interest: &mut Interest<'a>) {
        self.link.interest(interest);
        if let Some(fd) = self.link.fd() {
            let send = self.outbox.is_empty();
            let flags = if send {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            interest.fd(fd, PollFlags::IN | flags);
        }
        if let Goodbye::Said(at) = self.goodbye {
            interest.at(at + CLOSE_WAIT);
        }
    }

    fn send(&mut self, now: Instant) -> io::Result<()> {
        let Some(fd) = self.link.fd() else {
            return Ok(());
        };
        while !self.outbox.is_empty() {
            match send(fd, &self.outbox, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Goodbye::Wanted = self.goodbye {
            shutdown(fd, Shutdown::Write)?;
            self.goodbye = Goodbye::Said(now);
        }
        Ok(())
    }

    fn receive(&mut self, received: &mut Vec<ToGuest>) -> io::Result<()> {
        let Some(fd) = self.link.fd() else {
            return Ok(());
        };
        // A renewal's random bytes come this way.
        let mut buffer = Zeroizing::new([0; READ]);
        loop {
            match recv(fd, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((0, _)) if matches!(self.goodbye, Goodbye::Said(_)) => {
                    self.goodbye = Goodbye::Heard;
                    return Ok(());
                }
                Ok((0, _)) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok((read, _)) => self.inbox.extend_from_slice(&buffer[..read]),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some(message) = take_frame(&mut self.inbox).map_err(io::Error::other)? {
                received.push(message);
            }
        }
    }
}

/// Takes the first frame off `inbox`, if it is whole.
fn take_frame(inbox: &mut Vec<u8>) -> Result<Option<ToGuest>, FrameError> {
    let Some(prefix) = inbox.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    if length <= MAX_FRAME && inbox.len() < length + 4 {
        return Ok(None);
    }
    let mut rest = inbox.as_slice();
    let message = cachot_control::read_frame(&mut rest)?;
    let left = rest.len();
    let used = inbox.len() - left;
    inbox.copy_within(used.., 0);
    inbox[left..].zeroize();
    inbox.truncate(left);
    Ok(Some(message))
}

fn hello() -> ToHost {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let micros = boot.tv_sec.saturating_mul(1_000_000) + boot.tv_nsec / 1000;
    ToHost::Hello {
        version: VERSION,
        uptime_us: u64::try_from(micros).unwrap_or(0),
    }
}

fn encode(message: &ToHost) -> Vec<u8> {
    let mut frame = Vec::new();
    cachot_control::write_frame(&mut frame, message)
        .expect("PID 1's messages are short, and a Vec takes every write");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(messages: &[ToGuest]) -> Vec<u8> {
        let mut wire = Vec::new();
        for message in messages {
            cachot_control::write_frame(&mut wire, message).expect("written");
        }
        wire
    }

    #[test]
    fn test_take_frame_any_cut_gives_the_same_messages() {
        let signal = |signal| ToGuest::Signal { session: 1, signal };
        let wire = framed(&[signal(2), signal(15)]);
        for cut in 0..=wire.len() {
            let mut inbox = Vec::new();
            let mut taken = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                inbox.extend_from_slice(part);
                while let Some(message) = take_frame(&mut inbox).expect("valid frames") {
                    taken.push(message);
                }
            }
            assert_eq!(taken, [signal(2), signal(15)], "cut at {cut}");
            assert!(inbox.is_empty());
        }
    }

    #[test]
    fn test_take_frame_oversized_length_is_refused_at_once() {
        let mut inbox = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(
            take_frame(&mut inbox),
            Err(FrameError::TooLong(_))
        ));
    }
}
