//! Requests of the driver, carried out one by one on the device thread.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestMemory;

use super::persist::BlockState;
use crate::virtio::{
    ActivateError, Chain, DeviceError, FileAt, QueueIo, RestoreError, VirtioDevice,
    read_config_bytes,
};

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Bytes of a request's header: type, reserved (le32 each), sector (le64).
const HEADER: u32 = 16;

/// Bytes of a request's status, at the end of the writable part.
const STATUS: u32 = 1;

/// Most bytes that one request reads or writes. Linux asks for far less; descriptors that overlap
/// could make a request of 4 GiB, which would keep the device thread for seconds.
const MAX_TRANSFER: u64 = 32 << 20;

const QUEUE_SIZE: u16 = 128;

/// Descriptors for data in a chain: what header and status leave.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;

/// What the device answers to `GET_ID`.
const ID: &[u8; VIRTIO_BLK_ID_BYTES as usize] = b"cachot-disk\0\0\0\0\0\0\0\0\0";

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Its length cannot be found.
    #[error("cannot find the length of the disk image; give a file or a block device")]
    Length(#[source] io::Error),
    /// It is empty, or not of whole sectors.
    #[error(
        "a disk image of {0} bytes is not possible: its length must be a multiple of 512, and not 0"
    )]
    Sectors(u64),
}

/// A disk backed by a file.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl BlockDevice {
    /// A disk of the file's present length.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(mut file: File, read_only: bool) -> Result<Self, BlockError> {
        // Works for block devices as well, whose metadata have a length of 0.
        let len = file.seek(SeekFrom::End(0)).map_err(BlockError::Length)?;
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(BlockError::Sectors(len));
        }
        Ok(Self {
            file,
            sectors: len / SECTOR,
            read_only,
        })
    }

    /// Carries out one request; the status, and how many bytes of data were written to the chain.
    fn serve<M: GuestMemory>(&self, chain: &Chain, mem: &M) -> Result<(u32, u32), DeviceError> {
        let failed = Ok((VIRTIO_BLK_S_IOERR, 0));
        let header = chain.read(mem, HEADER as usize)?;
        let Ok(header) = <[u8; HEADER as usize]>::try_from(header) else {
            return failed;
        };
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let sector = u64::from_le_bytes(sector);
        // The caller has found room for the status.
        let incoming = chain.writable_len() - STATUS;
        let outgoing = chain.readable_len() - HEADER;
        let done = match (kind, incoming, outgoing) {
            (VIRTIO_BLK_T_IN, 1.., 0) => self.position(sector, incoming).map(|position| {
                let mut from = FileAt::new(self.file.as_fd(), position);
                (chain.fill(mem, 0, incoming, &mut from).is_ok(), incoming)
            }),
            (VIRTIO_BLK_T_OUT, 0, 1..) if !self.read_only => {
                self.position(sector, outgoing).map(|position| {
                    let mut to = FileAt::new(self.file.as_fd(), position);
                    (chain.drain(mem, HEADER, outgoing, &mut to).is_ok(), 0)
                })
            }
            (VIRTIO_BLK_T_FLUSH, 0, 0) => Some((self.file.sync_data().is_ok(), 0)),
            (VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_ID_BYTES.., 0) => Some((
                chain.write(mem, ID)? == VIRTIO_BLK_ID_BYTES,
                VIRTIO_BLK_ID_BYTES,
            )),
            (VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_GET_ID, ..) => {
                None
            }
            _ => return Ok((VIRTIO_BLK_S_UNSUPP, 0)),
        };
        match done {
            Some((true, written)) => Ok((VIRTIO_BLK_S_OK, written)),
            _ => failed,
        }
    }

    /// Where `len` bytes from `sector` on are in the file, if they are whole sectors inside it.
    fn position(&self, sector: u64, len: u32) -> Option<u64> {
        let len = u64::from(len);
        let end = sector.checked_add(len / SECTOR)?;
        let inside = len.is_multiple_of(SECTOR) && len <= MAX_TRANSFER && end <= self.sectors;
        // Inside the disk, so the product is at most the file's length.
        inside.then(|| sector * SECTOR)
    }
}

impl<M: GuestMemory> VirtioDevice<M> for BlockDevice {
    type State = BlockState;

    const ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
    const QUEUE_SIZES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH;
        always | u64::from(self.read_only) << VIRTIO_BLK_F_RO
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // capacity (le64, sectors), size_max (le32, not offered), seg_max (le32).
        let mut config = [0; 16];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[12..].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, _features: u64, _mem: &M) -> Result<(), ActivateError> {
        Ok(())
    }

    fn reset(&mut self, _mem: &M) {}

    fn process_queue(&mut self, index: usize, io: &mut QueueIo<'_, M>) -> Result<(), DeviceError> {
        while let Some(chain) = io.pop(index)? {
            let written = match chain.writable_len().checked_sub(STATUS) {
                Some(status_at) => {
                    let (status, written) = self.serve(&chain, io.mem)?;
                    let status = [status.to_le_bytes()[0]];
                    chain.fill(io.mem, status_at, STATUS, &mut status.as_slice())?;
                    written + STATUS
                }
                None => 0,
            };
            io.complete(index, chain.head, written)?;
        }
        Ok(())
    }

    fn save(&self) -> BlockState {
        BlockState {
            sectors: self.sectors,
            read_only: self.read_only,
        }
    }

    fn restore(&mut self, state: BlockState, _mem: &M) -> Result<(), RestoreError> {
        state.check(self.sectors, self.read_only)
    }
}
