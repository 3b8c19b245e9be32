//! What the keeper and the monitor say to each other.
//!
//! The keeper starts the monitor in the VM's state folder (as its working directory), with an empty environment
//! and one end of a `SOCK_SEQPACKET` socket pair as descriptor [`SOCKET_FD`]. Each packet is one JSON
//! message of at most [`MAX_PACKET`] bytes, with descriptors attached (`SCM_RIGHTS`):
//!
//! 1. keeper: [`ToMonitor::Configure`] with one descriptor for each of [`Config::files`], in order;
//! 2. keeper: [`ToMonitor::Secret`] for each secret, with one sealed memfd each;
//! 3. keeper: [`ToMonitor::Boot`];
//! 4. monitor: [`ToKeeper::LeftZero`] for each secret with such copies; [`ToKeeper::Running`], later [`ToKeeper::Stopped`] and exit; or [`ToKeeper::Failed`] and exit
//!    with code 1, at any step;
//! 5. while the machine runs or is paused, keeper: [`ToMonitor::Snapshot`] with one descriptor for each of
//!    [`SNAPSHOT_FILES`], in order, and one more where the machine has a disk that it may write to; monitor: [`ToKeeper::SnapshotProgress`], any number of times, then
//!    [`ToKeeper::SnapshotWritten`] or [`ToKeeper::SnapshotFailed`]; keeper: [`ToMonitor::Release`] where the machine
//!    was to be held and is to go on.
//!
//! The monitor opens no file by name: all it may touch was opened by the keeper, with the invoking
//! user's permissions. A secret's value is in its memfd only, never in a message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use cachot_snapshot::image::{Machine, Receipt};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Descriptor number of the socket in the monitor.
pub const SOCKET_FD: RawFd = 3;

/// Largest packet, in bytes: a configuration with the longest kernel command line is a tenth of it.
pub const MAX_PACKET: usize = 64 << 10;

/// Most descriptors in one packet; the kernel's own limit is 253.
pub const MAX_FILES: usize = 16;

/// Name of the vsock listener in the state folder; the listener for guest connections to host port P
/// is this name with `_P` behind it.
pub const VSOCK_SOCKET: &str = "vsock.sock";

/// Name of the control socket in the state folder.
pub const API_SOCKET: &str = "api.sock";

/// Name of the keeper's own socket in the state folder, for other commands.
pub const KEEPER_SOCKET: &str = "keeper.sock";

/// Every file of the state folder, named here because the monitor removes them when the keeper is gone.
pub const STATE_FILES: [&str; 10] = [
    API_SOCKET,
    KEEPER_SOCKET,
    VSOCK_SOCKET,
    // Listeners for the ports of the control channel (`cachot-control`).
    "vsock.sock_1024",
    "vsock.sock_1025",
    "config.json",
    "console.log",
    "output.log",
    "keeper.log",
    "disk-0",
];

/// What the keeper tells the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToMonitor {
    /// The machine to build.
    Configure(Config),
    /// One secret to deliver.
    Secret(SecretInfo),
    /// All is said: build the machine and run it.
    Boot,
    /// Write a snapshot.
    Snapshot(SnapshotRequest),
    /// Let the machine go on that [`SnapshotRequest::hold`] keeps, or will keep, at rest.
    Release,
}

/// What the descriptors of [`ToMonitor::Snapshot`] are: new, empty files, open for reading and writing. One more
/// follows where one of [`Config::files`] is a [`FileRole::Disk`] that is not read-only: for the disk's copy.
pub const SNAPSHOT_FILES: [&str; 5] = ["memory", "state", "plan", "needles", "digests"];

/// How a snapshot is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// What to do with copies of secrets in RAM and registers.
    pub on_residue: OnResidue,
    /// Key of the commitments to values (`cachot_snapshot::image::commitments`).
    pub commitment_key: [u8; 32],
    /// Keep the machine at rest from the copy on until [`ToMonitor::Release`], or until the keeper is gone. If there is
    /// no snapshot it goes on by itself.
    pub hold: bool,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotProgress {
    /// What is being done.
    pub step: SnapshotStep,
    /// Bytes of RAM that are done, of `total`.
    pub done: u64,
    /// Bytes of RAM that may hold data.
    pub total: u64,
    /// Copies of values that were found so far.
    pub hits: u64,
    /// Distinct values that are searched for.
    pub needles: u64,
}

/// The steps of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotStep {
    /// RAM is searched and written; the machine is paused.
    Copy,
    /// What was written is searched and hashed; the machine goes on.
    Verify,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotReport {
    /// The machine's shape.
    pub machine: Machine,
    /// What was searched for, found and left out.
    pub receipt: Receipt,
    /// How long vCPUs and devices rested, in microseconds; of a machine that is held, until now.
    pub paused_us: u64,
}

/// What to do with residue in RAM and registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnResidue {
    /// Leave it out of the image, and put it back when the image is restored.
    Redact,
    /// Take no snapshot.
    Refuse,
    /// Leave it in the image, which then holds secrets. Attached pages as well.
    Keep,
}

/// What the monitor tells the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToKeeper {
    /// A machine that comes from a snapshot has copies of a secret that stay zero bytes: it has no value now, or one
    /// that does not fit into them.
    LeftZero {
        /// Name of the secret.
        secret: String,
        /// How many they are.
        copies: u64,
    },
    /// vCPUs are about to run for the first time.
    Running,
    /// The guest has ended, and all of its memory is about to be released.
    Stopped {
        /// Why it ended.
        reason: StopReason,
    },
    /// A snapshot is being taken.
    SnapshotProgress(SnapshotProgress),
    /// All parts of a snapshot are written, searched and hashed; the machine goes on, unless it is held.
    SnapshotWritten(Box<SnapshotReport>),
    /// There is no snapshot, and the files hold nothing of use; the machine goes on.
    SnapshotFailed {
        /// What failed, on what, and what to do; one line.
        message: String,
    },
    /// The machine could not be built, or broke.
    Failed {
        /// What failed, on what, and what to do; one line.
        message: String,
    },
}

/// Why a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself: what Linux does after a panic, with the command line that the keeper gives.
    Reset,
    /// A vCPU shut down (triple fault).
    TripleFault,
    /// The host asked for it, by signal or on the control socket.
    Killed,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the VM, for messages.
    pub name: String,
    /// Guest RAM in bytes; a multiple of 2 MiB.
    pub memory: u64,
    /// Number of vCPUs, from 1.
    pub cpus: u8,
    /// Kernel command line, without what the monitor adds; of no use to a machine that comes from a snapshot.
    pub cmdline: String,
    /// What the descriptors of this packet are, in order.
    pub files: Vec<FileRole>,
    /// Whether the guest may go on when the keeper is gone; otherwise the monitor removes the state
    /// folder and ends.
    pub outlive_keeper: bool,
    /// Accept a host that may swap guest RAM out.
    pub allow_swap: bool,
    /// Of a machine that comes from a snapshot of this host: the key of the image's commitments to values.
    pub commitment_key: Option<[u8; 32]>,
}

/// What a descriptor that comes with [`ToMonitor::Configure`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FileRole {
    /// `/dev/kvm`.
    Kvm,
    /// ELF or bzImage kernel, read from the beginning.
    Kernel,
    /// Initial RAM disk.
    Initrd,
    /// Image behind `/dev/vda`.
    Disk {
        /// Whether the device refuses writes.
        read_only: bool,
    },
    /// Listening Unix socket for the control API.
    ApiListener,
    /// Listening Unix socket for host connections to guest vsock ports.
    VsockListener,
    /// Where the guest's serial console is appended to: a file, or a pipe that was made non-blocking, because vCPUs
    /// write to it. What does not fit, or what nobody reads any more, is dropped.
    Console,
    /// RAM of a snapshot, to be mapped copy on write. With it come [`Self::ImageState`] and [`Self::ImagePlan`],
    /// and no kernel.
    ImageMemory,
    /// State of a snapshot's machine, checked against its manifest by the keeper, which has also compared the manifest's
    /// CPU with this host's ([`crate::host_cpu`]).
    ImageState,
    /// Redaction plan of a snapshot, likewise.
    ImagePlan,
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretInfo {
    /// Name in `/run/secrets`.
    pub name: String,
    /// Permission bits, a subset of 0444.
    pub mode: u32,
    /// Owner in the guest.
    pub uid: u32,
    /// Group in the guest.
    pub gid: u32,
}

/// Failures of [`send`] and [`receive`].
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side is gone.
    #[error("the other process has closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection between keeper and monitor failed")]
    Io(#[from] io::Error),
    /// A packet longer than [`MAX_PACKET`], or with more descriptors than [`MAX_FILES`].
    #[error("a message is over the limit of {MAX_PACKET} bytes or {MAX_FILES} descriptors")]
    TooLong,
    /// Not a message of this version.
    #[error("a message is malformed; keeper and monitor must be of the same version")]
    Malformed(#[from] serde_json::Error),
}

/// Sends one message, with `files` attached.
///
/// # Errors
/// See [`ChannelError`].
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    files: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > MAX_PACKET || files.len() > MAX_FILES {
        return Err(ChannelError::TooLong);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(ChannelError::TooLong);
    }
    let bytes = [IoSlice::new(&packet)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL)
    })
    .map_err(|error| match error {
        rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => ChannelError::Closed,
        other => ChannelError::Io(other.into()),
    })?;
    Ok(())
}

/// Receives one message and the descriptors attached to it.
///
/// # Errors
/// See [`ChannelError`].
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<(T, Vec<OwnedFd>), ChannelError> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut receive = || {
        rustix::io::retry_on_intr(|| {
            let mut bytes = [IoSliceMut::new(&mut packet)];
            rustix::net::recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
        })
    };
    let received = match receive() {
        // The other side ended without reading all that it was sent. The kernel says so first, and only
        // then hands out what that side sent before.
        Err(rustix::io::Errno::CONNRESET) => receive(),
        other => other,
    }
    .map_err(|error| ChannelError::Io(error.into()))?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    if received.bytes == 0 {
        return Err(ChannelError::Closed);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(ChannelError::TooLong);
    }
    Ok((serde_json::from_slice(&packet[..received.bytes])?, files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a socket pair")
    }

    #[test]
    fn test_send_receive_message_with_file() {
        let (keeper, monitor) = pair();
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"inside").expect("written");
        let info = SecretInfo {
            name: "A".into(),
            mode: 0o400,
            uid: 1,
            gid: 2,
        };

        send(
            keeper.as_fd(),
            &ToMonitor::Secret(info.clone()),
            &[file.as_fd()],
        )
        .expect("sent");
        let (message, mut files) = receive::<ToMonitor>(monitor.as_fd()).expect("received");

        assert_eq!(message, ToMonitor::Secret(info));
        let mut received = File::from(files.pop().expect("one descriptor"));
        assert!(files.is_empty());
        received.rewind().expect("a file");
        let mut text = String::new();
        received.read_to_string(&mut text).expect("readable");
        assert_eq!(text, "inside");
    }

    #[test]
    fn test_receive_last_words_of_a_side_that_has_not_read_all() {
        let (keeper, monitor) = pair();
        send(keeper.as_fd(), &ToMonitor::Boot, &[]).expect("sent");
        send(monitor.as_fd(), &ToKeeper::Running, &[]).expect("sent");
        drop(monitor);

        let (message, _) = receive::<ToKeeper>(keeper.as_fd()).expect("received");

        assert_eq!(message, ToKeeper::Running);
        assert!(matches!(
            receive::<ToKeeper>(keeper.as_fd()),
            Err(ChannelError::Closed)
        ));
    }

    #[test]
    fn test_receive_closed_or_malformed_is_an_error() {
        let (keeper, monitor) = pair();
        rustix::io::write(&keeper, b"{\"type\":\"surprise\"}").expect("sent");
        let message = receive::<ToMonitor>(monitor.as_fd());
        assert!(
            matches!(message, Err(ChannelError::Malformed(_))),
            "{message:?}"
        );
        drop(keeper);
        let message = receive::<ToMonitor>(monitor.as_fd());
        assert!(matches!(message, Err(ChannelError::Closed)), "{message:?}");
        assert!(matches!(
            send(monitor.as_fd(), &ToKeeper::Running, &[]),
            Err(ChannelError::Closed)
        ));
    }
}
