//! The control channel: what the keeper and PID 1 of the guest say to each other over vsock.
//!
//! The guest connects, so nobody has to poll while it boots:
//!
//! | host port | connection | carries |
//! |---|---|---|
//! | [`CONTROL_PORT`] | one at a time | frames: [`ToHost`] up, [`ToGuest`] down |
//! | [`STREAM_PORT`] | two a session | a [`StreamHeader`] frame, then raw bytes |
//!
//! The first [`ToGuest::Start`] is the workload, whose end is the guest's; later ones are further commands, each a
//! session of its own. A command is forgotten, and its number is free, once the host has been told how it ended. It
//! does not outlive who has asked for it: a stream that nobody accepts for ten seconds is closed, and commands are
//! killed once there has been no control connection for half a minute.
//!
//! A frame is a little-endian `u32` length (at most [`MAX_FRAME`] bytes) and that many bytes of
//! JSON. Raw streams get their back-pressure from vsock credit and their end of file from a
//! half-closed connection: a full stdin never delays a signal.
//!
//! A connection that breaks is opened again by the guest, as after a restore. A new control
//! connection begins with [`ToHost::Hello`] and, once there are sessions, the latest news of each:
//! [`ToHost::Started`], [`ToHost::Exited`] or [`ToHost::Failed`]. After one of the last two of the workload the guest
//! half-closes, waits shortly for the host to close, and switches off.
//!
//! A guest that was restored does not know it: the keeper answers its hello with [`ToGuest::Renew`].
//!
//! No value of a secret crosses this channel. [`Start::secret_env`] names the secrets that the
//! workload wants exported; the child that becomes the workload reads them from `/run/secrets`.

use std::fmt;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the messages below; [`ToHost::Hello`] carries it and the keeper refuses another one.
pub const VERSION: u32 = 2;

/// Context id of the host in vsock addresses (`VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;

/// Host port of the control connection.
pub const CONTROL_PORT: u32 = 1024;

/// Host port of stream connections.
pub const STREAM_PORT: u32 = 1025;

/// A program that PID 1 puts into every guest: it answers git with `$GIT_USERNAME` (default `x-access-token`) and the
/// secret `GIT_TOKEN`.
pub const GIT_ASKPASS: &str = "/run/git-askpass";

/// Largest frame, in bytes: an argument vector and an environment of the size Linux accepts by
/// default (a quarter of an 8 MiB stack), with room for JSON's escapes.
pub const MAX_FRAME: usize = 4 << 20;

/// What PID 1 tells the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToHost {
    /// First frame of the control connection.
    Hello {
        /// [`VERSION`] of the guest.
        version: u32,
        /// Time since the guest kernel started, in microseconds (`CLOCK_BOOTTIME`).
        uptime_us: u64,
    },
    /// The session's process runs.
    Started {
        /// [`Start::session`].
        session: u32,
    },
    /// The session's process has ended and its output has been sent to the end.
    Exited {
        /// [`Start::session`].
        session: u32,
        /// Exit code as shells report it: 128+n for death by signal n.
        code: u8,
    },
    /// The session could not be started.
    Failed {
        /// [`Start::session`].
        session: u32,
        /// 127 where the command was not found, 126 where it could not be run, 125 otherwise.
        code: u8,
        /// What failed, on what, and what to do.
        message: String,
    },
    /// Answer to [`ToGuest::Freeze`].
    Frozen {
        /// Why the workload goes on all the same: one line.
        failure: Option<String>,
    },
    /// Answer to [`ToGuest::Renew`].
    Renewed {
        /// What could not be renewed, a line each; none is success. The workload stays frozen if there is one
        /// and it was.
        failures: Vec<String>,
        /// Whether the workload was started, in the guest that this is a copy of.
        workload: bool,
    },
}

/// What the keeper tells PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToGuest {
    /// Start the workload, or, once there is one, another command. Refused, with [`ToHost::Failed`], if its number
    /// is in use, 64 commands run, or the guest shuts down; it waits while the workload is frozen.
    Start(Start),
    /// The terminal of a session has another size.
    WindowSize {
        /// [`Start::session`].
        session: u32,
        /// The new size.
        size: WindowSize,
    },
    /// Send a signal to a session's process group.
    Signal {
        /// [`Start::session`].
        session: u32,
        /// Linux signal number (x86-64).
        signal: i32,
    },
    /// Keep the workload, all it has started, and further commands from running, until [`Self::Thaw`] or [`Self::Renew`]; answered
    /// with [`ToHost::Frozen`].
    Freeze,
    /// Let the workload go on.
    Thaw,
    /// This guest is a copy of another one: become one of its own, forget all sessions but the workload's, whose
    /// keepers are not here, and let the workload go on. Answered with [`ToHost::Renewed`].
    Renew(Renewal),
}

/// What a copy of a guest must not have in common with its other copies.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// Random bytes, [`Renewal::ENTROPY_LEN`] of them, for the kernel's generator.
    pub entropy: Vec<u8>,
    /// Time of day, in nanoseconds since 1970-01-01 (UTC, without leap seconds).
    pub realtime_ns: u64,
    /// Name of the host that it is now.
    pub hostname: String,
    /// New content of `/etc/machine-id`, 32 hexadecimal digits, where the root file system has one.
    pub machine_id: String,
}

impl Renewal {
    /// Bytes of [`Self::entropy`]: two seeds of the kernel's generator.
    pub const ENTROPY_LEN: usize = 64;
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal")
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}

/// One process to run in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Number chosen by the keeper; stream headers and later messages repeat it.
    pub session: u32,
    /// Root file system to change into first; `None` keeps the root that is there: the initramfs, or the
    /// workload's.
    pub root: Option<Root>,
    /// Command and arguments; never empty. Looked up in the `PATH` of the resulting environment.
    pub argv: Vec<String>,
    /// Explicit variables; they win over secrets, which win over PID 1's defaults.
    pub env: Vec<(String, String)>,
    /// Names of all secrets of this guest: one that is not in `/run/secrets` keeps the process from starting.
    pub secrets: Vec<String>,
    /// Names of secrets that are exported to the process as variables of the same name.
    pub secret_env: Vec<String>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID`, looked up in the guest; `None` is root.
    pub user: Option<String>,
    /// Working directory; `None` is the user's home directory, or `/` if there is none.
    pub workdir: Option<String>,
    /// A pseudo-terminal of this size instead of three pipes.
    pub terminal: Option<WindowSize>,
    /// Whether standard input is connected; `/dev/null` otherwise.
    pub stdin: bool,
}

/// How the block device `/dev/vda` becomes the root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// Mounted for writing.
    Writable,
    /// Mounted read-only.
    ReadOnly,
    /// Mounted read-only under an overlay in memory.
    Overlay,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// First frame of a stream connection, sent by the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamHeader {
    /// [`Start::session`].
    pub session: u32,
    /// What the bytes after the header are.
    pub stream: Stream,
}

/// The two stream connections of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard input towards the guest and standard output towards the host; with a terminal, its
    /// two directions.
    Stdio,
    /// Standard error towards the host; absent with a terminal.
    Stderr,
}

/// Failures of [`read_frame`] and [`write_frame`].
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection ended between two frames.
    #[error("the control connection was closed")]
    Closed,
    /// The connection failed, or ended inside a frame.
    #[error("the control connection failed")]
    Io(#[source] io::Error),
    /// The length prefix, or the message to send, is over [`MAX_FRAME`].
    #[error("a control frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The bytes are not a message of this version.
    #[error("a control frame is not a valid message")]
    Malformed(#[source] serde_json::Error),
}

/// Reads one frame; blocks until it is whole.
///
/// # Errors
/// See [`FrameError`]; after any of them the connection is of no further use.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, FrameError> {
    let mut prefix = [0; 4];
    loop {
        match from.read(&mut prefix[..1]) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Io(error)),
        }
    }
    from.read_exact(&mut prefix[1..]).map_err(FrameError::Io)?;
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).map_err(FrameError::Io)?;
    serde_json::from_slice(&body).map_err(FrameError::Malformed)
}

/// Writes one frame with a single call to `write_all`.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written, or [`FrameError::Io`].
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Malformed)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_FRAME)
        .ok_or(FrameError::TooLong(length))?;
    frame[..4].copy_from_slice(&prefix.to_le_bytes());
    to.write_all(&frame).map_err(FrameError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_frame_round_trip() {
        let message = ToGuest::Start(Start {
            session: 7,
            root: Some(Root::Overlay),
            argv: vec!["sh".into(), "-c".into(), "é\n\"".into()],
            env: vec![("A".into(), "b=c".into())],
            secrets: vec!["API_KEY".into(), "OTHER".into()],
            secret_env: vec!["API_KEY".into()],
            user: Some("nobody".into()),
            workdir: None,
            terminal: Some(WindowSize { rows: 24, cols: 80 }),
            stdin: true,
        });
        let mut wire = Vec::new();

        write_frame(&mut wire, &message).expect("a frame of this size is written");

        let mut rest = wire.as_slice();
        assert_eq!(
            read_frame::<ToGuest>(&mut rest).expect("it reads back"),
            message
        );
        assert!(matches!(
            read_frame::<ToGuest>(&mut rest),
            Err(FrameError::Closed)
        ));
    }

    #[test]
    fn test_read_frame_oversized_length_is_refused_before_allocating() {
        let wire = u32::MAX.to_le_bytes();
        let read = read_frame::<ToHost>(&mut wire.as_slice());
        assert!(matches!(read, Err(FrameError::TooLong(n)) if n == u32::MAX as usize));
    }

    #[test]
    fn test_read_frame_truncated_is_an_io_error() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &ToHost::Started { session: 1 }).expect("written");
        for cut in 1..wire.len() {
            let read = read_frame::<ToHost>(&mut &wire[..cut]);
            assert!(
                matches!(read, Err(FrameError::Io(_))),
                "cut at {cut}: {read:?}"
            );
        }
    }

    #[test]
    fn test_read_frame_unknown_message_is_malformed() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &serde_json::json!({"type": "surprise"})).expect("written");
        let read = read_frame::<ToHost>(&mut wire.as_slice());
        assert!(matches!(read, Err(FrameError::Malformed(_))));
    }
}
