//! Devices of the cachot monitor. Device cores are generic over guest memory, so one core serves the
//! monitor and any other process that maps a guest.

pub mod memory;
pub mod power;
pub mod serial;
pub mod virtio;
