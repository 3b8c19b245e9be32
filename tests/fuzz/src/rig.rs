//! A device on its transport, RAM, and the thread that serves it, without a machine around them.

use std::sync::{Arc, Mutex, MutexGuard};

use cachot_devices::memory::{GuestRam, Swap};
use cachot_devices::virtio::VirtioDevice;
use cachot_devices::virtio::mmio::{MmioSlot, Transport};
use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};

/// How often the device thread looks for work after a step. Rings in each other's place can give it work for
/// ever, with pauses in which it serves others.
const TURNS: usize = 16;

/// Bytes of RAM: those of the guests that the corpora come from, whose rings lie anywhere in it.
const RAM: u64 = 64 << 20;

type Shared<D> = Arc<Mutex<Transport<D, GuestRam>>>;

/// The device and what it is connected to.
pub struct Rig<D: VirtioDevice<GuestRam> + 'static> {
    /// Guest RAM.
    pub ram: GuestRam,
    transport: Shared<D>,
    slot: MmioSlot,
    manager: EventManager<Shared<D>>,
}

/// RAM, all zero.
///
/// # Panics
/// When there is no address space.
#[must_use]
pub fn ram() -> GuestRam {
    GuestRam::new(RAM, Swap::Ignored).expect("address space")
}

impl<D: VirtioDevice<GuestRam> + 'static> Rig<D> {
    /// A device after power-on.
    ///
    /// # Panics
    /// When there are no descriptors left.
    #[must_use]
    pub fn new(device: D, ram: GuestRam) -> Self {
        let transport = Transport::new(device, ram.clone()).expect("eventfds");
        let transport = Arc::new(Mutex::new(transport));
        let mut manager = EventManager::new().expect("epoll");
        manager.add_subscriber(Arc::clone(&transport));
        Self {
            ram,
            slot: MmioSlot::new(&transport),
            transport,
            manager,
        }
    }

    /// The transport.
    ///
    /// # Panics
    /// Never: nothing panics with it.
    pub fn transport(&self) -> MutexGuard<'_, Transport<D, GuestRam>> {
        self.transport.lock().expect("nothing panics with it")
    }

    /// Lets the device thread work.
    ///
    /// # Panics
    /// When it cannot wait for events.
    pub fn work(&mut self) {
        for _ in 0..TURNS {
            if self.manager.run_with_timeout(0).expect("epoll") == 0 {
                return;
            }
        }
    }

    /// The driver reads a register.
    #[must_use]
    pub fn get(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.slot.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// The driver reads bytes of a register or of the configuration space.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.slot.read(offset, data);
    }

    /// The driver writes a register.
    pub fn set(&self, offset: u64, value: u32) {
        self.slot.write(offset, &value.to_le_bytes());
    }

    /// The driver writes bytes to a register or to the configuration space.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.slot.write(offset, data);
    }

    /// The guest writes to its memory, as far as there is some.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        // What lies outside is for nobody.
        drop(self.ram.write(bytes, GuestAddress(at)));
    }
}
