//! A keeper for tests: starts the monitor as `cachot` does, with tiny guests written in machine code.
#![allow(dead_code, reason = "each test program uses a part of this")]

pub mod forget;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cachot_vmm::protocol::{
    API_SOCKET, Config, FileRole, SOCKET_FD, ToKeeper, ToMonitor, receive, send,
};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tempfile::TempDir;

/// How long a tiny guest may take for anything, on a machine that has much else to do.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A machine of one vCPU and 32 MiB.
pub fn config() -> Config {
    Config {
        name: "test".into(),
        memory: 32 << 20,
        cpus: 1,
        cmdline: "console=ttyS0".into(),
        files: Vec::new(),
        outlive_keeper: false,
        allow_swap: true,
        commitment_key: None,
    }
}

/// `/dev/kvm`. These tests need it and fail without it; an interpreting one is good enough.
pub fn kvm() -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("these tests need /dev/kvm, readable and writable")
        .into()
}

/// The bare-metal test guest, as `guest/tiny/build.sh` leaves it.
pub fn tiny() -> Vec<u8> {
    let guest = std::env::var_os("CACHOT_GUEST").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
        PathBuf::from,
    );
    std::fs::read(guest.join("tiny")).expect("tiny is built: run guest/tiny/build.sh")
}

/// An unnamed file with these bytes, its position at the end.
pub fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    file.into()
}

/// An ELF kernel whose code is loaded to and entered at 1 MiB.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let len = code.len() as u64;
    let mut image = Vec::new();
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Executable, x86-64, version 1.
    image.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [ADDRESS, 64, 0] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    // Flags; sizes of this header and of one program header, their number; no sections.
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Loadable, all permissions.
    image.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [HEADERS, ADDRESS, ADDRESS, len, len, 0x1000] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

/// The same with a virtual entry point, and a note that names 1 MiB as its PVH entry.
pub fn pvh_elf(code: &[u8]) -> Vec<u8> {
    const NOTE_AT: u64 = 64 + 2 * 56;
    let mut image = elf(&[]);
    image[24..32].copy_from_slice(&0xffff_ffff_8000_0000_u64.to_le_bytes());
    // Two program headers; the first one's contents follow the note of 20 bytes.
    image[56] = 2;
    let len = code.len() as u64;
    image[72..80].copy_from_slice(&(NOTE_AT + 20).to_le_bytes());
    image[96..104].copy_from_slice(&len.to_le_bytes());
    image[104..112].copy_from_slice(&len.to_le_bytes());
    image.extend_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0]);
    for word in [NOTE_AT, 0, 0, 20, 20, 4] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    // XEN_ELFNOTE_PHYS32_ENTRY of "Xen".
    for word in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

/// Writes `text` to COM1.
pub fn print(text: &str) -> Vec<u8> {
    // mov dx, 0x3f8
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        // mov al, byte; out dx, al
        code.extend_from_slice(&[0xb0, byte, 0xee]);
    }
    code
}

/// Writes one byte to a port.
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Switches the machine off.
pub fn power_off() -> Vec<u8> {
    out(0x600, 0x34)
}

/// Prints `byte` for ever.
pub fn print_forever(byte: u8) -> Vec<u8> {
    // mov dx, 0x3f8; mov al, byte; out dx, al; jmp to the out
    vec![0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee, 0xeb, 0xfd]
}

/// Does nothing for ever.
pub fn spin() -> Vec<u8> {
    // pause; jmp to the pause
    vec![0xf3, 0x90, 0xeb, 0xfc]
}

/// Waits until `condition` holds.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "it does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A monitor process and this side of its socket.
pub struct Monitor {
    pub child: Child,
    pub socket: OwnedFd,
    pub dir: TempDir,
    console: File,
}

impl Monitor {
    /// Starts the process and nothing more.
    pub fn start() -> Self {
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("sockets");
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT)).expect("a time-out");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachot-vmm"));
        command
            .current_dir(&dir)
            .env_clear()
            .stdin(Stdio::null())
            .process_group(0);
        let raw = theirs.as_raw_fd();
        // SAFETY: dup2 may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if raw == SOCKET_FD {
                    libc::fcntl(raw, libc::F_SETFD, 0);
                } else if libc::dup2(raw, SOCKET_FD) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the monitor starts");
        let console = tempfile::tempfile().expect("a temporary file");
        Self {
            child,
            socket,
            dir,
            console,
        }
    }

    /// Starts a machine with this kernel file, console output kept for [`Self::console`].
    pub fn boot(config: Config, kernel: &[u8]) -> Self {
        Self::boot_with(config, vec![(FileRole::Kernel, file(kernel))])
    }

    /// Starts a machine with this kernel file and a control socket, [`API_SOCKET`] in its folder.
    pub fn boot_with_api(kernel: &[u8]) -> Self {
        let monitor = Self::start();
        let api = UnixListener::bind(monitor.dir.path().join(API_SOCKET)).expect("a listener");
        let console = monitor.console.try_clone().expect("a descriptor");
        let files = vec![
            (FileRole::Kvm, kvm()),
            (FileRole::Console, console.into()),
            (FileRole::Kernel, file(kernel)),
            (FileRole::ApiListener, api.into()),
        ];
        monitor.configure(config(), files);
        monitor.send(&ToMonitor::Boot);
        assert_eq!(monitor.message(), ToKeeper::Running);
        monitor
    }

    /// A connection to the control socket.
    pub fn api(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join(API_SOCKET)).expect("connected");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a time-out");
        stream
    }

    /// One request on a connection of its own: status code and body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let len = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
        );
        let mut stream = self.api();
        stream.write_all(text.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a header");
        let status = head
            .get(9..12)
            .and_then(|status| status.parse().ok())
            .expect("a status");
        let body = match body {
            "" => serde_json::Value::Null,
            text => serde_json::from_str(text).expect("JSON"),
        };
        (status, body)
    }

    /// Sends a signal to the monitor.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: sends a signal to our child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Starts a machine with these files, `/dev/kvm` and a console.
    pub fn boot_with(config: Config, files: Vec<(FileRole, OwnedFd)>) -> Self {
        let monitor = Self::start();
        let console = monitor.console.try_clone().expect("a descriptor");
        let mut all = vec![(FileRole::Kvm, kvm()), (FileRole::Console, console.into())];
        all.extend(files);
        monitor.configure(config, all);
        monitor.send(&ToMonitor::Boot);
        monitor
    }

    /// Sends the configuration with these descriptors.
    pub fn configure(&self, mut config: Config, files: Vec<(FileRole, OwnedFd)>) {
        config.files = files.iter().map(|(role, _)| *role).collect();
        let fds: Vec<_> = files.iter().map(|(_, fd)| fd.as_fd()).collect();
        send(self.socket.as_fd(), &ToMonitor::Configure(config), &fds).expect("sent");
    }

    /// Sends a message without descriptors.
    pub fn send(&self, message: &ToMonitor) {
        send(self.socket.as_fd(), message, &[]).expect("sent");
    }

    /// The next message from the monitor.
    pub fn message(&self) -> ToKeeper {
        receive(self.socket.as_fd()).expect("a message in time").0
    }

    /// The failure that the monitor reports instead of running.
    pub fn failure(mut self) -> String {
        let ToKeeper::Failed { message } = self.message() else {
            panic!("the monitor did not fail");
        };
        assert_eq!(self.wait().code(), Some(1));
        message
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually(|| {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("the loop has ended")
    }

    /// Console output so far.
    pub fn console(&self) -> String {
        let mut console = self.console.try_clone().expect("a descriptor");
        console.seek(SeekFrom::Start(0)).expect("a file");
        let mut text = String::new();
        console.read_to_string(&mut text).expect("text");
        text
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It has ended already where the test succeeded.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
