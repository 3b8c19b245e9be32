//! The socket device (virtio 1.2, "Socket Device"): stream connections between guest and host, which are
//! Unix sockets on the host's side.
//!
//! The convention is that of other monitors: a host client connects to the device's socket, sends
//! `CONNECT <guest port>\n`, and once the guest has accepted reads `OK <host port>\n` and then the
//! guest's bytes. A guest that connects to context id 2, port `P`, reaches the Unix socket whose path is
//! the device's with `_P` appended; where nobody listens it gets a reset.
//!
//! # Snapshots
//!
//! Connections do not go into a snapshot, and neither do bytes on their way: they live on in the source,
//! which continues as if nothing had happened. What is restored from the snapshot tells the guest with a
//! transport reset event to close all it believes to be connected, and holds back packets, those
//! of new connections above all, until the guest has done so.

mod backlog;
mod connection;
mod device;
mod events;
mod host;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockState};
pub use packet::GUEST_CID;
