//! A driver made by hand, for tests of devices: it can do everything wrong.

use std::sync::{Arc, Mutex, MutexGuard};

use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_mmio as reg;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::VirtioDevice;
use super::mmio::{MmioSlot, Transport, TransportState};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;
/// Status of a device that works.
pub const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Bytes of RAM, from address 0.
pub const RAM: u64 = 4 << 20;
/// Where [`Rig::call`] puts requests, and where it wants the response.
pub const REQUEST: u64 = 0x8_0000;
pub const RESPONSE: u64 = 0xc_0000;
/// Descriptors in each queue, unless the device has fewer.
pub const QUEUE_SIZE: u16 = 64;

pub type Memory = GuestMemoryMmap;
type SharedTransport<D> = Arc<Mutex<Transport<D, Memory>>>;

/// A piece of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub addr: u64,
    pub len: u32,
    pub writable: bool,
}

pub fn readable(addr: u64, len: u32) -> Part {
    let writable = false;
    Part {
        addr,
        len,
        writable,
    }
}

pub fn writable(addr: u64, len: u32) -> Part {
    let writable = true;
    Part {
        addr,
        len,
        writable,
    }
}

/// Addresses of a queue's descriptor table, available ring and used ring.
pub fn rings(queue: usize) -> (u64, u64, u64) {
    let base = 0x1_0000 + 0x4000 * queue as u64;
    (base, base + 0x1000, base + 0x2000)
}

#[derive(Debug, Clone, Copy, Default)]
struct DriverQueue {
    size: u16,
    next_descriptor: u16,
    avail: u16,
    used: u16,
}

/// A machine with one device and its driver.
pub struct Rig<D: VirtioDevice<Memory>> {
    pub mem: Memory,
    transport: SharedTransport<D>,
    slot: MmioSlot,
    manager: EventManager<SharedTransport<D>>,
    queues: Vec<DriverQueue>,
}

impl<D: VirtioDevice<Memory> + 'static> Rig<D> {
    /// The device after power-on.
    pub fn new(device: D) -> Self {
        let size = usize::try_from(RAM).expect("64-bit host");
        let mem = Memory::from_ranges(&[(GuestAddress(0), size)]).expect("mapped");
        Self::with_memory(device, mem)
    }

    /// The same, with memory that is there already.
    pub fn with_memory(device: D, mem: Memory) -> Self {
        let transport = Transport::new(device, mem.clone()).expect("eventfds");
        let transport = Arc::new(Mutex::new(transport));
        let mut manager = EventManager::new().expect("epoll");
        manager.add_subscriber(Arc::clone(&transport));
        let queue = |size: &u16| DriverQueue {
            size: (*size).min(QUEUE_SIZE),
            ..DriverQueue::default()
        };
        Self {
            mem,
            slot: MmioSlot::new(&transport),
            transport,
            manager,
            queues: D::QUEUE_SIZES.iter().map(queue).collect(),
        }
    }

    /// A device whose driver has set up all queues.
    pub fn started(device: D) -> Self {
        let mut rig = Self::new(device);
        rig.start();
        rig
    }

    /// Resets the device and starts it as a driver does, with all features.
    pub fn start(&mut self) {
        self.set_up();
        for index in 0..self.queues.len() {
            self.set_up_queue(index, rings(index));
        }
        self.set(reg::VIRTIO_MMIO_STATUS, LIVE);
        self.run();
    }

    /// Resets the device and goes as far as `FEATURES_OK`.
    pub fn set_up(&mut self) {
        self.set(reg::VIRTIO_MMIO_STATUS, 0);
        for queue in &mut self.queues {
            (queue.next_descriptor, queue.avail, queue.used) = (0, 0, 0);
        }
        self.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for half in [0, 1] {
            self.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, offered);
        }
        self.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Makes a queue ready with its rings at these addresses, which are cleared.
    pub fn set_up_queue(&mut self, index: usize, (table, avail, used): (u64, u64, u64)) {
        for ring in [table, avail, used] {
            // Rings may be where no RAM is: that is for the device to find out.
            drop(self.mem.write_slice(&[0; 0x1000], GuestAddress(ring)));
        }
        self.set(
            reg::VIRTIO_MMIO_QUEUE_SEL,
            u32::try_from(index).expect("few queues"),
        );
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, self.queues[index].size.into());
        for (low, high, address) in [
            (
                reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
                reg::VIRTIO_MMIO_QUEUE_DESC_HIGH,
                table,
            ),
            (
                reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                avail,
            ),
            (
                reg::VIRTIO_MMIO_QUEUE_USED_LOW,
                reg::VIRTIO_MMIO_QUEUE_USED_HIGH,
                used,
            ),
        ] {
            self.set(low, (address & 0xffff_ffff) as u32);
            self.set(high, (address >> 32) as u32);
        }
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn get(&self, register: u32) -> u32 {
        let mut word = [0; 4];
        self.slot.read(register.into(), &mut word);
        u32::from_le_bytes(word)
    }

    pub fn set(&self, register: u32, value: u32) {
        self.slot.write(register.into(), &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.get(reg::VIRTIO_MMIO_STATUS)
    }

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.slot
            .read(u64::from(reg::VIRTIO_MMIO_CONFIG) + offset, &mut bytes);
        bytes
    }

    pub fn transport(&self) -> MutexGuard<'_, Transport<D, Memory>> {
        self.transport.lock().expect("no test panics inside")
    }

    pub fn shared(&self) -> SharedTransport<D> {
        Arc::clone(&self.transport)
    }

    /// Reads and clears the interrupt causes.
    pub fn interrupts(&self) -> u32 {
        let causes = self.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, causes);
        causes
    }

    /// Lets the device thread do all it has to.
    pub fn run(&mut self) {
        while self.manager.run_with_timeout(0).expect("epoll") > 0 {}
    }

    /// Notifies a queue, and lets the device thread do all it has to.
    pub fn kick(&mut self, queue: usize) {
        let queue = u32::try_from(queue).expect("few queues");
        self.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        self.run();
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.mem
            .write_slice(bytes, GuestAddress(addr))
            .expect("RAM");
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem
            .read_slice(&mut bytes, GuestAddress(addr))
            .expect("RAM");
        bytes
    }

    /// Writes one descriptor of a queue's table.
    pub fn describe(
        &self,
        queue: usize,
        index: u16,
        (addr, len, flags, next): (u64, u32, u16, u16),
    ) {
        let at = GuestAddress(rings(queue).0 + 16 * u64::from(index));
        let descriptor = Descriptor::new(addr, len, flags, next);
        self.mem
            .write_obj(descriptor, at)
            .expect("the table is in RAM");
    }

    /// Makes a chain available that begins with descriptor `head`.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let avail = rings(queue).1;
        let state = &mut self.queues[queue];
        let slot = u64::from(state.avail % state.size);
        state.avail = state.avail.wrapping_add(1);
        let index = state.avail;
        self.write(avail + 4 + 2 * slot, &head.to_le_bytes());
        self.write(avail + 2, &index.to_le_bytes());
    }

    /// The head of the next chain that is sent to a queue.
    pub fn next_head(&self, queue: usize) -> u16 {
        self.queues[queue].next_descriptor
    }

    /// Makes a chain of these parts available; its head.
    pub fn send(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let state = &mut self.queues[queue];
        let (size, first) = (state.size, state.next_descriptor);
        let count = u16::try_from(parts.len()).expect("a short chain");
        state.next_descriptor = (first + count) % size;
        for (part, offset) in parts.iter().zip(0..) {
            let next = if offset + 1 == count { 0 } else { NEXT };
            let write = if part.writable { WRITE } else { 0 };
            let descriptor = (
                part.addr,
                part.len,
                next | write,
                (first + offset + 1) % size,
            );
            self.describe(queue, (first + offset) % size, descriptor);
        }
        self.offer(queue, first);
        first
    }

    /// What came back on a queue since the last call: heads and lengths.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = rings(queue).2;
        let index = self.read(ring + 2, 2);
        let index = u16::from_le_bytes([index[0], index[1]]);
        let state = &mut self.queues[queue];
        let mut slots = Vec::new();
        while state.used != index {
            slots.push(u64::from(state.used % state.size));
            state.used = state.used.wrapping_add(1);
        }
        let word = |at| {
            let bytes = self.read(at, 4);
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let entry = |slot: u64| (word(ring + 4 + 8 * slot), word(ring + 8 + 8 * slot));
        slots.into_iter().map(entry).collect()
    }

    /// Sends a request with `room` bytes for the response; the bytes that the device says it wrote.
    pub fn call(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        self.write(REQUEST, request);
        let len = u32::try_from(request.len()).expect("a short request");
        let mut parts = vec![readable(REQUEST, len), writable(RESPONSE, room)];
        parts.retain(|part| part.len > 0);
        let head = self.send(0, &parts);
        self.kick(0);
        let used = self.used(0);
        assert_eq!(used.len(), 1, "one request, one answer");
        assert_eq!(used[0].0, u32::from(head));
        assert!(used[0].1 <= room);
        self.read(RESPONSE, used[0].1 as usize)
    }

    /// Snapshot and restore into `device`, over JSON, with the same memory.
    pub fn restored(&self, device: D) -> Self {
        self.transport().pause().expect("quiesced");
        let state = self.transport().save();
        let text = serde_json::to_string(&state).expect("plain data");
        let state: TransportState<D::State> = serde_json::from_str(&text).expect("it reads back");
        let mut restored = Self::with_memory(device, self.mem.clone());
        restored.queues.clone_from(&self.queues);
        restored.transport().restore(state).expect("a valid state");
        restored
    }
}
