//! The virtio-mmio transport (virtio 1.2, "Virtio Over MMIO", version 2 registers).
//!
//! vCPU threads read and write registers through [`MmioSlot`]; notifications pass beside the lock. The
//! device thread owns the rest: [`Transport`] is an event subscriber that runs the device.

use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{self as reg, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemory;

use super::device::{DeviceError, RestoreError, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{Notifier, QueueIo, QueueStateDef};

/// Bytes of address space a device takes.
pub const SLOT_SIZE: u64 = 0x1000;

/// `MagicValue`: "virt" in little endian.
const MAGIC: u32 = 0x7472_6976;
/// `Version` of this register layout.
const VERSION: u32 = 2;
/// `VendorID`: "cach" in little endian.
const VENDOR: u32 = 0x6863_6163;

/// Status bits that the driver sets ("Device Status Field").
const DRIVER_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

/// Event data of the notifier and of the device's backend.
const NOTIFIER: u32 = 0;
const BACKEND: u32 = 1;

/// One device's place on the bus, as vCPU threads see it.
#[derive(Clone)]
pub struct MmioSlot {
    registers: Arc<Mutex<dyn Registers>>,
    notifier: Arc<Notifier>,
}

/// Register access, without the device's type.
trait Registers: Send {
    fn read(&mut self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl MmioSlot {
    /// The bus side of a transport.
    #[must_use]
    pub fn new<D, M>(transport: &Arc<Mutex<Transport<D, M>>>) -> Self
    where
        D: VirtioDevice<M> + 'static,
        M: GuestMemory + Send + 'static,
    {
        let notifier = Arc::clone(&lock(transport).notifier);
        let registers: Arc<Mutex<dyn Registers>> = Arc::<Mutex<Transport<D, M>>>::clone(transport);
        Self {
            registers,
            notifier,
        }
    }

    /// Guest read of `data.len()` bytes at `offset` in the slot.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.registers).read(offset, data);
    }

    /// Guest write at `offset` in the slot.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let (true, Ok(bytes)) = (
            offset == u64::from(reg::VIRTIO_MMIO_QUEUE_NOTIFY),
            data.try_into(),
        ) {
            self.notifier.notify(u32::from_le_bytes(bytes));
        } else {
            lock(&self.registers).write(offset, data);
        }
    }
}

/// Locks on through poisoning: a device that panicked takes the monitor down with it anyway.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A virtio device behind virtio-mmio registers.
#[derive(Debug)]
pub struct Transport<D, M> {
    device: D,
    mem: M,
    queues: Vec<Queue>,
    interrupt: Arc<Interrupt>,
    notifier: Arc<Notifier>,
    status: u32,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    paused: bool,
    backend_watched: bool,
}

/// What a snapshot holds of a transport and its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are the registers of the same name")]
pub struct TransportState<S> {
    pub status: u32,
    pub interrupt_status: u32,
    pub driver_features: u64,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub queue_select: u32,
    pub queues: Vec<QueueStateDef>,
    pub device: S,
}

impl<D: VirtioDevice<M>, M: GuestMemory> Transport<D, M> {
    /// A transport for `device`, reset.
    ///
    /// # Errors
    /// When its eventfds cannot be made.
    ///
    /// # Panics
    /// If the device declares a queue size that is not a power of two: a bug of the device.
    pub fn new(device: D, mem: M) -> std::io::Result<Self> {
        let queues = D::QUEUE_SIZES
            .iter()
            .map(|&size| Queue::new(size).expect("devices declare powers of two"))
            .collect();
        Ok(Self {
            device,
            mem,
            queues,
            interrupt: Arc::new(Interrupt::new()?),
            notifier: Arc::new(Notifier::new()?),
            status: 0,
            driver_features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            paused: false,
            backend_watched: false,
        })
    }

    /// The device's interrupt line, for `KVM_IRQFD`.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// Lets the host change the device; the device thread then serves all queues, where the device
    /// has something to tell the driver.
    pub fn with_device<R>(&mut self, change: impl FnOnce(&mut D, &M) -> R) -> R {
        let result = change(&mut self.device, &self.mem);
        self.notify_all();
        result
    }

    fn device_and_io(&mut self) -> (&mut D, QueueIo<'_, M>) {
        (
            &mut self.device,
            QueueIo::new(&self.mem, &mut self.queues, &self.interrupt),
        )
    }

    fn notify_all(&self) {
        for index in 0..D::QUEUE_SIZES.len() {
            self.notifier
                .notify(u32::try_from(index).unwrap_or(u32::MAX));
        }
    }

    /// vCPUs are paused: the device finishes and rests until [`Self::resume`].
    ///
    /// # Errors
    /// When the device cannot finish; it stays paused all the same.
    pub fn pause(&mut self) -> Result<(), DeviceError> {
        let work = if self.is_active() {
            let (device, mut io) = self.device_and_io();
            device.quiesce(&mut io)
        } else {
            Ok(())
        };
        self.paused = true;
        self.notifier.wake();
        work
    }

    /// The device works again; notifications that came in between are served.
    pub fn resume(&mut self) {
        self.paused = false;
        if self.is_active() {
            self.run(|device, io| device.resume(io));
        }
        // Notifications in either direction may have been lost on the way through a snapshot: look at
        // every queue, and let the driver do so.
        self.notify_all();
        self.interrupt.raise_pending();
    }

    /// The transport and its device as data. Called paused.
    pub fn save(&self) -> TransportState<D::State> {
        TransportState {
            status: self.status,
            interrupt_status: self.interrupt.status(),
            driver_features: self.driver_features,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(QueueStateDef::from).collect(),
            device: self.device.save(),
        }
    }

    /// Turns a saved state into this transport's, which is new. It stays paused until
    /// [`Self::resume`].
    ///
    /// # Errors
    /// When the state is not one that this device can have had.
    pub fn restore(&mut self, state: TransportState<D::State>) -> Result<(), RestoreError> {
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError("the number of queues differs".into()));
        }
        self.check_status(&state)?;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (saved, own)) in state.queues.into_iter().zip(&self.queues).enumerate() {
            let queue = Queue::try_from(saved)
                .map_err(|error| RestoreError(format!("queue {index}: {error}")))?;
            if queue.max_size() != own.max_size() {
                return Err(RestoreError(format!("queue {index} has another size")));
            }
            if queue.event_idx_enabled() {
                return Err(RestoreError(format!(
                    "queue {index} has a feature that is not offered"
                )));
            }
            if queue.ready() && !queue.is_valid(&self.mem) {
                return Err(RestoreError(format!("queue {index} does not lie in RAM")));
            }
            queues.push(queue);
        }
        self.device.restore(state.device, &self.mem)?;
        let io = QueueIo::new(&self.mem, &mut queues, &self.interrupt);
        self.device.check_queues(&io)?;
        drop(io);
        self.queues = queues;
        self.status = state.status;
        self.driver_features = state.driver_features;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.interrupt.set_status(state.interrupt_status);
        self.paused = true;
        Ok(())
    }

    /// Whether [`Self::write_status`] can have led to the registers of `state`.
    fn check_status(&self, state: &TransportState<D::State>) -> Result<(), RestoreError> {
        let has = |bit| state.status & bit != 0;
        let causes = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        let possible = state.status & !(DRIVER_BITS | VIRTIO_CONFIG_S_NEEDS_RESET) == 0
            && (has(VIRTIO_CONFIG_S_FEATURES_OK) || !has(VIRTIO_CONFIG_S_DRIVER_OK))
            && state.interrupt_status & !causes == 0;
        if !possible {
            return Err(RestoreError("an impossible device status".into()));
        }
        if has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.accepts(state.driver_features) {
            return Err(RestoreError(
                "features that this device does not have".into(),
            ));
        }
        Ok(())
    }

    /// Whether the device can work with these features and no others.
    fn accepts(&self, features: u64) -> bool {
        features & !self.offered_features() == 0 && features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn is_active(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && self.status & VIRTIO_CONFIG_S_NEEDS_RESET == 0
    }

    /// Lets the device work; a failure stops it until the driver resets it.
    fn run(&mut self, work: impl FnOnce(&mut D, &mut QueueIo<'_, M>) -> Result<(), DeviceError>) {
        let (device, mut io) = self.device_and_io();
        let worked = work(device, &mut io);
        let unfinished = io.unfinished();
        drop(io);
        if worked.is_err() {
            self.needs_reset();
        }
        for queue in (0..u32::BITS).filter(|queue| unfinished >> queue & 1 != 0) {
            self.notifier.notify(queue);
        }
    }

    fn needs_reset(&mut self) {
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.interrupt.config_change();
    }

    fn reset(&mut self) {
        self.device.reset(&self.mem);
        self.queues.iter_mut().for_each(Queue::reset);
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.interrupt.set_status(0);
        self.notifier.take();
        self.notifier.wake();
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The selected queue, where the driver may configure it now.
    fn configurable(&mut self) -> Option<&mut Queue> {
        let step = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        if self.status & step != VIRTIO_CONFIG_S_FEATURES_OK {
            return None;
        }
        self.queues
            .get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn write_status(&mut self, status: u32) {
        if status == 0 {
            self.reset();
            return;
        }
        // A driver may only add bits ("Device Status Field").
        if self.status & !status & !VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return;
        }
        let mut added = status & DRIVER_BITS & !self.status;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.accepts(self.driver_features) {
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && (self.status | added) & VIRTIO_CONFIG_S_FEATURES_OK == 0
        {
            added &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn activate(&mut self) {
        let queues_valid = self
            .queues
            .iter()
            .all(|queue| !queue.ready() || queue.is_valid(&self.mem));
        if !queues_valid
            || self
                .device
                .activate(self.driver_features, &self.mem)
                .is_err()
        {
            self.needs_reset();
            return;
        }
        self.notifier.wake();
    }

    fn read_register(&self, offset: u32) -> u32 {
        let half = |value: u64, select: u32| match select {
            0 => (value & 0xffff_ffff) as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => D::ID,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.offered_features(), self.device_features_select)
            }
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |q| q.max_size().into()),
            reg::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |q| q.ready().into()),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            reg::VIRTIO_MMIO_STATUS => self.status,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            // No shared memory regions: a length of all ones ("MMIO Device Register Layout").
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let (shift, mask) = match self.driver_features_select {
            0 => (0, 0xffff_ffff_0000_0000),
            1 => (32, 0x0000_0000_ffff_ffff),
            _ => return,
        };
        self.driver_features = self.driver_features & mask | u64::from(value) << shift;
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.configurable() else {
            return;
        };
        match offset {
            // Invalid sizes and addresses leave the queue as it was; activation checks the whole.
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// Watches the device's backend exactly while the device can work.
    fn watch_backend(&mut self, ops: &mut EventOps) {
        let wanted = self.is_active() && !self.paused;
        let Some(backend) = self.device.backend() else {
            return;
        };
        let events = Events::with_data(&backend, BACKEND, EventSet::IN);
        if wanted == self.backend_watched {
            return;
        }
        let changed = if wanted {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        match changed {
            Ok(()) => self.backend_watched = wanted,
            Err(_) => self.needs_reset(),
        }
    }
}

impl<D: VirtioDevice<M>, M: GuestMemory + Send> Registers for Transport<D, M> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(reg::VIRTIO_MMIO_CONFIG)) {
            self.device.read_config(offset, data);
        } else if let (Ok(offset), Ok(word)) =
            (u32::try_from(offset), <&mut [u8; 4]>::try_from(data))
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(reg::VIRTIO_MMIO_CONFIG)) {
            self.device.write_config(offset, data);
        } else if let (Ok(offset), Ok(word)) = (u32::try_from(offset), data.try_into()) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

impl<D: VirtioDevice<M>, M: GuestMemory> MutEventSubscriber for Transport<D, M> {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::with_data(self.notifier.event(), NOTIFIER, EventSet::IN);
        if ops.add(events).is_err() {
            self.needs_reset();
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == NOTIFIER {
            self.notifier.drain();
        }
        let working = |transport: &Self| transport.is_active() && !transport.paused;
        if working(self) && events.data() == BACKEND {
            self.run(|device, io| device.process_backend(io));
        } else if working(self) {
            let mut pending = self.notifier.take();
            while pending != 0 && working(self) {
                let index = pending.trailing_zeros() as usize;
                pending &= pending - 1;
                if self.queues.get(index).is_some_and(QueueT::ready) {
                    self.run(|device, io| device.process_queue(index, io));
                }
            }
        }
        self.watch_backend(ops);
    }
}

#[cfg(test)]
mod tests;
