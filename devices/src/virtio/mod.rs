//! Virtio devices and the transport that shows them to the guest.
//!
//! A device is behaviour only ([`VirtioDevice`]): the transport owns its queues and its interrupt
//! and lends them ([`QueueIo`]) while the device works. One device thread runs all of it; vCPU threads
//! touch registers, and leave a notification behind.

pub mod block;
mod chain;
mod device;
mod interrupt;
pub mod mmio;
mod queue;
pub mod rng;
pub mod secrets;
#[cfg(test)]
mod testing;
mod transfer;
pub mod vsock;

pub use chain::{Chain, ChainError, Range};
pub use device::{ActivateError, DeviceError, RestoreError, VirtioDevice, read_config_bytes};
pub use interrupt::Interrupt;
pub use queue::{Notifier, QueueIo, QueueStateDef};
pub use transfer::{FileAt, Random, Zeros};
