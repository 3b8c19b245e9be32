//! A descriptor chain, walked once and strictly.
//!
//! `virtio-queue`'s iterator ends silently where a chain is broken, and follows indirect tables
//! whether they were negotiated or not. Our devices must tell a short chain from a broken one, so
//! they see a chain only after this walk has found it whole.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, ReadVolatile, WriteVolatile,
};

/// A piece of guest memory that lies in RAM; its end does not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Guest-physical address.
    pub addr: GuestAddress,
    /// Length in bytes; not zero.
    pub len: u32,
}

/// A whole chain: readable ranges, then writable ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Index of the chain's first descriptor, which names the chain in the used ring.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: Vec<Range>,
    /// What the device may write, in order.
    pub writable: Vec<Range>,
}

/// Why a chain is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor index at or over the queue's size.
    #[error("a descriptor index is outside the table")]
    BadIndex,
    /// More descriptors than the queue has: the chain loops.
    #[error("the chain is longer than the queue")]
    TooLong,
    /// `VIRTQ_DESC_F_INDIRECT`, which no device here offers.
    #[error("the chain has an indirect descriptor")]
    Indirect,
    /// A readable descriptor after a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// A descriptor that does not lie in RAM, or has no length.
    #[error("a descriptor does not lie in RAM")]
    BadRange,
    /// The total length does not fit 32 bits (virtio 1.2, "The Virtqueue Descriptor Table").
    #[error("the chain is longer than 4 GiB")]
    TooManyBytes,
    /// The descriptor table itself cannot be read.
    #[error("the descriptor table does not lie in RAM")]
    BadTable,
}

impl Chain {
    /// Walks the chain that begins with descriptor `head` of a table of `size` entries at `table`.
    ///
    /// # Errors
    /// See [`ChainError`]. Guest memory may change under the walk: each descriptor is read once.
    pub fn walk<M: GuestMemory>(
        mem: &M,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut total: u32 = 0;
        let mut index = head;
        for _ in 0..size {
            if index >= size {
                return Err(ChainError::BadIndex);
            }
            let address = table
                .0
                .checked_add(u64::from(index) * size_of::<Descriptor>() as u64)
                .ok_or(ChainError::BadTable)?;
            let descriptor: Descriptor = mem
                .read_obj(GuestAddress(address))
                .map_err(|_| ChainError::BadTable)?;
            // The compiler must not read the descriptor again after it was checked.
            fence(Ordering::Acquire);
            chain.push(mem, &descriptor)?;
            total = total
                .checked_add(descriptor.len())
                .ok_or(ChainError::TooManyBytes)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(ChainError::TooLong)
    }

    fn push<M: GuestMemory>(&mut self, mem: &M, descriptor: &Descriptor) -> Result<(), ChainError> {
        if descriptor.refers_to_indirect_table() {
            return Err(ChainError::Indirect);
        }
        let range = Range {
            addr: descriptor.addr(),
            len: descriptor.len(),
        };
        let (list, access) = if descriptor.is_write_only() {
            (&mut self.writable, Permissions::Write)
        } else if self.writable.is_empty() {
            (&mut self.readable, Permissions::Read)
        } else {
            return Err(ChainError::Order);
        };
        let len = usize::try_from(range.len).map_err(|_| ChainError::BadRange)?;
        if len == 0 || !mem.check_range(range.addr, len, access) {
            return Err(ChainError::BadRange);
        }
        list.push(range);
        Ok(())
    }

    /// Bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        self.readable.iter().map(|range| range.len).sum()
    }

    /// Bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.writable.iter().map(|range| range.len).sum()
    }

    /// Copies the readable part, at most `limit` bytes of it, out of guest memory.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub fn read<M: GuestMemory>(&self, mem: &M, limit: usize) -> Result<Vec<u8>, GuestMemoryError> {
        let total = usize::try_from(self.readable_len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; total.min(limit)];
        let mut rest = bytes.as_mut_slice();
        for range in &self.readable {
            let len = usize::try_from(range.len)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            mem.read_slice(now, range.addr)?;
            rest = later;
        }
        Ok(bytes)
    }

    /// Fills `len` bytes of the writable part, from byte `skip` on, from `source`.
    ///
    /// # Errors
    /// When the source fails or ends, the memory cannot be written, or the part is too short.
    pub fn fill<M: GuestMemory, F: ReadVolatile>(
        &self,
        mem: &M,
        skip: u32,
        len: u32,
        source: &mut F,
    ) -> Result<(), GuestMemoryError> {
        for (addr, len) in window(&self.writable, skip, len)? {
            mem.read_exact_volatile_from(addr, source, len)?;
        }
        Ok(())
    }

    /// Passes `len` bytes of the readable part, from byte `skip` on, to `sink`.
    ///
    /// # Errors
    /// When the sink fails, the memory cannot be read, or the part is too short.
    pub fn drain<M: GuestMemory, F: WriteVolatile>(
        &self,
        mem: &M,
        skip: u32,
        len: u32,
        sink: &mut F,
    ) -> Result<(), GuestMemoryError> {
        for (addr, len) in window(&self.readable, skip, len)? {
            mem.write_all_volatile_to(addr, sink, len)?;
        }
        Ok(())
    }

    /// Copies `bytes` to the beginning of the writable part; answers how many fitted.
    ///
    /// # Errors
    /// When the memory cannot be written.
    pub fn write<M: GuestMemory>(&self, mem: &M, bytes: &[u8]) -> Result<u32, GuestMemoryError> {
        let mut rest = bytes;
        let mut written = 0;
        for range in &self.writable {
            let len = usize::try_from(range.len)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at(len);
            mem.write_slice(now, range.addr)?;
            rest = later;
            written += u32::try_from(len).unwrap_or(range.len);
        }
        Ok(written)
    }
}

/// The pieces of `ranges` that hold the `len` bytes from byte `skip` on.
fn window(
    ranges: &[Range],
    mut skip: u32,
    mut len: u32,
) -> Result<Vec<(GuestAddress, usize)>, GuestMemoryError> {
    let mut pieces = Vec::new();
    for range in ranges {
        let skipped = skip.min(range.len);
        let taken = len.min(range.len - skipped);
        skip -= skipped;
        len -= taken;
        if let (1.., Ok(taken)) = (taken, usize::try_from(taken)) {
            // A range's end does not overflow.
            pieces.push((GuestAddress(range.addr.0 + u64::from(skipped)), taken));
        }
    }
    if len == 0 {
        Ok(pieces)
    } else {
        Err(GuestMemoryError::InvalidBackendAddress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    const TABLE: GuestAddress = GuestAddress(0);
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn memory(descriptors: &[(u64, u32, u16, u16)]) -> GuestMemoryMmap {
        let mem = GuestMemoryMmap::from_ranges(&[(TABLE, 0x1_0000)]).expect("64 KiB can be mapped");
        for (index, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
            mem.write_obj(
                Descriptor::new(addr, len, flags, next),
                GuestAddress(index as u64 * 16),
            )
            .expect("the table lies in memory");
        }
        mem
    }

    fn walk(descriptors: &[(u64, u32, u16, u16)]) -> Result<Chain, ChainError> {
        Chain::walk(&memory(descriptors), TABLE, 8, 0)
    }

    #[test]
    fn test_walk_whole_chain_splits_readable_and_writable() {
        let chain = walk(&[(0x1000, 16, NEXT, 2), (0, 0, 0, 0), (0x2000, 8, NEXT, 1)]);
        assert_eq!(
            chain,
            Err(ChainError::BadRange),
            "descriptor 1 has no length"
        );

        let chain = walk(&[
            (0x1000, 16, NEXT, 2),
            (0x3000, 32, WRITE, 0),
            (0x2000, 8, NEXT, 1),
        ])
        .expect("the chain is whole");
        assert_eq!((chain.readable.len(), chain.readable_len()), (2, 24));
        assert_eq!((chain.writable.len(), chain.writable_len()), (1, 32));
    }

    #[test]
    fn test_walk_hostile_chain_is_refused() {
        for (name, descriptors, error) in [
            ("loop", vec![(0x1000, 16, NEXT, 0)], ChainError::TooLong),
            (
                "next outside",
                vec![(0x1000, 16, NEXT, 8)],
                ChainError::BadIndex,
            ),
            (
                "indirect",
                vec![(0x1000, 16, INDIRECT, 0)],
                ChainError::Indirect,
            ),
            (
                "order",
                vec![(0x1000, 1, WRITE | NEXT, 1), (0x2000, 1, 0, 0)],
                ChainError::Order,
            ),
            ("end", vec![(0xffff, 2, 0, 0)], ChainError::BadRange),
            ("wrap", vec![(u64::MAX, 2, 0, 0)], ChainError::BadRange),
            ("huge", vec![(0, u32::MAX, 0, 0)], ChainError::BadRange),
        ] {
            assert_eq!(walk(&descriptors), Err(error), "{name}");
        }
    }

    #[test]
    fn test_walk_head_outside_is_bad_index() {
        let mem = memory(&[(0x1000, 1, 0, 0)]);
        assert_eq!(Chain::walk(&mem, TABLE, 8, 8), Err(ChainError::BadIndex));
        let far = GuestAddress(0xfff8);
        assert_eq!(Chain::walk(&mem, far, 8, 0), Err(ChainError::BadTable));
    }

    #[test]
    fn test_read_and_write_cross_descriptors() {
        let mem = memory(&[
            (0x1000, 2, NEXT, 1),
            (0x1100, 3, NEXT, 2),
            (0x1200, 2, WRITE | NEXT, 3),
            (0x1300, 2, WRITE, 0),
        ]);
        mem.write_slice(b"ab", GuestAddress(0x1000))
            .expect("in memory");
        mem.write_slice(b"cde", GuestAddress(0x1100))
            .expect("in memory");
        let chain = Chain::walk(&mem, TABLE, 8, 0).expect("the chain is whole");

        assert_eq!(chain.read(&mem, 100).expect("readable"), b"abcde");
        assert_eq!(chain.read(&mem, 3).expect("readable"), b"abc");
        assert_eq!(chain.write(&mem, b"wxyz!").expect("writable"), 4);

        let mut end = [0; 2];
        mem.read_slice(&mut end, GuestAddress(0x1300))
            .expect("in memory");
        assert_eq!(&end, b"yz");
    }

    #[test]
    fn test_fill_and_drain_take_the_window() {
        let mem = memory(&[
            (0x1000, 4, NEXT, 1),
            (0x1100, 4, NEXT, 2),
            (0x1200, 4, WRITE | NEXT, 3),
            (0x1300, 4, WRITE, 0),
        ]);
        mem.write_slice(b"abcd", GuestAddress(0x1000))
            .expect("in memory");
        mem.write_slice(b"efgh", GuestAddress(0x1100))
            .expect("in memory");
        let chain = Chain::walk(&mem, TABLE, 8, 0).expect("the chain is whole");
        for skip in 0..=9 {
            for len in 0..=9 {
                let fits = skip + len <= 8;
                let mut out = Vec::new();
                let drained = chain.drain(&mem, skip, len, &mut out);
                assert_eq!(drained.is_ok(), fits || len == 0, "{skip} {len}");
                let (from, to) = (skip as usize, (skip + len) as usize);
                if fits {
                    assert_eq!(out, b"abcdefgh"[from..to]);
                }

                for at in [0x1200, 0x1300] {
                    mem.write_slice(b"....", GuestAddress(at))
                        .expect("in memory");
                }
                let filled = chain.fill(&mem, skip, len, &mut &b"123456789"[..]);
                assert_eq!(filled.is_ok(), fits || len == 0, "{skip} {len}");
                let mut expected = *b"........";
                if fits {
                    expected[from..to].copy_from_slice(&b"123456789"[..len as usize]);
                }
                let mut written = [0; 8];
                mem.read_slice(&mut written[..4], GuestAddress(0x1200))
                    .expect("in memory");
                mem.read_slice(&mut written[4..], GuestAddress(0x1300))
                    .expect("in memory");
                assert_eq!(written, expected, "{skip} {len}");
            }
        }
    }
}
