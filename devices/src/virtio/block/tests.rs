//! The disk against a driver made by hand.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use super::*;
use crate::virtio::testing::{INDIRECT, LIVE, NEXT, Part, RAM, Rig, WRITE, readable, writable};

const SECTORS: u64 = 64;
const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x8_1000;
const DATA: u64 = 0x10_0000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What is in the status byte before the device writes to it.
const NONE: u8 = 0xee;

/// A disk in which every sector is filled with its number + 1.
fn image() -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    for sector in 1..=SECTORS {
        file.write_all(&[u8::try_from(sector).expect("few"); 512])
            .expect("written");
    }
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut file = file.try_clone().expect("a descriptor");
    file.seek(SeekFrom::Start(0)).expect("a file");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("readable");
    bytes
}

fn rig(read_only: bool) -> (Rig<BlockDevice>, File) {
    let file = image();
    let own = file.try_clone().expect("a descriptor");
    let device = BlockDevice::new(file, read_only).expect("whole sectors");
    (Rig::started(device), own)
}

fn status_part() -> Part {
    writable(STATUS, 1)
}

impl Rig<BlockDevice> {
    /// Sends a request with these data parts; status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.write(HEADER, &header);
        let parts = [&[readable(HEADER, 16)], data, &[status_part()]].concat();
        self.chain(&parts)
    }

    fn chain(&mut self, parts: &[Part]) -> (u8, u32) {
        self.write(STATUS, &[NONE]);
        let head = self.send(0, parts);
        self.kick(0);
        let used = self.used(0);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, u32::from(head));
        (self.read(STATUS, 1)[0], used[0].1)
    }
}

#[test]
fn test_config_and_features() {
    for (read_only, features) in [(false, 0x204), (true, 0x224)] {
        let (rig, _) = rig(read_only);
        assert_eq!(rig.config::<8>(0), SECTORS.to_le_bytes());
        assert_eq!(rig.config::<4>(12), 126_u32.to_le_bytes());
        assert_eq!(rig.config::<8>(16), [0; 8]);
        rig.set(0x14, 0);
        assert_eq!(rig.get(0x10), features);
    }
}

#[test]
fn test_new_invalid_length_is_refused() {
    for len in [0, 1, 511, 513] {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len).expect("grown");
        let error = BlockDevice::new(file, false).expect_err("no sectors");
        assert!(matches!(error, BlockError::Sectors(l) if l == len));
    }
    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let file = File::from(std::os::fd::OwnedFd::from(pipe));
    assert!(matches!(
        BlockDevice::new(file, true),
        Err(BlockError::Length(_))
    ));
}

#[test]
fn test_read_scatters_over_descriptors() {
    let (mut rig, _) = rig(true);
    let data = [writable(DATA, 100), writable(DATA + 0x1000, 1436)];
    assert_eq!(rig.request(IN, 5, &data), (OK, 1537));
    let bytes = [rig.read(DATA, 100), rig.read(DATA + 0x1000, 1436)].concat();
    assert_eq!(bytes, [[6; 512], [7; 512], [8; 512]].concat());
    assert_eq!(rig.read(DATA + 100, 8), [0; 8]);
    assert_eq!(
        rig.request(IN, SECTORS - 1, &[writable(DATA, 512)]),
        (OK, 513)
    );
    assert_eq!(rig.read(DATA, 512), [64; 512]);
}

#[test]
fn test_write_gathers_from_descriptors() {
    let (mut rig, file) = rig(false);
    rig.write(DATA, &[0xaa; 300]);
    rig.write(DATA + 0x1000, &[0xbb; 724]);
    let before = content(&file);
    let data = [readable(DATA, 300), readable(DATA + 0x1000, 724)];
    assert_eq!(rig.request(OUT, 62, &data), (OK, 1));
    let mut expected = before;
    expected[62 * 512..62 * 512 + 300].fill(0xaa);
    expected[62 * 512 + 300..].fill(0xbb);
    assert_eq!(content(&file), expected);
    assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn test_write_read_only_is_refused() {
    let (mut rig, file) = rig(true);
    let before = content(&file);
    assert_eq!(rig.request(OUT, 0, &[readable(DATA, 512)]), (IOERR, 1));
    assert_eq!(content(&file), before);
    assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn test_get_id() {
    let (mut rig, _) = rig(true);
    assert_eq!(rig.request(GET_ID, 0, &[writable(DATA, 20)]), (OK, 21));
    assert_eq!(rig.read(DATA, 21), *b"cachot-disk\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(rig.request(GET_ID, 0, &[writable(DATA, 19)]), (IOERR, 1));
}

#[test]
fn test_request_outside_the_disk_is_an_error() {
    let (mut rig, file) = rig(false);
    let before = content(&file);
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (0, 65 * 512),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (1 << 55, 512),
        (0, 1),
        (0, 511),
        (0, 513),
    ] {
        assert_eq!(
            rig.request(IN, sector, &[writable(DATA, len)]),
            (IOERR, 1),
            "{sector} {len}"
        );
        assert_eq!(
            rig.request(OUT, sector, &[readable(DATA, len)]),
            (IOERR, 1),
            "{sector} {len}"
        );
    }
    assert_eq!(rig.read(DATA, 65 * 512), [0; 65 * 512]);
    assert_eq!(content(&file), before);
    assert_eq!(content(&file).len() as u64, SECTORS * 512);
}

#[test]
fn test_request_too_long_is_an_error() {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(1 << 30).expect("sparse");
    let mut rig = Rig::started(BlockDevice::new(file, false).expect("whole sectors"));
    // The same 2 MiB over and over.
    let data = [writable(DATA, 2 << 20); 17];
    assert_eq!(rig.request(IN, 0, &data[..16]), (OK, (32 << 20) + 1));
    assert_eq!(rig.request(IN, 0, &data), (IOERR, 1));
}

#[test]
fn test_request_of_the_wrong_shape_is_an_error() {
    let (mut rig, file) = rig(false);
    let before = content(&file);
    let (readable_sector, writable_sector) = (readable(DATA, 512), writable(DATA, 512));
    for (kind, data, status) in [
        (IN, vec![], IOERR),
        (OUT, vec![], IOERR),
        (IN, vec![readable_sector], IOERR),
        (OUT, vec![writable_sector], IOERR),
        (IN, vec![readable_sector, writable_sector], IOERR),
        (OUT, vec![readable_sector, writable_sector], IOERR),
        (FLUSH, vec![readable_sector], IOERR),
        (FLUSH, vec![writable_sector], IOERR),
        (GET_ID, vec![], IOERR),
        (GET_ID, vec![readable_sector], IOERR),
        (11, vec![], UNSUPP),
        (13, vec![readable_sector], UNSUPP),
        (2, vec![writable_sector], UNSUPP),
        (u32::MAX, vec![], UNSUPP),
    ] {
        assert_eq!(rig.request(kind, 0, &data), (status, 1), "{kind} {data:?}");
    }
    assert_eq!(content(&file), before);
}

#[test]
fn test_chain_without_header_or_status() {
    let (mut rig, _) = rig(false);
    rig.write(HEADER, &[0; 32]);
    assert_eq!(
        rig.chain(&[readable(HEADER, 15), status_part()]),
        (IOERR, 1)
    );
    assert_eq!(rig.chain(&[status_part()]), (IOERR, 1));
    assert_eq!(rig.chain(&[readable(HEADER, 16)]), (NONE, 0));
    assert_eq!(
        rig.chain(&[readable(HEADER, 16), readable(DATA, 512)]),
        (NONE, 0)
    );
    // A header in pieces is a header; data and status may share a descriptor.
    let pieces = [readable(HEADER, 4), readable(HEADER + 4, 12)];
    rig.write(DATA, &[NONE; 600]);
    let chain = [&pieces[..], &[writable(DATA, 513)]].concat();
    assert_eq!(rig.chain(&chain), (NONE, 513));
    assert_eq!(rig.read(DATA, 514), [&[1; 512][..], &[OK, NONE]].concat());
}

#[test]
fn test_malformed_chain_is_returned_unused() {
    let (mut rig, _) = rig(false);
    rig.write(HEADER, &[0; 16]);
    for descriptors in [
        vec![(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 1)],
        vec![(HEADER, 16, NEXT, 128)],
        vec![(HEADER, 48, INDIRECT, 0)],
        vec![
            (HEADER, 16, NEXT, 1),
            (RAM - 100, 512, NEXT | WRITE, 2),
            (STATUS, 1, WRITE, 0),
        ],
        vec![
            (HEADER, 16, NEXT, 1),
            (DATA, u32::MAX, NEXT | WRITE, 2),
            (STATUS, 1, WRITE, 0),
        ],
        vec![(STATUS, 1, NEXT | WRITE, 1), (HEADER, 16, 0, 0)],
    ] {
        for (descriptor, index) in descriptors.into_iter().zip(0..) {
            rig.describe(0, index, descriptor);
        }
        rig.offer(0, 0);
        rig.kick(0);
        assert_eq!(rig.used(0), [(0, 0)]);
    }
    assert_eq!(rig.request(IN, 0, &[writable(DATA, 512)]), (OK, 513));
    assert_eq!(rig.status(), LIVE);
}

#[test]
fn test_file_that_fails_is_an_error() {
    let (mut rig, file) = rig(false);
    file.set_len(512 * 10).expect("shortened");
    assert_eq!(rig.request(IN, 9, &[writable(DATA, 512)]), (OK, 513));
    assert_eq!(rig.request(IN, 9, &[writable(DATA, 1024)]), (IOERR, 1));

    let path = tempfile::NamedTempFile::new().expect("a temporary file");
    path.as_file().set_len(512).expect("grown");
    let read_only = File::open(path.path()).expect("there");
    let mut rig = Rig::started(BlockDevice::new(read_only, false).expect("one sector"));
    assert_eq!(rig.request(OUT, 0, &[readable(DATA, 512)]), (IOERR, 1));
    assert_eq!(rig.request(IN, 0, &[writable(DATA, 512)]), (OK, 513));
}

#[test]
fn test_save_restore_round_trip() {
    let (mut rig, file) = rig(false);
    assert_eq!(rig.request(IN, 0, &[writable(DATA, 512)]), (OK, 513));
    let device = BlockDevice::new(file.try_clone().expect("a descriptor"), false);
    let mut restored = rig.restored(device.expect("whole sectors"));
    restored.transport().resume();
    restored.run();
    restored.write(DATA, &[0x77; 512]);
    assert_eq!(restored.request(OUT, 1, &[readable(DATA, 512)]), (OK, 1));
    assert_eq!(content(&file)[512..1024], [0x77; 512]);
}

#[test]
fn test_restore_other_disk_is_refused() {
    let (rig, file) = rig(false);
    let state = rig.transport().save();
    assert_eq!(
        state.device,
        BlockState {
            sectors: SECTORS,
            read_only: false
        }
    );
    let read_only = BlockDevice::new(file.try_clone().expect("a descriptor"), true);
    file.set_len(512).expect("shortened");
    let shorter = BlockDevice::new(file, false);
    for device in [read_only, shorter] {
        let new = Rig::new(device.expect("whole sectors"));
        let error = new
            .transport()
            .restore(state.clone())
            .expect_err("another disk");
        assert!(error.to_string().contains("the guest's has 64"), "{error}");
    }
}
