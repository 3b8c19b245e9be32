//! A driver for tests: rings and buffers in guest memory, a device between them and a folder of Unix
//! sockets.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::vsock::Vsock;
use crate::virtio::vsock::packet::{GUEST_CID, HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op};
use crate::virtio::{DeviceError, Interrupt, QueueIo, QueueStateDef, VirtioDevice};

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;

const QUEUE_SIZE: u16 = 64;
/// Bytes of a buffer of each queue; those of rx are as small as Linux's.
const BUFFER: [u32; 3] = [4096, 64 << 10, 16];
const NEXT: u16 = 1;
const WRITE: u16 = 2;

type Mem = GuestMemoryMmap<()>;

pub(super) struct Guest {
    pub(super) mem: Mem,
    pub(super) device: Vsock,
    pub(super) folder: TempDir,
    queues: Vec<Queue>,
    interrupt: Interrupt,
    /// Used ring index that the driver has come to.
    seen: [u16; 3],
    packets: VecDeque<(Header, Vec<u8>)>,
}

impl Guest {
    /// An active device whose rx and event queues have buffers.
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut guest = Self::without_buffers(new_device(&folder), folder);
        for index in 0..QUEUE_SIZE / 2 {
            guest.offer(RX, index);
        }
        for index in 0..8 {
            guest.offer(EVENT, index);
        }
        guest
    }

    pub(super) fn without_buffers(device: Vsock, folder: TempDir) -> Self {
        let mem = Mem::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("16 MiB can be mapped");
        let queues = (0..3)
            .map(|queue| {
                let mut state = QueueStateDef::from(&Queue::new(256).expect("a power of two"));
                state.size = QUEUE_SIZE;
                state.ready = true;
                state.desc_table = ring(queue);
                state.avail_ring = ring(queue) + 0x1000;
                state.used_ring = ring(queue) + 0x2000;
                Queue::try_from(state).expect("a valid queue")
            })
            .collect();
        Self {
            mem,
            device,
            folder,
            queues,
            interrupt: Interrupt::new().expect("an eventfd"),
            seen: [0; 3],
            packets: VecDeque::new(),
        }
    }

    /// This guest as a snapshot of it would be restored: the same memory and rings, a new device.
    pub(super) fn restored(&self) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = VirtioDevice::<Mem>::save(&self.device);
        let json = serde_json::to_string(&state).expect("plain data");
        let mut device = new_device(&folder);
        let state = serde_json::from_str(&json).expect("the same data");
        VirtioDevice::<Mem>::restore(&mut device, state, &self.mem).expect("its own state");
        let mut guest = Self::without_buffers(device, folder);
        let mut page = vec![0; 0x10_0000];
        for start in (0..16 << 20).step_by(page.len()) {
            self.mem
                .read_slice(&mut page, GuestAddress(start))
                .expect("in memory");
            guest
                .mem
                .write_slice(&page, GuestAddress(start))
                .expect("in memory");
        }
        guest.queues = self
            .queues
            .iter()
            .map(|queue| Queue::try_from(QueueStateDef::from(queue)).expect("its own state"))
            .collect();
        guest.seen = self.seen;
        guest.work(|device, io| device.resume(io));
        guest
    }

    pub(super) fn work(
        &mut self,
        work: impl FnOnce(&mut Vsock, &mut QueueIo<'_, Mem>) -> Result<(), DeviceError>,
    ) {
        let mut io = QueueIo::new(&self.mem, &mut self.queues, &self.interrupt);
        work(&mut self.device, &mut io).expect("the driver keeps to the rules");
    }

    pub(super) fn notify(&mut self, queue: usize) {
        self.work(|device, io| device.process_queue(queue, io));
    }

    /// Lets the device serve the host's side until nothing has happened there for a moment.
    pub(super) fn settle(&mut self) {
        while self.backend_ready(Duration::from_millis(20)) {
            self.work(Vsock::process_backend);
        }
    }

    pub(super) fn backend_ready(&self, within: Duration) -> bool {
        let backend = VirtioDevice::<Mem>::backend(&self.device).expect("vsock has a backend");
        let within = Timespec::try_from(within).expect("short");
        let mut fds = [PollFd::new(&backend, PollFlags::IN)];
        poll(&mut fds, Some(&within)).expect("polled") > 0
    }

    /// Offers buffer `index` of `queue`, as one descriptor of the same index.
    pub(super) fn offer(&mut self, queue: usize, index: u16) {
        let len = BUFFER[queue];
        let flags = if queue == TX { 0 } else { WRITE };
        self.offer_chain(queue, index, &[(buffer(queue, index), len, flags)]);
    }

    /// Offers descriptors `first` and up as one chain.
    pub(super) fn offer_chain(&mut self, queue: usize, first: u16, chain: &[(u64, u32, u16)]) {
        for (offset, &(addr, len, flags)) in chain.iter().enumerate() {
            let index = first + u16::try_from(offset).expect("a short chain");
            let last = offset + 1 == chain.len();
            let flags = if last { flags } else { flags | NEXT };
            self.mem
                .write_obj(
                    Descriptor::new(addr, len, flags, index + 1),
                    GuestAddress(ring(queue) + 16 * u64::from(index)),
                )
                .expect("in memory");
        }
        let avail = ring(queue) + 0x1000;
        let index: u16 = self
            .mem
            .read_obj(GuestAddress(avail + 2))
            .expect("in memory");
        let slot = avail + 4 + 2 * u64::from(index % QUEUE_SIZE);
        self.mem
            .write_obj(first, GuestAddress(slot))
            .expect("in memory");
        self.mem
            .write_obj(index.wrapping_add(1), GuestAddress(avail + 2))
            .expect("in memory");
    }

    /// The chains the device has returned since the last call: first descriptor and bytes written.
    pub(super) fn returned(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let used = ring(queue) + 0x2000;
        let index: u16 = self
            .mem
            .read_obj(GuestAddress(used + 2))
            .expect("in memory");
        let mut chains = Vec::new();
        while self.seen[queue] != index {
            let slot = used + 4 + 8 * u64::from(self.seen[queue] % QUEUE_SIZE);
            let head: u32 = self.mem.read_obj(GuestAddress(slot)).expect("in memory");
            let len: u32 = self
                .mem
                .read_obj(GuestAddress(slot + 4))
                .expect("in memory");
            chains.push((u16::try_from(head).expect("an index"), len));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        chains
    }

    /// Whether a chain can be offered without running over the ring.
    pub(super) fn has_room(&self, queue: usize) -> bool {
        let index = |part| -> u16 {
            let address = GuestAddress(ring(queue) + part + 2);
            self.mem.read_obj(address).expect("in memory")
        };
        index(0x1000).wrapping_sub(index(0x2000)) < QUEUE_SIZE
    }

    /// Sends a packet in one descriptor, whatever its header says.
    pub(super) fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        let mut packet = header.to_bytes().to_vec();
        packet.extend_from_slice(payload);
        self.mem
            .write_slice(&packet, GuestAddress(buffer(TX, 0)))
            .expect("in memory");
        let len = u32::try_from(packet.len()).expect("short");
        self.offer_chain(TX, 0, &[(buffer(TX, 0), len, 0)]);
        self.notify(TX);
    }

    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("short");
        self.send_raw(&Header { len, ..header }, payload);
        assert_eq!(self.returned(TX), [(0, 0)], "the packet is taken at once");
    }

    /// The next packet from the device, if it has one; the buffer is offered again.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        for (index, len) in self.returned(RX) {
            let mut packet = vec![0; usize::try_from(len).expect("short")];
            self.mem
                .read_slice(&mut packet, GuestAddress(buffer(RX, index)))
                .expect("in memory");
            let header = Header::from_bytes(&packet).expect("a whole header");
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
            assert_eq!(header.len + 44, len);
            self.packets
                .push_back((header, packet[HEADER_LEN..].to_vec()));
            self.offer(RX, index);
            self.notify(RX);
        }
        self.packets.pop_front()
    }

    /// The next packet, for which the device may have to look at the host's side.
    pub(super) fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        for _ in 0..1000 {
            if let Some((header, payload)) = self.receive() {
                assert_eq!(header.op, op, "{header:?}");
                return (header, payload);
            }
            if self.backend_ready(Duration::from_millis(100)) {
                self.work(Vsock::process_backend);
            }
        }
        panic!("no packet came, expected operation {op}");
    }

    /// No packet comes.
    pub(super) fn expect_silence(&mut self) {
        self.settle();
        assert_eq!(self.receive(), None);
    }

    /// A host client that asks for guest port `port`.
    pub(super) fn client(&self, port: u32) -> UnixStream {
        let mut client = self.stream();
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .expect("written");
        client
    }

    /// A host client that has not said anything yet.
    pub(super) fn stream(&self) -> UnixStream {
        let path = self.folder.path().join("vsock.sock");
        let client = UnixStream::connect(path).expect("listening");
        patient(&client);
        client
    }

    /// A listener behind host port `port`.
    pub(super) fn listen(&self, port: u32) -> UnixListener {
        let path = self.folder.path().join(format!("vsock.sock_{port}"));
        UnixListener::bind(path).expect("bound")
    }
}

/// A read that gets nothing must fail the test, not hang it.
fn patient(stream: &UnixStream) {
    let timeout = Some(Duration::from_secs(10));
    stream.set_read_timeout(timeout).expect("settable");
    stream.set_write_timeout(timeout).expect("settable");
}

pub(super) fn new_device(folder: &TempDir) -> Vsock {
    let path = folder.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    Vsock::new(listener, path).expect("descriptors can be made")
}

/// A packet from the guest with a generous credit.
pub(super) fn packet(guest: u32, host: u32, op: u16) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 256 << 10,
        ..Header::default()
    }
}

/// Where the parts of a queue and its buffers are.
fn ring(queue: usize) -> u64 {
    0x1_0000 * (queue as u64 + 1)
}

pub(super) fn buffer(queue: usize, index: u16) -> u64 {
    0x10_0000 * (4 * queue as u64 + 1) + u64::from(BUFFER[queue]) * u64::from(index)
}

/// A connection that the guest opened from port 7 to host port 1024, and its far end.
pub(super) fn guest_connection(guest: &mut Guest) -> UnixStream {
    let listener = guest.listen(1024);
    guest.send(packet(7, 1024, op::REQUEST), &[]);
    guest.expect(op::RESPONSE);
    let (stream, _) = listener.accept().expect("connected");
    patient(&stream);
    stream
}
