//! The device between the queues and the muxer.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::{GuestMemory, Permissions};

use super::muxer::{FIRST_PORT, LAST_PORT, Muxer};
use super::packet::{GUEST_CID, HEADER_LEN, Header, payload};
use crate::virtio::{
    ActivateError, DeviceError, QueueIo, RestoreError, VirtioDevice, read_config_bytes,
};

/// Queues, by index.
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// Size of each queue, in descriptors.
const QUEUE_SIZE: u16 = 256;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, the only event there is, as `struct virtio_vsock_event`.
const EVENT_TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();
const EVENT_LEN: u32 = 4;

/// Packets handled before the device thread looks after others: a few milliseconds' worth.
const BUDGET: u32 = 64;

/// A vsock device for guest context id 3.
pub struct Vsock {
    muxer: Muxer,
    /// The guest must be told of a transport reset as soon as it offers a buffer for the event.
    reset_due: bool,
    /// The guest has been told: it offers an event's buffer again once it has closed its connections, and
    /// then the index of the available ring has come this far.
    reset_index: Option<u16>,
}

/// What a snapshot holds of a vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u64,
    /// Host port of the next connection that a host client asks for. A restored device goes on from
    /// here, so that new connections do not look like those the guest has yet to close.
    pub next_port: u32,
    /// Index of the event queue's available ring at which the guest has dealt with the transport reset
    /// events it was sent; `None` when it has.
    pub reset_index: Option<u16>,
}

impl Vsock {
    /// A device whose host clients come in over `listener`. Host port `P` of guest connections is the
    /// Unix socket `<prefix>_P`, relative to the working directory or absolute.
    ///
    /// # Errors
    /// When the descriptors the device waits on cannot be made.
    pub fn new(listener: UnixListener, prefix: impl Into<OsString>) -> io::Result<Self> {
        Ok(Self {
            muxer: Muxer::new(listener, prefix.into())?,
            reset_due: false,
            reset_index: None,
        })
    }

    /// Moves packets both ways until there are none, or no buffers, or others should have a turn.
    fn work<M: GuestMemory>(&mut self, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        self.advance_reset(io)?;
        let mut budget = BUDGET;
        loop {
            let before = budget;
            self.transmit(io, &mut budget)?;
            if !self.reset_due && self.reset_index.is_none() {
                self.receive(io, &mut budget)?;
            }
            if budget == 0 {
                self.muxer.wake()?;
                return Ok(());
            }
            if budget == before {
                return Ok(());
            }
        }
    }

    /// Takes the guest's packets.
    fn transmit<M: GuestMemory>(
        &mut self,
        io: &mut QueueIo<'_, M>,
        budget: &mut u32,
    ) -> Result<(), DeviceError> {
        let mem = io.mem;
        while *budget > 0 && self.muxer.can_take() {
            let Some(chain) = io.pop(TX)? else {
                return Ok(());
            };
            *budget -= 1;
            if let Some(header) = Header::from_bytes(&chain.read(mem, HEADER_LEN)?) {
                let sent = payload(mem, &chain.readable, Permissions::Read, header.len)?;
                let len: usize = sent.iter().map(|slice| slice.len()).sum();
                let whole = u32::try_from(len) == Ok(header.len);
                self.muxer
                    .take_packet(&header, whole.then_some(sent.as_slice()));
            }
            io.complete(TX, chain.head, 0)?;
        }
        Ok(())
    }

    /// Fills the guest's buffers.
    fn receive<M: GuestMemory>(
        &mut self,
        io: &mut QueueIo<'_, M>,
        budget: &mut u32,
    ) -> Result<(), DeviceError> {
        let mem = io.mem;
        while *budget > 0 && self.muxer.has_packet() {
            let Some(chain) = io.pop(RX)? else {
                return Ok(());
            };
            let space = payload(mem, &chain.writable, Permissions::Write, u32::MAX)?;
            let mut used = 0;
            // A buffer with room for no more than a header goes back as it is.
            if !space.is_empty() {
                let Some(header) = self.muxer.next_packet(&space) else {
                    io.undo_pop(RX)?;
                    return Ok(());
                };
                used = chain.write(mem, &header.to_bytes())? + header.len;
            }
            *budget -= 1;
            io.complete(RX, chain.head, used)?;
        }
        Ok(())
    }

    /// Takes a transport reset one step further, if one is under way.
    fn advance_reset<M: GuestMemory>(
        &mut self,
        io: &mut QueueIo<'_, M>,
    ) -> Result<(), DeviceError> {
        while self.reset_due {
            let Some(chain) = io.pop(EVENT)? else {
                return Ok(());
            };
            let mut used = 0;
            if chain.writable_len() >= EVENT_LEN {
                used = chain.write(io.mem, &EVENT_TRANSPORT_RESET)?;
                let offered = io.avail_idx(EVENT)?;
                let awaited = self.reset_index.filter(|&index| !reached(offered, index));
                self.reset_index = Some(awaited.unwrap_or(offered).wrapping_add(1));
                self.reset_due = false;
            }
            io.complete(EVENT, chain.head, used)?;
        }
        if let Some(index) = self.reset_index
            && reached(io.avail_idx(EVENT)?, index)
        {
            self.reset_index = None;
        }
        Ok(())
    }
}

/// Whether a ring index that counts up modulo 2^16 has come to `goal`, which is near.
fn reached(index: u16, goal: u16) -> bool {
    index.wrapping_sub(goal) < 1 << 15
}

impl<M: GuestMemory> VirtioDevice<M> for Vsock {
    type State = VsockState;

    const ID: u32 = VIRTIO_ID_VSOCK;
    const QUEUE_SIZES: &'static [u16] = &[QUEUE_SIZE; 3];

    /// None: streams need no feature bit.
    fn features(&self) -> u64 {
        0
    }

    /// `struct virtio_vsock_config`: the guest's context id, 64 bits.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&GUEST_CID.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, _features: u64, _mem: &M) -> Result<(), ActivateError> {
        Ok(())
    }

    /// Drops all connections; host clients see theirs closed.
    fn reset(&mut self, _mem: &M) {
        self.muxer.clear();
        self.reset_due = false;
        self.reset_index = None;
    }

    fn process_queue(&mut self, _index: usize, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        // Room in one queue lets packets of the others move on.
        self.work(io)
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.muxer.fd())
    }

    fn process_backend(&mut self, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        self.muxer.poll()?;
        self.work(io)
    }

    /// Leaves connections out: they go on in the source, and what is restored resets them.
    fn save(&self) -> VsockState {
        VsockState {
            guest_cid: GUEST_CID,
            next_port: self.muxer.next_port(),
            reset_index: self.reset_index,
        }
    }

    fn restore(&mut self, state: VsockState, _mem: &M) -> Result<(), RestoreError> {
        if state.guest_cid != GUEST_CID {
            return Err(RestoreError("the vsock context id differs".into()));
        }
        if !(FIRST_PORT..=LAST_PORT).contains(&state.next_port) {
            return Err(RestoreError("the vsock host port is out of range".into()));
        }
        self.muxer.set_next_port(state.next_port);
        self.reset_due = true;
        self.reset_index = state.reset_index;
        Ok(())
    }

    fn check_queues(&self, io: &QueueIo<'_, M>) -> Result<(), RestoreError> {
        let Some(index) = self.reset_index else {
            return Ok(());
        };
        let offered = io
            .avail_idx(EVENT)
            .map_err(|error| RestoreError(format!("the vsock event queue: {error}")))?;
        if reached(offered, index) || index.wrapping_sub(offered) <= QUEUE_SIZE {
            return Ok(());
        }
        Err(RestoreError(
            "more vsock events are awaited than the queue holds".into(),
        ))
    }

    fn resume(&mut self, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        self.muxer.restart_deadlines();
        self.advance_reset(io)
    }
}
