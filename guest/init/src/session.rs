//! A session: starts its process, relays its streams, and says how it ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_control::{Start, Stream, StreamHeader, ToHost, WindowSize};
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitStatus, kill_process, kill_process_group};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::channel::Channel;
use crate::child::{Failure, NOT_STARTED, Places, Stdio, become_workload};
use crate::link::{Interest, Transport};
use crate::sys;

/// How long the workload's descendants may be silent, once it has ended, before their hold on its
/// output is ignored.
const SILENCE: Duration = Duration::from_millis(100);

/// How long, at most, output is taken from descendants once the workload has ended.
const LINGER: Duration = Duration::from_secs(5);

/// Longest message of a failure, in bytes: it may quote the keeper's words, of any length.
const MAX_MESSAGE: usize = 4096;

/// One process that the keeper has asked for.
pub struct Session {
    id: u32,
    leader: Option<Pid>,
    /// Until the child has executed its command: closed by that, or read to its end, the reason
    /// why not.
    status: Option<(OwnedFd, Vec<u8>)>,
    terminal: Option<OwnedFd>,
    channels: Vec<Channel>,
    ended: Option<(u8, Instant)>,
    outcome: Option<ToHost>,
}

impl Session {
    /// Forks the process that becomes the session's, in the control group that `group` takes members for.
    ///
    /// # Errors
    /// What kept it from being forked; later failures are in [`Session::report`].
    pub fn start(
        start: &Start,
        group: Option<&OwnedFd>,
        places: &Places,
        now: Instant,
    ) -> Result<Self, Failure> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Failure::not_started(format!("cannot {what}: {error}"))
        };
        let ends = Ends::open(start).map_err(failed("open the workload's standard streams"))?;
        let (status, report) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(failed("open a pipe"))?;
        rustix::io::ioctl_fionbio(&status, true)
            .map_err(io::Error::from)
            .map_err(failed("set up a pipe"))?;
        let channels = ends
            .channels
            .into_iter()
            .map(|(stream, source, sink)| {
                let session = start.session;
                Channel::new(StreamHeader { session, stream }, source, sink, now)
            })
            .collect::<io::Result<_>>()
            .map_err(failed("open a pipe"))?;
        // SAFETY: PID 1 has one thread.
        let leader = match unsafe { sys::fork() }.map_err(failed("start a process"))? {
            Some(leader) => leader,
            None => {
                let Failure { code, message } = become_workload(start, &ends.child, group, places);
                let report_bytes = [&[code], message.as_bytes()].concat();
                // PID 1 reads until the end; if it does not, nobody is there to be told.
                rustix::io::write(&report, &report_bytes).ok();
                sys::exit(i32::from(code));
            }
        };
        Ok(Self {
            id: start.session,
            leader: Some(leader),
            status: Some((status, Vec::new())),
            terminal: ends.terminal,
            channels,
            ended: None,
            outcome: None,
        })
    }

    /// A session that could not be started.
    pub fn failed(id: u32, failure: Failure) -> Self {
        let Failure { code, mut message } = failure;
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self {
            id,
            leader: None,
            status: None,
            terminal: None,
            channels: Vec::new(),
            ended: None,
            outcome: Some(ToHost::Failed {
                session: id,
                code,
                message,
            }),
        }
    }

    /// The number that the keeper gave it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether it is over: the outcome is final.
    pub fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// What the host has to know about it, if anything yet.
    pub fn report(&self) -> Option<ToHost> {
        let running = || self.status.is_none();
        let started = || ToHost::Started { session: self.id };
        self.outcome.clone().or_else(|| running().then(started))
    }

    /// Moves bytes and notices changes; returns the news for the host.
    pub fn run(&mut self, transport: &impl Transport, now: Instant) -> Vec<ToHost> {
        if self.is_over() {
            return Vec::new();
        }
        let mut news = Vec::new();
        news.extend(self.read_status());
        if self.is_over() {
            return news;
        }
        for channel in &mut self.channels {
            channel.run(transport, now);
        }
        if let Some((code, at)) = self.ended {
            self.stop_lingering(at, now);
            if self.channels.iter().all(Channel::is_finished) {
                self.finish(Some(ToHost::Exited {
                    session: self.id,
                    code,
                }));
                news.extend(self.outcome.clone());
            }
        }
        news
    }

    /// Closes streams that nobody has taken for a while, and with the first the terminal; see
    /// [`sessions`](crate::sessions).
    pub fn close_unwanted(&mut self, now: Instant) {
        let before = self.channels.len();
        self.channels.retain(|channel| !channel.is_unwanted(now));
        if self.channels.len() < before {
            self.terminal = None;
        }
    }

    /// What wakes it.
    pub fn interest<'a>(&'a self, interest: &mut Interest<'a>) {
        if let Some((status, _)) = &self.status {
            interest.fd(status.as_fd(), PollFlags::IN);
        }
        for channel in &self.channels {
            channel.interest(interest);
        }
        if let Some((_, at)) = self.ended
            && self.channels.iter().any(|channel| !channel.is_finished())
        {
            if let Some(quiet) = self.quiet_since(at) {
                interest.at(quiet + SILENCE);
            }
            interest.at(at + LINGER);
        }
    }

    /// Takes note of a process that has ended.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus, now: Instant) {
        if self.leader == Some(pid) {
            self.leader = None;
            self.ended = Some((exit_code(status), now));
        }
    }

    /// Sends a signal to the workload's process group.
    pub fn signal(&self, signal: Signal) {
        let Some(leader) = self.leader else {
            return;
        };
        // Before its setsid the child is in no group of its own. It cannot be gone: it has not
        // been reaped.
        if kill_process_group(leader, signal) == Err(Errno::SRCH) {
            kill_process(leader, signal).ok();
        }
    }

    /// Gives the terminal another size; its foreground processes get SIGWINCH.
    pub fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            // The terminal stays open as long as the session, and any size is legal.
            tcsetwinsize(terminal, winsize(size)).ok();
        }
    }

    fn read_status(&mut self) -> Option<ToHost> {
        let (status, report) = self.status.as_mut()?;
        let mut buffer = [0; 512];
        loop {
            match rustix::io::read(&*status, &mut buffer) {
                Ok(0) | Err(Errno::IO) => break,
                Ok(read) => report.extend_from_slice(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        let session = self.id;
        match self.status.take()?.1.split_first() {
            None => Some(ToHost::Started { session }),
            Some((&code, message)) => {
                let message = String::from_utf8_lossy(message).into_owned();
                let failed = Self::failed(session, Failure { code, message });
                self.finish(failed.outcome);
                self.outcome.clone()
            }
        }
    }

    fn finish(&mut self, outcome: Option<ToHost>) {
        self.outcome = outcome;
        self.channels.clear();
        self.terminal = None;
    }

    fn quiet_since(&self, ended: Instant) -> Option<Instant> {
        let quiet: Option<Vec<_>> = self.channels.iter().map(Channel::quiet_since).collect();
        quiet?.into_iter().chain([ended]).max()
    }

    fn stop_lingering(&mut self, ended: Instant, now: Instant) {
        let silent = self
            .quiet_since(ended)
            .is_some_and(|at| now >= at + SILENCE);
        if silent || now >= ended + LINGER {
            self.channels.iter_mut().for_each(Channel::stop_taking);
        }
    }
}

/// The exit code that shells report.
fn exit_code(status: WaitStatus) -> u8 {
    let signalled = || status.terminating_signal().map(|signal| signal + 128);
    let code = status.exit_status().or_else(signalled);
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(NOT_STARTED)
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Both ends of the workload's standard streams.
struct Ends {
    child: Stdio,
    terminal: Option<OwnedFd>,
    /// For each connection: what it carries, where its bytes come from, and where they go.
    channels: Vec<(Stream, OwnedFd, Option<OwnedFd>)>,
}

impl Ends {
    fn open(start: &Start) -> io::Result<Self> {
        match start.terminal {
            Some(size) => Self::terminal(size, start.stdin),
            None => Self::pipes(start.stdin),
        }
    }

    fn terminal(size: WindowSize, stdin: bool) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = openpt(flags)?;
        unlockpt(&terminal)?;
        tcsetwinsize(&terminal, winsize(size))?;
        let user = ioctl_tiocgptpeer(&terminal, flags)?;
        rustix::io::ioctl_fionbio(&terminal, true)?;
        let duplicate = |fd: &OwnedFd| fd.try_clone();
        let sink = stdin.then(|| duplicate(&terminal)).transpose()?;
        Ok(Self {
            child: Stdio {
                stdin: duplicate(&user)?,
                stdout: duplicate(&user)?,
                stderr: user,
                terminal: true,
            },
            channels: vec![(Stream::Stdio, duplicate(&terminal)?, sink)],
            terminal: Some(terminal),
        })
    }

    fn pipes(stdin: bool) -> io::Result<Self> {
        let (sink, child_stdin) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            (Some(write), read)
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
            (None, null)
        };
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&stdout, true)?;
        rustix::io::ioctl_fionbio(&stderr, true)?;
        Ok(Self {
            child: Stdio {
                stdin: child_stdin,
                stdout: child_stdout,
                stderr: child_stderr,
                terminal: false,
            },
            terminal: None,
            channels: vec![
                (Stream::Stdio, stdout, sink),
                (Stream::Stderr, stderr, None),
            ],
        })
    }
}
