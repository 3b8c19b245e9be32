//! A guest's driver for tests, with rx buffers like Linux's, and the host's end of its connections.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::GuestAddress;

use crate::virtio::VirtioDevice;
use crate::virtio::testing::{LIVE, Memory, NEXT, QUEUE_SIZE, Rig, WRITE, rings};
use crate::virtio::vsock::Vsock;
use crate::virtio::vsock::packet::{GUEST_CID, HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op};

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;

/// Bytes of a buffer of each queue.
const BUFFER: [u32; 3] = [4096, 64 << 10, 16];

pub(super) struct Guest {
    pub(super) rig: Rig<Vsock>,
    pub(super) folder: TempDir,
    packets: VecDeque<(Header, Vec<u8>)>,
}

impl Guest {
    /// A guest whose rx and event queues have buffers.
    pub(super) fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.offer_all();
        guest
    }

    pub(super) fn without_buffers() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mem = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("mapped");
        let mut rig = Rig::with_memory(new_device(&folder), mem);
        rig.start();
        Self {
            rig,
            folder,
            packets: VecDeque::new(),
        }
    }

    fn offer_all(&mut self) {
        for index in 0..QUEUE_SIZE / 2 {
            self.offer(RX, index);
        }
        for index in 0..8 {
            self.offer(EVENT, index);
        }
        self.rig.kick(RX);
    }

    /// The driver resets the device and starts again.
    pub(super) fn restart(&mut self) {
        self.rig.start();
        self.packets.clear();
        self.offer_all();
    }

    /// What is restored from a snapshot of this guest, running, with a folder of its own.
    pub(super) fn restored(&self) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rig = self.rig.restored(new_device(&folder));
        rig.transport().resume();
        rig.run();
        assert_eq!(rig.status(), LIVE);
        Self {
            rig,
            folder,
            packets: VecDeque::new(),
        }
    }

    /// Lets the device serve the host's side for a moment.
    pub(super) fn settle(&mut self) {
        for _ in 0..10 {
            self.rig.run();
            sleep(Duration::from_millis(2));
        }
    }

    /// Offers buffer `index` of `queue`, as the descriptor of the same index.
    pub(super) fn offer(&mut self, queue: usize, index: u16) {
        let part = (buffer(queue, index), BUFFER[queue], WRITE);
        self.offer_chain(queue, index, &[part]);
    }

    /// Offers descriptors `first` and up as one chain.
    pub(super) fn offer_chain(&mut self, queue: usize, first: u16, chain: &[(u64, u32, u16)]) {
        for (&(addr, len, flags), index) in chain.iter().zip(first..) {
            let last = usize::from(index - first) + 1 == chain.len();
            let flags = if last { flags } else { flags | NEXT };
            self.rig
                .describe(queue, index, (addr, len, flags, index + 1));
        }
        self.rig.offer(queue, first);
    }

    /// Whether a chain can be offered without running over the ring.
    pub(super) fn has_room(&self, queue: usize) -> bool {
        let (_, avail, used) = rings(queue);
        let index = |ring| {
            let bytes = self.rig.read(ring + 2, 2);
            u16::from_le_bytes([bytes[0], bytes[1]])
        };
        index(avail).wrapping_sub(index(used)) < QUEUE_SIZE
    }

    /// Sends a packet in one descriptor, whatever its header says.
    pub(super) fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        let mut packet = header.to_bytes().to_vec();
        packet.extend_from_slice(payload);
        self.rig.write(buffer(TX, 0), &packet);
        let len = u32::try_from(packet.len()).expect("short");
        self.offer_chain(TX, 0, &[(buffer(TX, 0), len, 0)]);
        self.rig.kick(TX);
    }

    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("short");
        self.send_raw(&Header { len, ..header }, payload);
        assert_eq!(self.rig.used(TX), [(0, 0)], "the packet is taken at once");
    }

    /// The next packet from the device, if it has one; the buffer is offered again.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        for (head, len) in self.rig.used(RX) {
            let index = u16::try_from(head).expect("an index");
            let packet = self.rig.read(buffer(RX, index), len as usize);
            let header = Header::from_bytes(&packet).expect("a whole header");
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
            assert_eq!(header.len + 44, len);
            self.packets
                .push_back((header, packet[HEADER_LEN..].to_vec()));
            self.offer(RX, index);
            self.rig.kick(RX);
        }
        self.packets.pop_front()
    }

    /// The next packet, for which the device may have to wait for the host.
    pub(super) fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        for _ in 0..5000 {
            if let Some((header, payload)) = self.receive() {
                assert_eq!(header.op, op, "{header:?}");
                return (header, payload);
            }
            sleep(Duration::from_millis(2));
            self.rig.run();
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

fn new_device(folder: &TempDir) -> Vsock {
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

/// Where buffer `index` of a queue is.
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

/// The device's saved state, changed.
pub(super) fn restore_changed(
    guest: &Guest,
    change: impl FnOnce(&mut <Vsock as VirtioDevice<Memory>>::State),
) -> Result<(), crate::virtio::RestoreError> {
    guest.rig.transport().pause().expect("quiesced");
    let mut state = guest.rig.transport().save();
    change(&mut state.device);
    let folder = tempfile::tempdir().expect("a folder");
    let rig = Rig::with_memory(new_device(&folder), guest.rig.mem.clone());
    rig.transport().restore(state)
}
