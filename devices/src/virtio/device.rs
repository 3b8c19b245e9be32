//! The trait every virtio device implements.

use std::os::fd::BorrowedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_memory::GuestMemory;

use super::queue::QueueIo;

/// Failure while a device works on its queues. The transport answers any of them with
/// `DEVICE_NEEDS_RESET`: the driver broke the rings, and nothing that follows can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The rings are not usable.
    #[error("the guest's virtqueue is broken")]
    Queue(#[from] virtio_queue::Error),
    /// Guest memory that was checked cannot be accessed.
    #[error("guest memory cannot be accessed")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// What the device stands for on the host failed.
    #[error("the device's host side failed")]
    Host(#[from] std::io::Error),
}

/// Failure of [`VirtioDevice::activate`].
#[derive(Debug, thiserror::Error)]
#[error("the device cannot be activated: {0}")]
pub struct ActivateError(pub String);

/// A saved state that does not describe a possible device.
#[derive(Debug, thiserror::Error)]
#[error("the saved state is not valid: {0}")]
pub struct RestoreError(pub String);

/// One virtio device, without its transport.
///
/// All calls come with the transport's lock held; calls that take [`QueueIo`] come from the device
/// thread, or while vCPUs are paused.
pub trait VirtioDevice<M: GuestMemory>: Send {
    /// What a snapshot holds of the device: plain data, untrusted when it comes back.
    type State: Serialize + DeserializeOwned;

    /// Virtio device id.
    const ID: u32;

    /// Maximum size of each queue, in descriptors; powers of two.
    const QUEUE_SIZES: &'static [u16];

    /// Feature bits offered, without `VIRTIO_F_VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Reads the device-specific configuration space; bytes past its end stay zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device-specific configuration space; read-only by default.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Generation of the configuration space; changes whenever a field wider than 32 bits may have.
    fn config_generation(&self) -> u32 {
        0
    }

    /// The driver has set `DRIVER_OK` and accepted these features; queues are checked.
    ///
    /// # Errors
    /// Where the device cannot work; the transport sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, features: u64, mem: &M) -> Result<(), ActivateError>;

    /// The driver resets the device: all that `activate` and later calls built up is dropped.
    fn reset(&mut self, mem: &M);

    /// The driver has notified queue `index`.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn process_queue(&mut self, index: usize, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError>;

    /// A descriptor that becomes readable when the host side has work; it lives as long as the device.
    fn backend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// [`Self::backend`] is readable and the device is active.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn process_backend(&mut self, _io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// vCPUs are paused and a snapshot follows: finish what is in flight and leave guest memory alone
    /// until [`Self::resume`].
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn quiesce(&mut self, _io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The device as data. Called quiesced.
    fn save(&self) -> Self::State;

    /// Turns a saved state into this device's state, checking all of it. Called on a new device.
    ///
    /// # Errors
    /// Where the state is not one that [`Self::save`] can have made for this device and memory.
    fn restore(&mut self, state: Self::State, mem: &M) -> Result<(), RestoreError>;

    /// The state was restored, and these are the restored queues: the last chance to refuse them together.
    ///
    /// # Errors
    /// Where the state does not fit the queues.
    fn check_queues(&self, _io: &QueueIo<'_, M>) -> Result<(), RestoreError> {
        Ok(())
    }

    /// vCPUs run again, in the source of a snapshot or in what was restored from it.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn resume(&mut self, _io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Copies what a driver reads at `offset` of a configuration space whose bytes are `config`; what lies
/// past its end stays as it is.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
        .unwrap_or_default();
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}
