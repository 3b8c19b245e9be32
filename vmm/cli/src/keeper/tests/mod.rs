//! A keeper whose guest, monitor and commands are played by a thread.

mod clients;
mod copies;
mod exec;
mod session;
mod snapshots;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cachot_control::{
    Start, Stream, StreamHeader, ToGuest, ToHost, VERSION, WindowSize, read_frame, write_frame,
};
use cachot_secrets::SecretValue;
use cachot_snapshot::needles::{Needles, Value};
use cachot_vmm::protocol::{self, ChannelError, ToKeeper, ToMonitor};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    socketpair, sockopt,
};

use super::console::Console;
use super::life::{Ending, Life};
use super::request::{Answer, Exec, Request};
use super::streams::Stdio;
use super::{Ends, Keeper};
use crate::log::Log;
use crate::signals::Signals;

/// How long a played part waits for the keeper: a test that fails ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// The guest's, the monitor's and the commands' side.
struct Guest {
    folder: PathBuf,
    monitor: OwnedFd,
}

impl Guest {
    fn control(&self) -> UnixStream {
        let mut control = UnixStream::connect(self.folder.join("control")).expect("connected");
        control.set_read_timeout(Some(PATIENCE)).expect("set");
        let hello = ToHost::Hello {
            version: VERSION,
            uptime_us: 1,
        };
        write_frame(&mut control, &hello).expect("sent");
        control
    }

    /// The control connection of a guest whose workload runs.
    fn running(&self) -> UnixStream {
        let mut control = self.control();
        started(&mut control);
        control
    }

    fn stream(&self, stream: Stream) -> UnixStream {
        self.stream_of(1, stream)
    }

    fn stream_of(&self, session: u32, stream: Stream) -> UnixStream {
        let mut socket = UnixStream::connect(self.folder.join("streams")).expect("connected");
        write_frame(&mut socket, &StreamHeader { session, stream }).expect("sent");
        socket
    }

    /// Ends the workload, which has printed nothing.
    fn end(&self, control: &mut UnixStream, code: u8) {
        drop((self.stream(Stream::Stdio), self.stream(Stream::Stderr)));
        exited(control, code);
    }

    fn tell_keeper(&self, message: &ToKeeper) {
        protocol::send(self.monitor.as_fd(), message, &[]).expect("sent");
    }

    /// What the monitor is told next, and with how many descriptors.
    fn ordered(&self) -> (ToMonitor, usize) {
        let (order, files) = protocol::receive(self.monitor.as_fd()).expect("an order");
        (order, files.len())
    }

    /// Whether the monitor has been told something that it has not read.
    fn is_ordered(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut monitor = [PollFd::new(&self.monitor, PollFlags::IN)];
        poll(&mut monitor, Some(&Timespec::default())).expect("polled") > 0
    }

    /// A command that has connected.
    fn client(&self) -> TestClient {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::UNIX, kind, flags, None).expect("a socket");
        let address = SocketAddrUnix::new(self.folder.join("commands")).expect("a short path");
        connect(&socket, &address).expect("connected");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).expect("set");
        TestClient(socket)
    }
}

/// A command's connection.
struct TestClient(OwnedFd);

impl TestClient {
    fn ask(&self, request: &Request, files: &[BorrowedFd<'_>]) {
        protocol::send(self.0.as_fd(), request, files).expect("sent");
    }

    fn answer(&self) -> Answer {
        protocol::receive(self.0.as_fd()).expect("an answer").0
    }

    /// The exit code and the message of a refusal.
    fn refusal(&self) -> (u8, String) {
        match self.answer() {
            Answer::Failed { code, message } => (code, message),
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Waits for the end of the connection.
    fn closed(&self) {
        let received = protocol::receive::<Answer>(self.0.as_fd());
        assert!(
            matches!(received, Err(ChannelError::Closed)),
            "{received:?}"
        );
    }
}

/// What the guest is told next.
fn told(control: &mut UnixStream) -> ToGuest {
    read_frame(control).expect("a message")
}

fn tell(control: &mut UnixStream, message: &ToHost) {
    write_frame(control, message).expect("sent");
}

fn started(control: &mut UnixStream) {
    let start = told(control);
    assert!(matches!(start, ToGuest::Start(_)), "{start:?}");
    tell(control, &ToHost::Started { session: 1 });
}

fn exited(control: &mut UnixStream, code: u8) {
    tell(control, &ToHost::Exited { session: 1, code });
}

fn start() -> Start {
    Start {
        session: 1,
        root: None,
        argv: vec!["true".into()],
        env: Vec::new(),
        secrets: Vec::new(),
        secret_env: Vec::new(),
        user: None,
        workdir: None,
        terminal: None,
        stdin: true,
    }
}

/// A further command without standard input.
fn exec() -> Exec {
    Exec {
        argv: vec!["true".into()],
        env: Vec::new(),
        user: None,
        workdir: None,
        terminal: None,
        stdin: false,
    }
}

/// What a session came to.
struct Played {
    ending: Ending,
    output: Vec<u8>,
    error: Vec<u8>,
}

impl Played {
    fn code(&self) -> u8 {
        *self.ending.result.as_ref().expect("an exit code")
    }
}

/// What is kept.
struct Session {
    start: Start,
    life: Life,
    needles: Option<Arc<Needles>>,
}

impl Session {
    fn new(start: Start, timeout: Option<Duration>) -> Self {
        Self {
            life: Life::new(start.clone(), timeout, Instant::now()),
            start,
            needles: None,
        }
    }

    /// With these values masked.
    fn masking(values: &[&str]) -> Self {
        let value = |value: &&str| Value {
            name: "A".parse().expect("a name"),
            version: 1,
            bytes: SecretValue::copy_of(value.as_bytes()).expect("a value"),
        };
        let needles = Needles::new(values.iter().map(value).collect()).expect("needles");
        Self {
            needles: Some(Arc::new(needles)),
            ..Self::new(start(), None)
        }
    }

    /// Runs it; its other side is `guest`, and its user types `input`.
    fn play(self, input: &[u8], guest: impl FnOnce(Guest) + Send + 'static) -> Played {
        let output = tempfile::tempfile().expect("a file");
        let (ending, error) = self.play_to(input, output.as_fd(), guest);
        Played {
            ending,
            output: content(output),
            error,
        }
    }

    fn play_to(
        self,
        input: &[u8],
        output: impl AsFd,
        guest: impl FnOnce(Guest) + Send + 'static,
    ) -> (Ending, Vec<u8>) {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = |name| UnixListener::bind(folder.path().join(name)).expect("listening");
        let (control, streams) = (listen("control"), listen("streams"));
        let commands = listen_for_packets(&folder.path().join("commands"));
        let (keeper, monitor) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair");
        sockopt::set_socket_timeout(&monitor, sockopt::Timeout::Recv, Some(PATIENCE)).expect("set");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(input).expect("fits the pipe");
        drop(writer);
        let error = tempfile::tempfile().expect("a file");
        let played = Guest {
            folder: folder.path().to_owned(),
            monitor,
        };
        let signals = Signals::block().expect("blocked");
        let guest = thread::spawn(move || guest(played));
        let ends = Ends {
            monitor: keeper.as_fd(),
            control: &control,
            streams: &streams,
            commands: &commands,
            signals: &signals,
            window_size: &|| Some(WindowSize { rows: 9, cols: 9 }),
            started: &|| Ok(()),
            written: &|| {},
            workload: &self.start,
        };
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().expect("a descriptor");
        let stdio = Stdio {
            input: self.start.stdin.then(|| duplicate(reader.as_fd())),
            output: duplicate(output.as_fd()),
            error: self
                .start
                .terminal
                .is_none()
                .then(|| duplicate(error.as_fd())),
        };
        let mut keeper = Keeper::new(&ends, self.life, stdio, console()).expect("a keeper");
        if let Some(needles) = self.needles {
            keeper.mask(needles);
        }
        let (ending, _) = keeper.run().expect("no failure of its own");
        // Whoever waits for the end of a connection hears it now.
        drop(output);
        guest.join().expect("the guest's part went as written");
        (ending, content(error))
    }
}

/// Runs a session whose other side is `guest` and whose user types `input`.
fn play(input: &[u8], guest: impl FnOnce(Guest) + Send + 'static) -> Played {
    Session::new(start(), None).play(input, guest)
}

fn play_to(
    start: &Start,
    timeout: Option<Duration>,
    input: &[u8],
    output: impl AsFd,
    guest: impl FnOnce(Guest) + Send + 'static,
) -> (Ending, Vec<u8>) {
    Session::new(start.clone(), timeout).play_to(input, output, guest)
}

fn console() -> Console {
    let log = Log::new(tempfile::tempfile().expect("a file"));
    Console::new(log, false).expect("a console").0
}

fn listen_for_packets(path: &Path) -> OwnedFd {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None).expect("a socket");
    let address = SocketAddrUnix::new(path).expect("a short path");
    bind(&socket, &address).expect("a name");
    listen(&socket, 128).expect("listening");
    socket
}

fn content(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("a file");
    file.read_to_end(&mut bytes).expect("readable");
    bytes
}
