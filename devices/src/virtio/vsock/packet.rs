//! The vsock packet header, and where a packet's payload lies in guest memory.
//!
//! Numbers and layout: virtio 1.2, "Socket Device". All fields are little endian on the wire.

use vm_memory::bitmap::BS;
use vm_memory::{GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

use crate::virtio::Range;

/// Bytes of a header on the wire.
pub(super) const HEADER_LEN: usize = 44;

/// Context id of the host.
pub(super) const HOST_CID: u64 = 2;
/// Context id of every guest: nobody but its own host side, a socket of its own, ever sees it.
pub const GUEST_CID: u64 = 3;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only socket type offered.
pub(super) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_OP_*`.
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender of the packet receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender of the packet sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// The two ports that name a connection: the context ids are always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Payload bytes behind the header.
    pub(super) len: u32,
    /// Socket type.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes of buffer that the sender of the packet has for the connection.
    pub(super) buf_alloc: u32,
    /// Bytes that the sender of the packet has taken out of that buffer so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// A packet to the guest, without payload and credit.
    pub(super) fn to_guest(ports: Ports, op: u16) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            op,
            ..Self::default()
        }
    }

    /// The header that `bytes` begins with, unless they are too few.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        Some(Self {
            src_cid: u64::from_le_bytes(take(&mut rest)?),
            dst_cid: u64::from_le_bytes(take(&mut rest)?),
            src_port: u32::from_le_bytes(take(&mut rest)?),
            dst_port: u32::from_le_bytes(take(&mut rest)?),
            len: u32::from_le_bytes(take(&mut rest)?),
            kind: u16::from_le_bytes(take(&mut rest)?),
            op: u16::from_le_bytes(take(&mut rest)?),
            flags: u32::from_le_bytes(take(&mut rest)?),
            buf_alloc: u32::from_le_bytes(take(&mut rest)?),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)?),
        })
    }

    /// The header on the wire.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, &self.src_cid.to_le_bytes());
        put(&mut rest, &self.dst_cid.to_le_bytes());
        put(&mut rest, &self.src_port.to_le_bytes());
        put(&mut rest, &self.dst_port.to_le_bytes());
        put(&mut rest, &self.len.to_le_bytes());
        put(&mut rest, &self.kind.to_le_bytes());
        put(&mut rest, &self.op.to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.buf_alloc.to_le_bytes());
        put(&mut rest, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, later) = rest.split_first_chunk()?;
    *rest = later;
    Some(*field)
}

fn put(rest: &mut &mut [u8], field: &[u8]) {
    let (now, later) = std::mem::take(rest).split_at_mut(field.len());
    now.copy_from_slice(field);
    *rest = later;
}

/// The memory of `ranges` that follows a header, at most `limit` bytes of it. The guest may change it
/// at any time.
pub(super) fn payload<'a, M: GuestMemory>(
    mem: &'a M,
    ranges: &[Range],
    access: Permissions,
    limit: u32,
) -> Result<Vec<VolatileSlice<'a, BS<'a, M::Bitmap>>>, GuestMemoryError> {
    let mut skip = HEADER_LEN;
    let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut slices = Vec::new();
    for range in ranges {
        let len = usize::try_from(range.len).unwrap_or(usize::MAX);
        for slice in mem.get_slices(range.addr, len, access)? {
            let slice = slice?;
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let taken = left.min(slice.len() - skipped);
            left -= taken;
            if taken > 0 {
                slices.push(slice.subslice(skipped, taken)?);
            }
        }
    }
    Ok(slices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    #[test]
    fn test_header_wire_layout() {
        let bytes: Vec<u8> = (0..44).collect();

        let header = Header::from_bytes(&bytes).expect("44 bytes are a header");

        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.to_bytes().as_slice(), bytes);
    }

    #[test]
    fn test_header_truncated_is_none() {
        assert_eq!(Header::from_bytes(&[0; 43]), None);
        assert!(Header::from_bytes(&[0; 45]).is_some());
    }

    #[test]
    fn test_payload_begins_behind_a_split_header() {
        let mem: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("a page is mapped");
        mem.write_slice(b"xxab", GuestAddress(0x100))
            .expect("in memory");
        mem.write_slice(b"cdef", GuestAddress(0x200))
            .expect("in memory");
        let ranges = [(0x300, 42), (0x100, 4), (0x200, 4)].map(|(addr, len)| Range {
            addr: GuestAddress(addr),
            len,
        });

        let slices = payload(&mem, &ranges, Permissions::Read, 5).expect("all in memory");

        let mut bytes = Vec::new();
        for slice in slices {
            let mut part = vec![0_u8; slice.len()];
            slice.copy_to(&mut part);
            bytes.extend(part);
        }
        assert_eq!(bytes, b"abcde");
    }
}
