//! What the device does for the driver: it answers requests and tells events.

use std::os::fd::AsFd;

use cachot_secrets::{MAX_VALUE_LEN, Name};
use vm_memory::GuestMemory;

use super::delivered::Delivered;
use super::events::Events;
use super::handles::{Attachment, Content, Handles, Refusal};
use super::host::{Entry, HostError, Secret, declare};
use super::pages::{PageRange, deliver, is_ram, wipe};
use super::persist::SecretsState;
use super::wire::{
    self, DEVICE_ID, EVENT, EVENT_QUEUE, LIST_ENTRY, LIST_HEADER, ListEntry, MAX_REQUEST,
    REQUEST_QUEUE, RESPONSE_HEADER, Request, Status, VALUE_HEADER,
};
use crate::virtio::{
    ActivateError, Chain, DeviceError, FileAt, QueueIo, RestoreError, VirtioDevice, Zeros,
    read_config_bytes,
};

/// The secrets device.
#[derive(Debug)]
pub struct SecretsDevice {
    pub(super) entries: Vec<Entry>,
    pub(super) delivered: Delivered,
    pub(super) epoch: u64,
    pub(super) acknowledged: u64,
    pub(super) frozen: bool,
    pub(super) handles: Handles,
    pub(super) events: Events,
    pub(super) config_changed: bool,
}

impl SecretsDevice {
    /// A device that delivers `secrets`, whose order LIST keeps.
    ///
    /// # Errors
    /// [`HostError::Limit`] or [`HostError::Read`].
    pub fn new(secrets: Vec<Secret>) -> Result<Self, HostError> {
        const FIRST_EPOCH: u64 = 1;
        let mut delivered = Delivered::default();
        Ok(Self {
            entries: declare(secrets, FIRST_EPOCH, &mut delivered)?,
            delivered,
            epoch: FIRST_EPOCH,
            acknowledged: 0,
            frozen: false,
            handles: Handles::default(),
            events: Events::default(),
            config_changed: false,
        })
    }

    /// The epoch, which changes with everything that happens to secrets.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last epoch that the driver says it has acted upon; 0 at first.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    fn config(&self) -> [u8; 24] {
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let longest = u32::try_from(MAX_VALUE_LEN).unwrap_or(u32::MAX);
        let mut config = [0; 24];
        config[..8].copy_from_slice(&self.epoch.to_le_bytes());
        config[8..12].copy_from_slice(&count.to_le_bytes());
        config[12..16].copy_from_slice(&longest.to_le_bytes());
        config[16..20].copy_from_slice(&u32::from(self.frozen).to_le_bytes());
        config
    }

    /// Answers one request; the number of bytes written to the chain.
    fn serve<M: GuestMemory>(
        &mut self,
        chain: &Chain,
        io: &QueueIo<'_, M>,
    ) -> Result<u32, DeviceError> {
        let Some(room) = chain.writable_len().checked_sub(RESPONSE_HEADER) else {
            return Ok(0);
        };
        // The one time that the request is read: what the guest does to it from here on is lost. A longer one
        // is cut, and as malformed as it was.
        let request = Request::parse(&chain.read(io.mem, MAX_REQUEST)?);
        let reply = match request {
            None => Reply::status(Status::Invalid),
            Some(Request::Detach { handle }) => self.detach(handle, io.mem)?,
            Some(Request::Ack { epoch }) => self.acknowledge(epoch),
            Some(_) if self.frozen => Reply::status(Status::Frozen),
            Some(Request::List { start }) => self.list(start, room),
            Some(Request::Attach { name, ranges }) => self.attach(name, ranges, chain, io)?,
            Some(Request::Get { name }) => self.get(&name, chain, io.mem)?,
        };
        let mut bytes = wire::response_header(reply.status, self.epoch).to_vec();
        bytes.extend_from_slice(&reply.body);
        Ok(chain.write(io.mem, &bytes)? + reply.value_len)
    }

    fn list(&self, start: u32, room: u32) -> Reply {
        let Some(room) = room.checked_sub(LIST_HEADER) else {
            return Reply::status(Status::Invalid);
        };
        let fitting = (room / LIST_ENTRY) as usize;
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let entries = self.entries.iter().skip(start).take(fitting);
        let mut body = Vec::with_capacity(LIST_HEADER as usize);
        for number in [self.entries.len(), entries.len()] {
            body.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        for entry in entries {
            ListEntry {
                name: &entry.name,
                version: entry.version,
                value_len: entry.value_len,
                uid: entry.uid,
                gid: entry.gid,
                mode: entry.mode,
            }
            .encode(&mut body);
        }
        Reply::new(Status::Ok, body)
    }

    fn attach<M: GuestMemory>(
        &mut self,
        name: Name,
        ranges: Vec<PageRange>,
        chain: &Chain,
        io: &QueueIo<'_, M>,
    ) -> Result<Reply, DeviceError> {
        let room = chain.writable_len() - RESPONSE_HEADER;
        if room < VALUE_HEADER || !may_be_attached(&ranges, chain, io) {
            return Ok(Reply::status(Status::Invalid));
        }
        let within_limits = match self.handles.check(&ranges) {
            Err(Refusal::Overlap) => return Ok(Reply::status(Status::Invalid)),
            other => other.is_ok(),
        };
        let Some(entry) = self.entries.iter().find(|entry| entry.name == name) else {
            return Ok(Reply::status(Status::NoEnt));
        };
        let Some(value) = &entry.value else {
            return Ok(Reply::status(Status::Revoked));
        };
        let pages = Attachment {
            name,
            content: Content::Current(entry.version),
            ranges,
        };
        if pages.len() < u64::from(entry.value_len) {
            let body = wire::attach_body(0, entry.value_len, entry.version);
            return Ok(Reply::new(Status::TooBig, body));
        }
        if !within_limits {
            return Ok(Reply::status(Status::Unavailable));
        }
        if deliver(io.mem, &pages.ranges, value).is_err() {
            return Ok(Reply::status(Status::Unavailable));
        }
        let handle = self.handles.insert(pages);
        let body = wire::attach_body(handle, entry.value_len, entry.version);
        Ok(Reply::new(Status::Ok, body))
    }

    fn detach<M: GuestMemory>(&mut self, handle: u32, mem: &M) -> Result<Reply, DeviceError> {
        let Some(pages) = self.handles.get(handle) else {
            return Ok(Reply::status(Status::NoEnt));
        };
        wipe(mem, &pages.ranges)?;
        self.handles.remove(handle);
        Ok(Reply::status(Status::Ok))
    }

    fn get<M: GuestMemory>(
        &self,
        name: &Name,
        chain: &Chain,
        mem: &M,
    ) -> Result<Reply, DeviceError> {
        const VALUE_AT: u32 = RESPONSE_HEADER + VALUE_HEADER;
        let Some(room) = chain.writable_len().checked_sub(VALUE_AT) else {
            return Ok(Reply::status(Status::Invalid));
        };
        let Some(entry) = self.entries.iter().find(|entry| entry.name == *name) else {
            return Ok(Reply::status(Status::NoEnt));
        };
        let Some(value) = &entry.value else {
            return Ok(Reply::status(Status::Revoked));
        };
        let body = wire::get_body(entry.value_len, entry.version);
        if room < entry.value_len {
            return Ok(Reply::new(Status::TooBig, body));
        }
        let mut source = FileAt::new(value.as_fd(), 0);
        if chain
            .fill(mem, VALUE_AT, entry.value_len, &mut source)
            .is_err()
        {
            chain.fill(mem, VALUE_AT, entry.value_len, &mut Zeros)?;
            return Ok(Reply::status(Status::Unavailable));
        }
        Ok(Reply {
            status: Status::Ok,
            body,
            value_len: entry.value_len,
        })
    }

    fn acknowledge(&mut self, epoch: u64) -> Reply {
        if epoch > self.epoch {
            return Reply::status(Status::Invalid);
        }
        self.acknowledged = self.acknowledged.max(epoch);
        Reply::status(Status::Ok)
    }

    /// Tells the driver what it was not told yet, as far as it has given buffers.
    fn tell<M: GuestMemory>(&mut self, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        if std::mem::take(&mut self.config_changed) {
            io.config_change();
        }
        while let Some(event) = self.events.front() {
            let Some(chain) = io.pop(EVENT_QUEUE)? else {
                break;
            };
            let mut written = 0;
            if chain.writable_len() >= EVENT {
                let bytes = wire::event(event.kind, event.name.as_ref(), event.epoch);
                written = chain.write(io.mem, &bytes)?;
                self.events.pop_front();
            }
            io.complete(EVENT_QUEUE, chain.head, written)?;
        }
        Ok(())
    }
}

/// What a request is answered with.
struct Reply {
    status: Status,
    body: Vec<u8>,
    /// Bytes of a value that are in the chain behind the body already.
    value_len: u32,
}

impl Reply {
    fn new(status: Status, body: Vec<u8>) -> Self {
        Self {
            status,
            body,
            value_len: 0,
        }
    }

    fn status(status: Status) -> Self {
        Self::new(status, Vec::new())
    }
}

/// Whether all ranges are RAM in which neither a ring nor a part of the request's own chain lies.
fn may_be_attached<M: GuestMemory>(
    ranges: &[PageRange],
    chain: &Chain,
    io: &QueueIo<'_, M>,
) -> bool {
    let rings = io
        .rings()
        .map(|(start, len)| PageRange::around(start.0, len));
    let own = chain.readable.iter().chain(&chain.writable);
    let own = own.map(|part| PageRange::around(part.addr.0, part.len.into()));
    let taken: Vec<PageRange> = rings.chain(own).collect();
    ranges
        .iter()
        .all(|range| is_ram(io.mem, *range) && !taken.iter().any(|taken| range.overlaps(*taken)))
}

impl<M: GuestMemory> VirtioDevice<M> for SecretsDevice {
    type State = SecretsState;

    const ID: u32 = DEVICE_ID;
    const QUEUE_SIZES: &'static [u16] = &[64, 64];

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn config_generation(&self) -> u32 {
        // Every change of the configuration either begins an epoch or freezes the device within one, and
        // this differs after each, across a restore as well. Wrapping is what a generation does.
        let changes = self.epoch.wrapping_mul(2) + u64::from(self.frozen);
        let [a, b, c, d, ..] = changes.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn activate(&mut self, _features: u64, _mem: &M) -> Result<(), ActivateError> {
        // The driver that starts now lists what there is; older news would only confuse it.
        self.events.clear();
        self.config_changed = false;
        Ok(())
    }

    fn reset(&mut self, mem: &M) {
        for (_, pages) in self.handles.iter() {
            wipe(mem, &pages.ranges)
                .expect("attached pages were found to be RAM, which never goes");
        }
        self.handles.clear();
        self.acknowledged = 0;
    }

    fn process_queue(&mut self, index: usize, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        if index == REQUEST_QUEUE {
            while let Some(chain) = io.pop(REQUEST_QUEUE)? {
                let written = self.serve(&chain, io)?;
                io.complete(REQUEST_QUEUE, chain.head, written)?;
            }
        }
        self.tell(io)
    }

    fn save(&self) -> SecretsState {
        SecretsState::from(self)
    }

    fn restore(&mut self, state: SecretsState, mem: &M) -> Result<(), RestoreError> {
        state.restore(self, mem)
    }

    fn check_queues(&self, io: &QueueIo<'_, M>) -> Result<(), RestoreError> {
        let refused = |text: &str| Err(RestoreError(format!("secrets: {text}")));
        let mut rings = io
            .rings()
            .map(|(start, len)| PageRange::around(start.0, len));
        if rings.any(|ring| self.handles.overlaps(ring)) {
            return refused("an attached page belongs to a virtqueue");
        }
        if io.rings().next().is_none() && self.handles.iter().next().is_some() {
            return refused("pages are attached, but no virtqueue is in use");
        }
        Ok(())
    }
}
