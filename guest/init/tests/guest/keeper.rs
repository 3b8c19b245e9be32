//! A keeper for tests: PID 1's event loop runs in a forked process and connects to Unix sockets.

use std::fs;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cachot_control::{
    CONTROL_PORT, Renewal, STREAM_PORT, Start, Stream, StreamHeader, ToGuest, ToHost, read_frame,
    write_frame,
};
use cachot_init::cgroup::Cgroups;
use cachot_init::child::Places;
use cachot_init::kernel::Kernel;
use cachot_init::link::Transport;
use cachot_init::supervisor::{Supervisor, SupervisorError, Surroundings};
use cachot_init::{renew, sys};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

/// Longest wait for anything in these tests: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The machine id that copies get.
pub const MACHINE_ID: &str = "fedcba9876543210fedcba9876543210";

/// Exit codes of the forked process.
pub const DONE: i32 = 0;
pub const NO_HOST: i32 = 3;
pub const BROKEN: i32 = 4;

struct Sockets(PathBuf);

impl Transport for Sockets {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = UnixStream::connect(self.0.join(port.to_string()))?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}

/// The host's side of one guest.
pub struct Keeper {
    directory: TempDir,
    control_listener: Option<UnixListener>,
    stream_listener: UnixListener,
    control: Option<UnixStream>,
    guest: Option<Pid>,
}

impl Keeper {
    /// Starts a guest that can connect.
    pub fn boot() -> Self {
        let mut keeper = Self::boot_unheard();
        keeper.listen();
        keeper
    }

    /// Starts a guest whose control groups are in a folder.
    pub fn boot_in(cgroups: &Path) -> Self {
        let mut keeper = Self::boot_deaf(Some(cgroups));
        keeper.listen();
        keeper
    }

    /// Starts a guest whose control connection nobody listens for.
    pub fn boot_unheard() -> Self {
        Self::boot_deaf(None)
    }

    fn listen(&mut self) {
        let path = self.path(&CONTROL_PORT.to_string());
        self.control_listener = Some(UnixListener::bind(path).expect("bound"));
        self.meet();
    }

    /// A path in the guest's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn boot_deaf(cgroups: Option<&Path>) -> Self {
        let root = rustix::process::geteuid().is_root();
        assert!(root, "PID 1 changes identities: run these tests as root");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(STREAM_PORT.to_string());
        let stream_listener = UnixListener::bind(path).expect("bound");
        let places = places(&directory);
        fs::create_dir(&places.secrets).expect("created");
        fs::write(&places.passwd, PASSWD).expect("written");
        fs::write(&places.group, GROUP).expect("written");
        let boot_id = directory.path().join("boot_id");
        fs::write(boot_id, "01234567-89ab-4def-8123-456789abcdef\n").expect("written");
        let transport = Sockets(directory.path().to_owned());
        // SAFETY: the child calls only code that takes no lock but the allocator's.
        let guest = unsafe { sys::fork() }.expect("forked");
        if guest.is_none() {
            // What tests in other threads hold open must end when they close it.
            // SAFETY: this process uses no descriptor that it has inherited.
            unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
            let surroundings = Surroundings {
                transport,
                change_root: |root| Err(format!("{root:?} is not for tests")),
                places,
                buttons: Vec::new(),
                cgroups: cgroups.and_then(|root| Cgroups::open(root).expect("opened")),
                renewed: renewed(directory.path()),
                kernel: Box::new(Notebook(directory.path().join("kernel"))),
            };
            sys::exit(serve(surroundings));
        }
        Self {
            directory,
            control_listener: None,
            stream_listener,
            control: None,
            guest,
        }
    }

    /// Puts a secret where secretsfs would serve it.
    pub fn deliver(&self, name: &str, value: &[u8]) {
        use std::os::unix::fs::PermissionsExt;
        let path = places(&self.directory).secrets.join(name);
        fs::write(&path, value).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("restricted");
    }

    /// A file that the workload's user may run or read.
    pub fn file(&self, name: &str, content: &str, mode: u32) -> String {
        use std::os::unix::fs::PermissionsExt;
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.directory.path(), open).expect("opened");
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        path.display().to_string()
    }

    /// Accepts the control connection and its greeting.
    pub fn meet(&mut self) {
        let listener = self.control_listener.as_ref().expect("it listens");
        self.control = Some(accept(listener));
        assert!(
            matches!(self.hear(), ToHost::Hello { version, .. } if version == cachot_control::VERSION)
        );
    }

    /// The guest's next message.
    pub fn hear(&mut self) -> ToHost {
        read_frame(self.control.as_mut().expect("connected")).expect("a message")
    }

    /// Sends the guest a message.
    pub fn tell(&mut self, message: &ToGuest) {
        write_frame(self.control.as_mut().expect("connected"), message).expect("sent");
    }

    /// Sends the session a signal.
    pub fn signal(&mut self, signal: Signal) {
        let signal = signal.as_raw();
        self.tell(&ToGuest::Signal { session: 1, signal });
    }

    /// Accepts the workload's stream connections, standard input and output first.
    pub fn streams<const N: usize>(&mut self) -> [UnixStream; N] {
        self.streams_of(1)
    }

    /// Accepts a session's stream connections, standard input and output first.
    pub fn streams_of<const N: usize>(&mut self, session: u32) -> [UnixStream; N] {
        let mut streams: Vec<_> = (0..N)
            .map(|_| {
                let mut stream = accept(&self.stream_listener);
                let header: StreamHeader = read_frame(&mut stream).expect("a header");
                assert_eq!(header.session, session);
                (header.stream == Stream::Stderr, stream)
            })
            .collect();
        streams.sort_by_key(|(is_stderr, _)| *is_stderr);
        let streams: Vec<_> = streams.into_iter().map(|(_, stream)| stream).collect();
        streams.try_into().expect("as many as were accepted")
    }

    /// What a copy gets.
    pub fn renewal() -> Renewal {
        Renewal {
            entropy: vec![7; Renewal::ENTROPY_LEN],
            realtime_ns: 1_790_000_000_123_456_789,
            hostname: "copy-1".into(),
            machine_id: MACHINE_ID.into(),
        }
    }

    /// Renews the guest; what could not be renewed.
    pub fn renew(&mut self) -> Vec<String> {
        self.tell(&ToGuest::Renew(Self::renewal()));
        match self.hear() {
            ToHost::Renewed { failures, .. } => failures,
            other => panic!("{other:?} is no answer"),
        }
    }

    /// Refuses stream connections from now on.
    pub fn stop_taking_streams(&mut self) {
        fs::remove_file(self.path(&STREAM_PORT.to_string())).expect("removed");
    }

    /// Breaks the control connection and refuses others.
    pub fn hang_up_for_good(&mut self) {
        fs::remove_file(self.path(&CONTROL_PORT.to_string())).expect("removed");
        self.hang_up();
    }

    /// Takes control connections again.
    pub fn listen_again(&mut self) {
        self.listen();
    }

    /// Breaks the control connection.
    pub fn hang_up(&mut self) {
        self.control = None;
    }

    /// Starts a session that must run.
    pub fn start(&mut self, start: Start) {
        let session = start.session;
        self.tell(&ToGuest::Start(start));
        assert_eq!(self.hear(), ToHost::Started { session });
    }

    /// Starts a session that must fail; its code and message.
    pub fn refusal(&mut self, start: Start) -> (u8, String) {
        let number = start.session;
        self.tell(&ToGuest::Start(start));
        match self.hear() {
            ToHost::Failed {
                session,
                code,
                message,
            } if session == number => (code, message),
            other => panic!("{other:?} instead of a failure"),
        }
    }

    /// Runs a workload with `input` as its standard input, to its end.
    pub fn run(mut self, start: Start, input: &[u8]) -> Ran {
        let terminal = start.terminal.is_some();
        self.start(start);
        let (stdio, stderr) = if terminal {
            let [stdio] = self.streams();
            (stdio, None)
        } else {
            let [stdio, stderr] = self.streams();
            (stdio, Some(stderr))
        };
        let writer = stdio.try_clone().expect("cloned");
        let (stdout, stderr) = thread::scope(|scope| {
            let stderr = stderr.map(|stderr| scope.spawn(|| drain(stderr)));
            let stdout = scope.spawn(|| drain(stdio));
            io::Write::write_all(&mut &writer, input).expect("sent");
            writer.shutdown(Shutdown::Write).expect("half-closed");
            let stderr = stderr.map_or(Vec::new(), |stderr| stderr.join().expect("read"));
            (stdout.join().expect("read"), stderr)
        });
        Ran {
            code: self.expect_exit(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Starts a workload that must fail; its code and message.
    pub fn fail(mut self, start: Start) -> (u8, String) {
        let refusal = self.refusal(start);
        self.close();
        refusal
    }

    /// The exit code that the guest reports last.
    pub fn expect_exit(mut self) -> u8 {
        match self.hear() {
            ToHost::Exited { session: 1, code } => {
                self.close();
                code
            }
            other => panic!("{other:?} instead of an exit code"),
        }
    }

    /// The guest half-closes, we close, and it is done.
    fn close(&mut self) {
        let mut control = self.control.take().expect("connected");
        let end = control.read(&mut [0]).expect("readable");
        assert_eq!(end, 0, "the guest says nothing after the outcome");
        drop(control);
        assert_eq!(self.wait(), DONE);
    }

    /// The forked process.
    pub fn guest(&self) -> Pid {
        self.guest.expect("it has not been waited for")
    }

    /// Waits for the forked process; its exit code.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some((_, status)) = waitpid(self.guest, WaitOptions::NOHANG).expect("waited") {
                self.guest = None;
                return status.exit_status().expect("it exits");
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the guest does not end");
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(guest) = self.guest {
            kill_process(guest, Signal::KILL).ok();
            waitpid(Some(guest), WaitOptions::empty()).ok();
        }
    }
}

/// What a workload left behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub code: u8,
    pub stdout: String,
    pub stderr: String,
}

/// A workload without anything special.
pub fn command(argv: &[&str]) -> Start {
    Start {
        session: 1,
        root: None,
        argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
        env: Vec::new(),
        secrets: Vec::new(),
        secret_env: Vec::new(),
        user: None,
        workdir: None,
        terminal: None,
        stdin: true,
    }
}

/// A shell script as workload.
pub fn script(text: &str) -> Start {
    command(&["sh", "-c", text])
}

/// A shell script as a further command.
pub fn further(session: u32, text: &str) -> Start {
    Start {
        session,
        ..script(text)
    }
}

/// Reads until `what` has come.
pub fn expect(stream: &mut impl Read, what: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(what) {
        let mut byte = [0];
        let read = stream.read(&mut byte).expect("readable");
        assert_eq!(
            read,
            1,
            "{what:?} is not in {:?}",
            String::from_utf8_lossy(&seen)
        );
        seen.extend(byte);
    }
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: it never is");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Reads to the end.
pub fn drain(mut stream: UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("read");
    all
}

const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\napp:x:4321:4321::/nonexistent:/bin/sh\n";
const GROUP: &str = "root:x:0:\nextra:x:4400:app\n";

fn places(directory: &TempDir) -> Places {
    Places {
        secrets: directory.path().join("secrets"),
        passwd: directory.path().join("passwd"),
        group: directory.path().join("group"),
    }
}

/// Where the things are that a copy renews.
fn renewed(directory: &Path) -> renew::Places {
    renew::Places {
        machine_id: directory.join("machine-id"),
        ssh: directory.join("ssh"),
        boot_id: directory.join("boot_id"),
        run: directory.join("run"),
        programs: vec![directory.join("bin"), "/usr/bin".into()],
    }
}

/// A kernel that writes down what it is asked for.
struct Notebook(PathBuf);

impl Notebook {
    fn note(&self, line: &str) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(&self.0)?;
        io::Write::write_all(&mut file, format!("{line}\n").as_bytes())
    }
}

impl Kernel for Notebook {
    fn add_entropy(&self, seed: &[u8]) -> io::Result<()> {
        self.note(&format!("entropy {} {}", seed.len(), seed[0]))
    }

    fn set_clock(&self, since_epoch: Duration) -> io::Result<()> {
        self.note(&format!("clock {}", since_epoch.as_nanos()))
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        self.note(&format!("hostname {name}"))
    }

    fn bind_mount(&self, file: &Path, over: &Path) -> io::Result<()> {
        // A hard link shares the inode, as a bind mount does.
        fs::remove_file(over)?;
        fs::hard_link(file, over)?;
        let name = over.file_name().unwrap_or_default();
        self.note(&format!("mount {}", name.display()))
    }
}

fn serve(surroundings: Surroundings<Sockets>) -> i32 {
    // Orphans come to the real PID 1 by themselves.
    let subreaper = Some(rustix::process::getpid());
    if rustix::process::set_child_subreaper(subreaper).is_err() {
        return BROKEN;
    }
    let supervisor = Supervisor::new(surroundings);
    match supervisor.and_then(Supervisor::run) {
        Ok(()) => DONE,
        Err(SupervisorError::NoHost { .. }) => NO_HOST,
        Err(SupervisorError::System { .. }) => BROKEN,
    }
}

fn accept(listener: &UnixListener) -> UnixStream {
    let patience = Timespec::try_from(PATIENCE).expect("it fits");
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "nobody connects");
    let (stream, _) = listener.accept().expect("accepted");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.set_write_timeout(Some(PATIENCE)).expect("set");
    stream
}
