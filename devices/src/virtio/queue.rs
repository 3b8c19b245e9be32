//! What a device sees of its queues while it works, and how vCPU threads notify it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::interrupt::Interrupt;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`, in the flags at the beginning of an available ring.
const NO_INTERRUPT: u16 = 1;

/// Chains that one loan may take. A driver with several CPUs can refill a ring as fast as it is emptied; the
/// device thread also serves other devices, signals and the control socket, and comes back later.
const CHAINS_A_LOAN: u16 = 64;

/// The queues, the memory and the interrupt of one device, lent to it for one call. When the loan ends the
/// driver is interrupted, once, if chains were returned and it wants to know.
#[derive(Debug)]
pub struct QueueIo<'a, M: GuestMemory> {
    /// Guest memory.
    pub mem: &'a M,
    queues: &'a mut [Queue],
    interrupt: &'a Interrupt,
    /// Queues that chains were returned to, as a bit mask.
    returned: u32,
    /// Chains that may still be taken.
    budget: u16,
    /// Queues that chains were refused from because none may be taken any more, as a bit mask.
    unfinished: u32,
}

impl<'a, M: GuestMemory> QueueIo<'a, M> {
    /// Lends out `queues`.
    #[must_use]
    pub fn new(mem: &'a M, queues: &'a mut [Queue], interrupt: &'a Interrupt) -> Self {
        Self {
            mem,
            queues,
            interrupt,
            returned: 0,
            budget: CHAINS_A_LOAN,
            unfinished: 0,
        }
    }

    /// Takes the next whole chain of queue `index`; none where the driver does not use that queue, or
    /// enough was taken in this loan: the queue is then notified again.
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
            if self.budget == 0 {
                queue.go_to_previous_position();
                self.unfinished |= bit(index);
                return Ok(None);
            }
            self.budget -= 1;
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

    /// Returns a chain to the driver, with `len` bytes written to it.
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
        self.returned |= bit(queue);
        Ok(())
    }

    /// Queues that still have chains for this device, as a bit mask.
    pub(super) fn unfinished(&self) -> u32 {
        self.unfinished
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

/// The bit of a queue in a mask. Devices have a few queues; with more than 32, all of them would be meant.
fn bit(queue: usize) -> u32 {
    u32::try_from(queue).map_or(u32::MAX, |queue| 1_u32.wrapping_shl(queue))
}

impl<M: GuestMemory> Drop for QueueIo<'_, M> {
    fn drop(&mut self) {
        // The used rings are written before the driver's wish is read: either it sees the chains when it
        // asks to be interrupted again, or this sees that it asked.
        fence(Ordering::SeqCst);
        let returned = (0_u32..).zip(self.queues.iter());
        let wanted = returned
            .filter(|(index, _)| self.returned & 1_u32.wrapping_shl(*index) != 0)
            .any(|(_, queue)| {
                let flags = self
                    .mem
                    .load::<u16>(GuestAddress(queue.avail_ring()), Ordering::Relaxed);
                flags.is_ok_and(|flags| u16::from_le(flags) & NO_INTERRUPT == 0)
            });
        if wanted {
            self.interrupt.used_buffer();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Memory;
    use proptest::prelude::*;

    const TABLE: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("64 KiB can be mapped")
    }

    fn queue() -> Queue {
        let mut queue = Queue::new(16).expect("a power of two");
        queue.set_size(8);
        queue.set_desc_table_address(Some(0x1000), Some(0));
        queue.set_avail_ring_address(Some(0x2000), Some(0));
        queue.set_used_ring_address(Some(0x3000), Some(0));
        queue.set_ready(true);
        queue
    }

    /// Makes `heads` available, each a readable byte unless its number is odd, which is a loop.
    fn offer(mem: &Memory, heads: &[u16]) {
        for head in 0..8_u16 {
            let (flags, next) = if head % 2 == 0 { (0, 0) } else { (1, head) };
            let descriptor = virtio_queue::desc::split::Descriptor::new(0x8000, 1, flags, next);
            let at = GuestAddress(TABLE + 16 * u64::from(head));
            mem.write_obj(descriptor, at).expect("RAM");
        }
        for (slot, head) in (0_u64..).zip(heads) {
            mem.write_obj(*head, GuestAddress(AVAIL + 4 + 2 * slot))
                .expect("RAM");
        }
        let count = u16::try_from(heads.len()).expect("few");
        mem.write_obj(count, GuestAddress(AVAIL + 2)).expect("RAM");
    }

    fn used(mem: &Memory) -> Vec<(u32, u32)> {
        let count: u16 = mem.read_obj(GuestAddress(USED + 2)).expect("RAM");
        let word = |at| mem.read_obj(GuestAddress(at)).expect("RAM");
        (0..u64::from(count))
            .map(|slot| (word(USED + 4 + 8 * slot), word(USED + 8 + 8 * slot)))
            .collect()
    }

    #[test]
    fn test_pop_from_a_ring_that_is_refilled_for_ever_comes_to_an_end() {
        for head in [2, 1] {
            let mem = memory();
            offer(&mem, &[head; 8]);
            let (mut queues, interrupt) = ([queue()], Interrupt::new().expect("an eventfd"));
            let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
            let refill = |taken: u16| {
                mem.write_obj(taken.wrapping_add(8), GuestAddress(AVAIL + 2))
                    .expect("RAM");
            };

            let mut taken = 0;
            while io.pop(0).expect("the rings are whole").is_some() {
                taken += 1;
                refill(taken);
                assert!(taken <= CHAINS_A_LOAN);
            }

            // Broken chains are returned inside one call, which sees the ring refilled only after it.
            let all = if head == 2 { CHAINS_A_LOAN } else { 0 };
            assert_eq!(taken, all);
            assert_eq!(io.unfinished(), u32::from(head == 2));
            drop(io);
            refill(taken);
            let mut next = QueueIo::new(&mem, &mut queues, &interrupt);
            assert_eq!(next.pop(0).expect("whole").is_some(), head == 2);
        }
    }

    #[test]
    fn test_pop_returns_whole_chains_and_gives_back_broken_ones() {
        let mem = memory();
        offer(&mem, &[1, 2, 3, 3, 4]);
        let (mut queues, interrupt) = ([queue()], Interrupt::new().expect("an eventfd"));
        let mut io = QueueIo::new(&mem, &mut queues, &interrupt);

        let first = io.pop(0).expect("the rings are whole").expect("a chain");
        assert_eq!(first.head, 2);
        assert_eq!(used(&mem), [(1, 0)]);
        assert_eq!(io.pop(0).expect("whole").map(|chain| chain.head), Some(4));
        assert_eq!(used(&mem), [(1, 0), (3, 0), (3, 0)]);
        assert_eq!(io.pop(0).expect("whole"), None);

        io.complete(0, first.head, 7)
            .expect("the head is in the table");
        assert_eq!(used(&mem)[3], (2, 7));
    }

    #[test]
    fn test_drop_interrupts_once_if_the_driver_wants() {
        let mem = memory();
        for (flags, heads, raised) in [
            (0_u16, vec![2, 4], true),
            (0, vec![1], true),
            (1, vec![2, 4], false),
            (2, vec![2], true),
            (0, vec![], false),
        ] {
            offer(&mem, &heads);
            mem.write_obj(flags, GuestAddress(AVAIL)).expect("RAM");
            let (mut queues, interrupt) = ([queue()], Interrupt::new().expect("an eventfd"));
            let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
            while let Some(chain) = io.pop(0).expect("whole") {
                io.complete(0, chain.head, 0).expect("in the table");
            }
            assert_eq!(interrupt.status(), 0, "not yet");
            drop(io);
            assert_eq!(interrupt.status(), u32::from(raised), "{flags} {heads:?}");
            assert_eq!(interrupt.line().read().unwrap_or(0), u64::from(raised));
        }
    }

    #[test]
    fn test_undo_pop_returns_the_chain_again() {
        let mem = memory();
        offer(&mem, &[2, 1, 4]);
        let (mut queues, interrupt) = ([queue()], Interrupt::new().expect("an eventfd"));
        let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
        assert_eq!(io.pop(0).expect("whole").map(|chain| chain.head), Some(2));
        let second = io.pop(0).expect("whole").expect("a chain");
        io.undo_pop(0).expect("the queue exists");
        assert_eq!(io.pop(0).expect("whole"), Some(second));
        assert_eq!(used(&mem), [(1, 0)], "the broken chain was given back once");
    }

    #[test]
    fn test_pop_queue_not_in_use_has_no_chains() {
        let mem = memory();
        offer(&mem, &[2]);
        let mut idle = queue();
        idle.set_ready(false);
        let (mut queues, interrupt) = ([idle], Interrupt::new().expect("an eventfd"));
        let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
        assert_eq!(io.pop(0).expect("none"), None);
        assert_eq!(io.pop(1).expect("none"), None);
        assert!(io.complete(1, 0, 0).is_err());
        assert!(io.undo_pop(1).is_err());
        assert_eq!(io.rings().count(), 0);
    }

    #[test]
    fn test_pop_broken_rings_is_an_error() {
        let mem = memory();
        let interrupt = Interrupt::new().expect("an eventfd");
        for (heads, index) in [
            (vec![2], 9_u16),
            (vec![2], u16::MAX),
            (vec![8], 1),
            (vec![u16::MAX], 1),
        ] {
            offer(&mem, &heads);
            mem.write_obj(index, GuestAddress(AVAIL + 2)).expect("RAM");
            let mut queues = [queue()];
            let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
            assert!(io.pop(0).is_err(), "{heads:?} {index}");
            assert_eq!(used(&mem), []);
        }
    }

    #[test]
    fn test_rings_are_the_parts_of_ready_queues() {
        let mem = memory();
        let (mut queues, interrupt) = ([queue()], Interrupt::new().expect("an eventfd"));
        let io = QueueIo::new(&mem, &mut queues, &interrupt);
        let rings: Vec<_> = io.rings().map(|(start, len)| (start.0, len)).collect();
        assert_eq!(rings, [(TABLE, 128), (AVAIL, 22), (USED, 70)]);
    }

    #[test]
    fn test_notifier_collects_queues_until_taken() {
        let notifier = Notifier::new().expect("an eventfd");
        for index in [0, 31, 5, 0, 32, u32::MAX] {
            notifier.notify(index);
        }
        notifier.drain();
        assert!(notifier.event().read().is_err(), "drained");
        assert_eq!(notifier.take(), 1 << 31 | 1 << 5 | 1);
        assert_eq!(notifier.take(), 0);
        notifier.drain();
        notifier.wake();
        assert!(notifier.event().read().is_ok());
        assert_eq!(notifier.take(), 0);
    }

    #[test]
    fn test_state_round_trip() {
        let mem = memory();
        offer(&mem, &[2, 4, 6]);
        let (mut queues, interrupt) = ([queue()], Interrupt::new().expect("an eventfd"));
        let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
        let chain = io.pop(0).expect("whole").expect("a chain");
        io.complete(0, chain.head, 0).expect("in the table");
        drop(io);
        let state = QueueStateDef::from(&queues[0]);
        assert_eq!((state.next_avail, state.next_used, state.size), (1, 1, 8));

        let text = serde_json::to_string(&state).expect("plain data");
        let state: QueueStateDef = serde_json::from_str(&text).expect("it reads back");
        let mut queues = [Queue::try_from(state.clone()).expect("valid")];

        assert_eq!(QueueStateDef::from(&queues[0]), state);
        let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
        assert_eq!(io.pop(0).expect("whole").map(|chain| chain.head), Some(4));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn test_any_state_and_rings_do_not_panic(
            numbers in any::<(u16, u16, u16, u16)>(),
            flags in any::<(bool, bool)>(),
            places in prop::array::uniform3(prop_oneof![0..0x1_1000_u64, any::<u64>()]),
            bytes in prop::collection::vec(any::<u8>(), 0x400),
        ) {
            let state = QueueStateDef {
                max_size: 1 << (numbers.0 % 16),
                size: numbers.1,
                next_avail: numbers.2,
                next_used: numbers.3,
                event_idx_enabled: flags.0,
                ready: flags.1,
                desc_table: places[0],
                avail_ring: places[1],
                used_ring: places[2],
            };
            let mem = memory();
            for at in (0..0x1_0000).step_by(bytes.len()) {
                mem.write_slice(&bytes, GuestAddress(at)).expect("RAM");
            }
            if let Ok(queue) = Queue::try_from(state) {
                let (mut queues, interrupt) = ([queue], Interrupt::new().expect("an eventfd"));
                let mut io = QueueIo::new(&mem, &mut queues, &interrupt);
                for _ in 0..100 {
                    let Ok(Some(chain)) = io.pop(0) else {
                        break;
                    };
                    drop(io.complete(0, chain.head, 0));
                }
            }
        }
    }
}
