//! A process whose output is timed from the moment before it is made.

use std::io::{PipeReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Which stream of a process is timed.
#[derive(Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A started process, killed and reaped when dropped.
pub struct Timed {
    pub child: Child,
    output: PipeReader,
    started: Instant,
}

impl Timed {
    /// Starts `command` with one stream in a pipe and the others at `/dev/null`.
    pub fn start(mut command: Command, stream: Stream) -> anyhow::Result<Self> {
        let (output, writer) = std::io::pipe()?;
        command.stdin(Stdio::null());
        match stream {
            Stream::Stdout => command.stdout(writer).stderr(Stdio::null()),
            Stream::Stderr => command.stdout(Stdio::null()).stderr(writer),
        };
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            child,
            output,
            started,
        })
    }

    /// Time from start until now.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the first byte of the stream.
    pub fn first_byte(&mut self) -> anyhow::Result<Duration> {
        let read = self.output.read(&mut [0])?;
        let elapsed = self.elapsed();
        ensure!(read == 1, "the process ended without a byte of output");
        Ok(elapsed)
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
