//! A machine as data, without its RAM: what the `state` part of a snapshot holds.

use cachot_devices::serial::ConsoleState;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::x86_64::vcpu_state::VcpuState;
use crate::x86_64::vm_state::VmState;

/// A state that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the machine's saved state is malformed: the image is damaged, or another version's")]
pub struct StateError(#[from] postcard::Error);

/// A machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Interrupt controllers and clock.
    pub vm: VmState,
    /// Each vCPU, in order.
    pub vcpus: Vec<VcpuState>,
    /// The serial console.
    pub console: ConsoleState,
    /// Each virtio device, in the order of the slots.
    pub devices: Vec<DeviceState>,
}

/// A virtio device and its transport.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// Virtio device id.
    pub id: u32,
    /// Its state, which only the device's own code reads.
    pub state: Vec<u8>,
}

impl MachineState {
    /// The state as bytes.
    ///
    /// # Errors
    /// Never in practice: the state is plain data.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, StateError> {
        Ok(Zeroizing::new(postcard::to_allocvec(self)?))
    }

    /// Reads what [`Self::to_bytes`] has written. Nothing of it is checked but its form.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}
