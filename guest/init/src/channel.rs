//! One stream connection of a session and the workload's descriptors behind it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_control::{STREAM_PORT, StreamHeader};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

use crate::link::{Interest, Link, Transport};
use crate::pump::{End, Pump};

/// How long nobody may take a command's stream until it is closed.
const UNWANTED_WAIT: Duration = Duration::from_secs(10);

/// The workload's output, on its way to the host.
struct Output {
    source: Option<OwnedFd>,
    pump: Pump,
    /// The host has been told, on the present connection, that there is no more.
    half_closed: bool,
}

/// The workload's input, on its way from the host.
struct Input {
    sink: OwnedFd,
    pump: Pump,
}

/// A stream connection: output up and, perhaps, input down.
pub struct Channel {
    header: StreamHeader,
    link: Link,
    output: Output,
    input: Option<Input>,
    moved_at: Instant,
}

impl Channel {
    /// A channel whose connection will be opened at once. `source` and `sink` are non-blocking.
    ///
    /// # Errors
    /// What `pipe2(2)` reports.
    pub fn new(
        header: StreamHeader,
        source: OwnedFd,
        sink: Option<OwnedFd>,
        now: Instant,
    ) -> io::Result<Self> {
        let input = match sink {
            Some(sink) => Some(Input {
                sink,
                pump: Pump::new()?,
            }),
            None => None,
        };
        Ok(Self {
            header,
            link: Link::new(STREAM_PORT, now),
            output: Output {
                source: Some(source),
                pump: Pump::new()?,
                half_closed: false,
            },
            input,
            moved_at: now,
        })
    }

    /// Moves what can be moved without waiting.
    pub fn run(&mut self, transport: &impl Transport, now: Instant) {
        let header = self.header;
        if self.link.advance(transport, now, || encode(header)) {
            self.output.half_closed = false;
        }
        self.run_output(now);
        self.run_input(now);
    }

    /// Takes no more output from the workload; what has been taken is still delivered.
    pub fn stop_taking(&mut self) {
        self.output.source = None;
        self.input = None;
    }

    /// Whether the host has not taken the connection for long enough to be sure that nobody wants it.
    pub fn is_unwanted(&self, now: Instant) -> bool {
        let lost = self.link.lost_since();
        lost.is_some_and(|since| now >= since + UNWANTED_WAIT)
    }

    /// Whether all output has been delivered and its end has been told.
    pub fn is_finished(&self) -> bool {
        self.output.source.is_none() && self.output.half_closed
    }

    /// Since when no byte has moved; `None` while bytes wait for the host.
    pub fn quiet_since(&self) -> Option<Instant> {
        (!self.output.pump.is_holding()).then_some(self.moved_at)
    }

    /// What wakes it.
    pub fn interest<'a>(&'a self, interest: &mut Interest<'a>) {
        self.link.interest(interest);
        let link = self.link.fd();
        if self.output.pump.is_holding() {
            if let Some(link) = link {
                interest.fd(link, PollFlags::OUT);
            }
        } else if let Some(source) = &self.output.source {
            interest.fd(source.as_fd(), PollFlags::IN);
        }
        if let Some(input) = &self.input {
            if input.pump.is_holding() {
                interest.fd(input.sink.as_fd(), PollFlags::OUT);
            } else if let Some(link) = link {
                interest.fd(link, PollFlags::IN);
            }
        }
    }

    fn run_output(&mut self, now: Instant) {
        let output = &mut self.output;
        let source = output.source.as_ref().map(AsFd::as_fd);
        match output.pump.run(source, self.link.fd()) {
            Ok(true) => self.moved_at = now,
            Ok(false) => {}
            // A terminal reports EIO when its last user is gone.
            Err(End::Eof | End::Source(_)) => output.source = None,
            Err(End::Sink(error)) => self.link.lose(now, error),
        }
        if output.source.is_none()
            && !output.pump.is_holding()
            && !output.half_closed
            && let Some(link) = self.link.fd()
        {
            match shutdown(link, Shutdown::Write) {
                Ok(()) => output.half_closed = true,
                Err(error) => self.link.lose(now, error),
            }
        }
    }

    fn run_input(&mut self, now: Instant) {
        let Some(input) = &mut self.input else {
            return;
        };
        let link = self.link.fd();
        match input.pump.run(link, Some(input.sink.as_fd())) {
            Ok(_) => {}
            Err(End::Source(error)) => self.link.lose(now, error),
            // The workload reads no more: the rest of its input has nowhere to go.
            Err(End::Sink(_)) => self.input = None,
            Err(End::Eof) => match link.map(still_connected) {
                Some(Err(error)) if !self.output.half_closed => self.link.lose(now, error),
                _ => {
                    end_terminal_input(&input.sink);
                    self.input = None;
                }
            },
        }
    }
}

/// Tells the two meanings of an end of file apart: the host closed its half (input has ended), or
/// the whole connection is gone (input goes on over the next one). Sending nothing fails only in
/// the second case, or where our own half is closed: then nothing is left to tell the host.
fn still_connected(link: impl AsFd) -> Result<(), Errno> {
    send(link, &[], SendFlags::NOSIGNAL).map(drop)
}

/// A terminal has no half-close: its end of input is a character, where lines are edited.
fn end_terminal_input(sink: &OwnedFd) {
    let Ok(settings) = tcgetattr(sink) else {
        return; // A pipe: closing it is enough.
    };
    if settings.local_modes.contains(LocalModes::ICANON) {
        let end = settings.special_codes[SpecialCodeIndex::VEOF];
        // A terminal whose input queue is full has a workload that does not read: nothing is lost.
        rustix::io::write(sink, &[end]).ok();
    }
}

fn encode(header: StreamHeader) -> Vec<u8> {
    let mut frame = Vec::new();
    cachot_control::write_frame(&mut frame, &header)
        .expect("a header is short, and a Vec takes every write");
    frame
}
