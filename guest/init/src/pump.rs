//! One direction of a stream: moves bytes from a source to a sink inside the kernel.
//!
//! The bytes go through a pipe with `splice(2)` and never enter this process: what a workload
//! reads or prints may be a secret. A byte that has left the source stays in the pipe until a sink
//! takes it, so a connection that breaks and comes back costs nothing that it had not accepted.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// Most bytes moved at once: the default capacity of a pipe, in bytes.
const CHUNK: usize = 64 << 10;

/// Most chunks moved in one call of [`Pump::run`], so that no stream starves the others.
const ROUNDS: usize = 16;

/// Why a pump cannot go on; the other side is still well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source has ended, and all its bytes have been delivered.
    Eof,
    /// The source failed; all the bytes it gave have been delivered.
    Source(Errno),
    /// The sink failed; bytes that it did not take are kept for the next one.
    Sink(Errno),
}

/// A pipe between a source and a sink.
#[derive(Debug)]
pub struct Pump {
    read_end: OwnedFd,
    write_end: OwnedFd,
    held: usize,
}

impl Pump {
    /// A pump that holds nothing.
    ///
    /// # Errors
    /// What `pipe2(2)` reports.
    pub fn new() -> Result<Self, Errno> {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            read_end,
            write_end,
            held: 0,
        })
    }

    /// Whether there are bytes that left the source and have not reached the sink.
    pub fn is_holding(&self) -> bool {
        self.held > 0
    }

    /// Moves what can be moved without waiting; either side may be missing for now. Returns
    /// whether anything moved.
    ///
    /// # Errors
    /// [`End`] says which side can give or take no more.
    pub fn run(
        &mut self,
        source: Option<BorrowedFd<'_>>,
        sink: Option<BorrowedFd<'_>>,
    ) -> Result<bool, End> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let mut moved = false;
        for _ in 0..ROUNDS {
            if self.held == 0 {
                let Some(source) = source else { break };
                match splice(source, None, &self.write_end, None, CHUNK, flags) {
                    Ok(0) => return Err(End::Eof),
                    Ok(taken) => self.held = taken,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(End::Source(error)),
                }
                moved = true;
            }
            let Some(sink) = sink else { break };
            match splice(&self.read_end, None, sink, None, self.held, flags) {
                Ok(given) => self.held = self.held.saturating_sub(given),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(End::Sink(error)),
            }
            moved = true;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("non-blocking");
        (ours, theirs)
    }

    #[test]
    fn test_run_socket_to_pipe_to_socket_keeps_every_byte() {
        let (from, mut writer) = pair();
        let (to, mut reader) = pair();
        let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let mut pump = Pump::new().expect("a pump");
        let sent = bytes.clone();
        let write = std::thread::spawn(move || writer.write_all(&sent).expect("written"));
        let read = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).expect("read");
            got
        });

        let end = loop {
            match pump.run(Some(from.as_fd()), Some(to.as_fd())) {
                Ok(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
                Err(end) => break end,
            }
        };
        to.shutdown(std::net::Shutdown::Write).expect("half-closed");

        write.join().expect("the writer is done");
        assert_eq!(end, End::Eof);
        assert!(read.join().expect("the reader is done") == bytes);
    }

    #[test]
    fn test_run_broken_sink_keeps_bytes_for_the_next_one() {
        let (from, mut writer) = pair();
        let (broken, peer) = pair();
        drop(peer);
        let (to, mut reader) = pair();
        writer.write_all(b"precious").expect("written");
        let mut pump = Pump::new().expect("a pump");

        let end = pump.run(Some(from.as_fd()), Some(broken.as_fd()));
        assert_eq!(end, Err(End::Sink(Errno::PIPE)));
        assert!(pump.is_holding());
        assert_eq!(pump.run(Some(from.as_fd()), None), Ok(false));
        assert_eq!(pump.run(Some(from.as_fd()), Some(to.as_fd())), Ok(true));

        let mut got = [0; 8];
        reader.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"precious");
        assert!(!pump.is_holding());
    }

    #[test]
    fn test_run_stuck_sink_stops_taking_from_the_source() {
        let (from, mut writer) = pair();
        let (to, _reader) = pair();
        writer.set_nonblocking(true).expect("non-blocking");
        let mut pump = Pump::new().expect("a pump");

        let mut accepted = 0;
        for _ in 0..1000 {
            match writer.write(&[7; 64 << 10]) {
                Ok(n) => accepted += n,
                Err(_) if pump.run(Some(from.as_fd()), Some(to.as_fd())) == Ok(false) => break,
                Err(_) => {}
            }
        }

        assert!(accepted < 16 << 20, "{accepted} bytes went nowhere");
        assert!(pump.is_holding());
    }
}
