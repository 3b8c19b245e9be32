//! The secrets device (`resources/virtio-secrets.md`): delivers values into guest pages and keeps able
//! to wipe and refill every page it ever wrote one to.
//!
//! The values stay in sealed memfds of the host's; they pass through no memory of this process.

mod device;
mod events;
mod handles;
mod host;
mod pages;
mod persist;
mod wire;

pub use device::SecretsDevice;
pub use handles::{MAX_ATTACHED, MAX_HANDLES};
pub use host::{HostError, Secret};
pub use persist::{AttachmentState, EventState, SecretsState};
pub use wire::{DEVICE_ID, EVENT_QUEUE, EventKind, MAX_RANGES, REQUEST_QUEUE};

#[cfg(test)]
mod tests;
