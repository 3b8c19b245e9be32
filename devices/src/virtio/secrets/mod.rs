//! The secrets device (`resources/virtio-secrets.md`): delivers values into guest pages and keeps able
//! to wipe and refill every page it ever wrote one to.
//!
//! The values stay in sealed memfds of the host's. On their way to the guest they pass through no memory of
//! this process; that two of them are the same is found out in a buffer that is wiped.

mod delivered;
mod device;
mod events;
mod handles;
mod host;
mod pages;
mod persist;
mod redaction;
mod wire;

pub use delivered::{MAX_DELIVERED, MAX_DELIVERED_LEN};
pub use device::SecretsDevice;
pub use handles::{Content, MAX_ATTACHED, MAX_HANDLES};
pub use host::{HostError, Rehydrated, Secret};
pub use persist::{AttachmentState, EventState, SecretsState};
pub use redaction::AttachedRange;
pub use wire::{DEVICE_ID, EVENT_QUEUE, EventKind, MAX_RANGES, REQUEST_QUEUE};

#[cfg(test)]
mod tests;
