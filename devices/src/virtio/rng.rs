//! The entropy device (virtio 1.2, "Entropy Device"): fills buffers with the host kernel's random bytes.

use vm_memory::GuestMemory;

use super::{ActivateError, DeviceError, QueueIo, Random, RestoreError, VirtioDevice};

/// Most bytes for one chain. The descriptors of a chain may overlap, so its length says nothing of the memory
/// behind it, and filling it could keep the device thread busy for long.
const MAX_BYTES: u32 = 64 << 10;

/// The entropy device. It has no state.
#[derive(Debug, Default)]
pub struct RngDevice;

impl<M: GuestMemory> VirtioDevice<M> for RngDevice {
    type State = ();

    const ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
    const QUEUE_SIZES: &'static [u16] = &[64];

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _features: u64, _mem: &M) -> Result<(), ActivateError> {
        Ok(())
    }

    fn reset(&mut self, _mem: &M) {}

    fn process_queue(&mut self, index: usize, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        while let Some(chain) = io.pop(index)? {
            let len = chain.writable_len().min(MAX_BYTES);
            chain.fill(io.mem, 0, len, &mut Random)?;
            io.complete(index, chain.head, len)?;
        }
        Ok(())
    }

    fn save(&self) {}

    fn restore(&mut self, _state: (), _mem: &M) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{INDIRECT, LIVE, NEXT, RAM, Rig, WRITE, readable, writable};

    const BUFFER: u64 = 0x10_0000;

    /// How many of the bytes are not zero, in percent; random bytes have 99.6.
    fn filled(rig: &Rig<RngDevice>, addr: u64, len: u32) -> usize {
        let bytes = rig.read(addr, len as usize);
        100 * bytes.iter().filter(|byte| **byte != 0).count() / bytes.len()
    }

    #[test]
    fn test_chain_is_filled_and_nothing_else() {
        let mut rig = Rig::started(RngDevice);
        let parts = [writable(BUFFER, 1000), writable(BUFFER + 0x1000, 2000)];
        let head = rig.send(0, &parts);

        rig.kick(0);

        assert_eq!(rig.used(0), [(head.into(), 3000)]);
        assert!(filled(&rig, BUFFER, 1000) > 95);
        assert_eq!(filled(&rig, BUFFER + 1000, 0x1000 - 1000), 0);
        assert!(filled(&rig, BUFFER + 0x1000, 2000) > 95);
        assert_eq!(filled(&rig, BUFFER + 0x1000 + 2000, 0x1000), 0);
        let first = rig.read(BUFFER, 1000);
        rig.send(0, &parts);
        rig.kick(0);
        assert_ne!(rig.read(BUFFER, 1000), first);
    }

    #[test]
    fn test_long_chain_is_filled_up_to_the_cap() {
        let mut rig = Rig::started(RngDevice);
        let parts = [writable(BUFFER, 40_000), writable(BUFFER + 40_000, 1 << 20)];
        rig.send(0, &parts);
        rig.kick(0);
        assert_eq!(rig.used(0)[0].1, MAX_BYTES);
        assert!(filled(&rig, BUFFER, MAX_BYTES) > 95);
        assert_eq!(filled(&rig, BUFFER + u64::from(MAX_BYTES), 1 << 20), 0);
    }

    #[test]
    fn test_unusable_chain_is_returned_empty() {
        let mut rig = Rig::started(RngDevice);
        for descriptor in [
            (BUFFER, 100, 0, 0),
            (BUFFER, 0, WRITE, 0),
            (BUFFER, 100, WRITE | NEXT, 0),
            (BUFFER, 16, INDIRECT, 0),
            (RAM - 99, 100, WRITE, 0),
        ] {
            rig.describe(0, 0, descriptor);
            rig.offer(0, 0);
            rig.kick(0);
            assert_eq!(rig.used(0), [(0, 0)], "{descriptor:x?}");
        }
        assert_eq!(filled(&rig, BUFFER, 0x1000), 0);
        rig.send(0, &[readable(BUFFER, 8), writable(BUFFER + 8, 8)]);
        rig.kick(0);
        assert_eq!(rig.used(0)[0].1, 8);
        assert_eq!(rig.read(BUFFER, 8), [0; 8]);
    }

    #[test]
    fn test_save_restore_round_trip() {
        let mut rig = Rig::started(RngDevice);
        rig.send(0, &[writable(BUFFER, 16)]);
        rig.kick(0);
        assert_eq!(rig.used(0).len(), 1);

        let mut restored = rig.restored(RngDevice);
        restored.send(0, &[writable(BUFFER, 16)]);
        restored.kick(0);
        assert_eq!(restored.used(0), [], "still paused");
        restored.transport().resume();
        restored.run();

        assert_eq!(restored.used(0).len(), 1);
        assert_eq!(restored.status(), LIVE);
    }
}
