//! A machine as data, without its RAM: what the `state` part of a snapshot holds.

use cachot_devices::serial::ConsoleState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::x86_64::vcpu_state::VcpuState;
use crate::x86_64::vm_state::VmState;

/// A state that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bytes are not a state.
    #[error("the machine's saved state is malformed: the image is damaged, or another version's")]
    Malformed(#[from] postcard::Error),
    /// More bytes than a state.
    #[error(
        "the machine's saved state has {0} bytes too many: the image is damaged, or another version's"
    )]
    TooLong(usize),
}

/// Reads a state, which has to be all of `bytes`. Nothing of it is checked but its form.
///
/// # Errors
/// See [`StateError`].
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StateError> {
    match postcard::take_from_bytes(bytes)? {
        (state, []) => Ok(state),
        (_, rest) => Err(StateError::TooLong(rest.len())),
    }
}

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
        read(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_read_what_follows_a_state_is_refused() {
        let state = DeviceState {
            id: 4,
            state: vec![1, 2, 3],
        };
        let mut bytes = postcard::to_allocvec(&state).expect("plain data");
        let same: DeviceState = read(&bytes).expect("all of it");
        assert_eq!((same.id, same.state), (state.id, state.state));

        bytes.extend([0; 7]);
        let refused = read::<DeviceState>(&bytes);

        assert!(
            matches!(refused, Err(StateError::TooLong(7))),
            "{refused:?}"
        );
        let refused = read::<DeviceState>(&bytes[..3]);
        assert!(
            matches!(refused, Err(StateError::Malformed(_))),
            "{refused:?}"
        );
    }
}
