//! The guest's serial console: a pipe from the monitor, masked, into a log of bounded size.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use cachot_snapshot::mask::Mask;
use cachot_snapshot::needles::Needles;

use rustix::io::ioctl_fionbio;

use super::relay::Relay;
use crate::log::Log;

/// The keeper's end of the console.
pub struct Console {
    pipe: Option<PipeReader>,
    relay: Relay,
    log: Log,
    /// Whether it is shown on standard error as well.
    shown: bool,
}

impl Console {
    /// A console, and the end that the monitor writes to. Neither side ever waits: a guest that prints faster than the
    /// keeper reads loses some of it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(log: Log, shown: bool) -> io::Result<(Self, PipeWriter)> {
        let (pipe, writer) = io::pipe()?;
        ioctl_fionbio(&pipe, true)?;
        ioctl_fionbio(&writer, true)?;
        let console = Self {
            pipe: Some(pipe),
            relay: Relay::default(),
            log,
            shown,
        };
        Ok((console, writer))
    }

    /// Masks what the guest prints from now on.
    pub fn mask(&mut self, needles: &Arc<Needles>) {
        self.relay.set_mask(Mask::new(Arc::clone(needles)));
    }

    /// What to wait for, until the monitor has closed its end.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes some of what there is; false if there is nothing.
    pub fn serve(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let read = self.relay.fill(pipe);
        if self.relay.ended() {
            self.pipe = None;
        }
        self.write();
        read > 0
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.relay.deadline()
    }

    /// Passes on what the mask held back for too long.
    pub fn expire(&mut self, now: Instant) {
        self.relay.expire(now);
        self.write();
    }

    /// Takes all that the monitor, which has ended, has left; gives the log back.
    pub fn finish(mut self) -> Log {
        while self.serve() {}
        self.log
    }

    fn write(&mut self) {
        let text = self.relay.pass();
        // The console is for diagnosis: a full disk or a closed terminal ends nothing.
        self.log.append(&text).ok();
        if self.shown {
            io::stderr().write_all(&text).ok();
        }
    }
}
