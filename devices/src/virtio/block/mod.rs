//! The block device (virtio 1.2, "Block Device"): a file of the host's as the guest's disk.

mod device;
mod persist;

#[cfg(test)]
mod tests;

pub use device::{BlockDevice, BlockError};
pub use persist::BlockState;
