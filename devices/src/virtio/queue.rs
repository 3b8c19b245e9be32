//! What a device sees of its queues while it works, and how vCPU threads notify it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::interrupt::Interrupt;

/// The queues, the memory and the interrupt of one device, lent to it for one call.
#[derive(Debug)]
pub struct QueueIo<'a, M> {
    /// Guest memory.
    pub mem: &'a M,
    queues: &'a mut [Queue],
    interrupt: &'a Interrupt,
}

impl<'a, M: GuestMemory> QueueIo<'a, M> {
    /// Lends out `queues`.
    #[must_use]
    pub fn new(mem: &'a M, queues: &'a mut [Queue], interrupt: &'a Interrupt) -> Self {
        Self {
            mem,
            queues,
            interrupt,
        }
    }

    /// Takes the next whole chain of queue `index`; none where the driver does not use that queue.
    /// Malformed chains are returned to the driver with a used length of 0 on the way.
    ///
    /// # Errors
    /// When the rings themselves are broken: an index that runs too far ahead, rings outside RAM, a
    /// chain head outside the table.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain>, virtio_queue::Error> {
        loop {
            let mem = self.mem;
            let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
                return Ok(None);
            };
            let Some(head) = queue.iter(mem)?.next().map(|chain| chain.head_index()) else {
                return Ok(None);
            };
            let table = GuestAddress(queue.desc_table());
            if let Ok(chain) = Chain::walk(mem, table, queue.size(), head) {
                return Ok(Some(chain));
            }
            self.complete(index, head, 0)?;
        }
    }

    /// Puts the last chain taken from queue `index` back, to be taken again later.
    ///
    /// # Errors
    /// When there is no such queue.
    pub fn undo_pop(&mut self, index: usize) -> Result<(), virtio_queue::Error> {
        let queue = self.queue(index)?;
        self.queues[queue].go_to_previous_position();
        Ok(())
    }

    /// How many chains the driver has offered in queue `index` so far, modulo 2^16.
    ///
    /// # Errors
    /// When the rings cannot be read.
    pub fn avail_idx(&self, index: usize) -> Result<u16, virtio_queue::Error> {
        let queue = &self.queues[self.queue(index)?];
        Ok(queue.avail_idx(self.mem, Ordering::Acquire)?.0)
    }

    /// Returns a chain to the driver, with `len` bytes written to it, and raises the interrupt.
    ///
    /// # Errors
    /// When the used ring cannot be written, or the head is outside the table.
    pub fn complete(
        &mut self,
        index: usize,
        head: u16,
        len: u32,
    ) -> Result<(), virtio_queue::Error> {
        let queue = self.queue(index)?;
        let mem = self.mem;
        self.queues[queue].add_used(mem, head, len)?;
        if self.queues[queue].needs_notification(mem)? {
            self.interrupt.used_buffer();
        }
        Ok(())
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_change(&self) {
        self.interrupt.config_change();
    }

    /// The rings of every ready queue, as (address, length in bytes): pages that nothing else may use.
    pub fn rings(&self) -> impl Iterator<Item = (GuestAddress, u64)> {
        self.queues
            .iter()
            .filter(|queue| queue.ready())
            .flat_map(|queue| {
                let size = u64::from(queue.size());
                // Sizes of the three parts: virtio 1.2, "Split Virtqueues".
                [
                    (GuestAddress(queue.desc_table()), 16 * size),
                    (GuestAddress(queue.avail_ring()), 6 + 2 * size),
                    (GuestAddress(queue.used_ring()), 6 + 8 * size),
                ]
            })
    }

    fn queue(&self, index: usize) -> Result<usize, virtio_queue::Error> {
        if index < self.queues.len() {
            Ok(index)
        } else {
            Err(virtio_queue::Error::QueueNotReady)
        }
    }
}

/// Queue notifications on their way from vCPU threads to the device thread, without a lock between them.
#[derive(Debug)]
pub struct Notifier {
    pending: AtomicU32,
    event: EventFd,
}

impl Notifier {
    /// A notifier with nothing pending.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            pending: AtomicU32::new(0),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Wakes the device thread for queue `index`; queues that cannot exist are ignored.
    pub fn notify(&self, index: u32) {
        if let Some(bit) = 1_u32.checked_shl(index) {
            self.pending.fetch_or(bit, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Wakes the device thread for something else than a queue.
    pub fn wake(&self) {
        // An eventfd write fails only with a full counter, and then the thread is awake already.
        drop(self.event.write(1));
    }

    /// The descriptor the device thread waits on.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Lets the device thread sleep again; queues stay pending until [`Self::take`].
    pub fn drain(&self) {
        // Fails only with a counter of zero: the thread was woken for nothing.
        drop(self.event.read());
    }

    /// Takes the queues that were notified since the last call, as a bit mask.
    pub fn take(&self) -> u32 {
        self.pending.swap(0, Ordering::SeqCst)
    }
}

/// Serializable mirror of [`QueueState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are QueueState's")]
pub struct QueueStateDef {
    pub max_size: u16,
    pub next_avail: u16,
    pub next_used: u16,
    pub event_idx_enabled: bool,
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

impl From<&Queue> for QueueStateDef {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl TryFrom<QueueStateDef> for Queue {
    type Error = virtio_queue::Error;

    fn try_from(state: QueueStateDef) -> Result<Self, Self::Error> {
        Queue::try_from(QueueState {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        })
    }
}
