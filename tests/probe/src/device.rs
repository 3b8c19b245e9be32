//! `/dev/secrets`, whose ioctls `guest/driver/secrets.h` defines.

use std::fs::File;
use std::io;

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};

const MAGIC: u8 = 0xb5;
const LIST: Opcode = opcode::read_write::<List>(MAGIC, 0);
const GET: Opcode = opcode::read_write::<Get>(MAGIC, 1);
const EPOCH: Opcode = opcode::read::<u64>(MAGIC, 2);
const UNKNOWN: Opcode = opcode::read::<u64>(MAGIC, 3);

/// `struct secrets_entry`
#[repr(C)]
#[derive(Clone)]
struct Entry {
    name: [u8; 128],
    version: u64,
    value_len: u32,
    uid: u32,
    gid: u32,
    mode: u32,
}

/// `struct secrets_list`
#[repr(C)]
struct List {
    entries: u64,
    count: u32,
    total: u32,
}

/// `struct secrets_get`
#[repr(C)]
struct Get {
    name: [u8; 128],
    buffer: u64,
    len: u32,
    reserved: u32,
    version: u64,
}

/// The open device.
pub struct Device(File);

impl Device {
    pub fn open() -> anyhow::Result<Self> {
        let file = File::open("/dev/secrets").context("cannot open /dev/secrets")?;
        Ok(Self(file))
    }

    /// The epoch, which is no news any more then.
    pub fn epoch(&self) -> io::Result<u64> {
        // SAFETY: the driver writes a u64, and nothing else, where it is told to.
        Ok(unsafe { ioctl(&self.0, Getter::<EPOCH, u64>::new()) }?)
    }

    /// What poll() reports within this time; nothing if there is no news.
    pub fn poll(&self, timeout: Option<&Timespec>) -> io::Result<PollFlags> {
        let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut watched, timeout)?;
        Ok(watched[0].revents())
    }

    /// Entries that fit into `room`, and how many there are.
    fn list(&self, room: u32) -> io::Result<(Vec<Entry>, u32)> {
        let empty = Entry {
            name: [0; 128],
            version: 0,
            value_len: 0,
            uid: 0,
            gid: 0,
            mode: 0,
        };
        let mut entries = vec![empty; room as usize];
        let mut list = List {
            entries: entries.as_mut_ptr().expose_provenance() as u64,
            count: room,
            total: 0,
        };
        // SAFETY: the driver updates a List, and writes at most `room` entries where it points to.
        unsafe { ioctl(&self.0, Updater::<LIST, List>::new(&mut list)) }?;
        entries.truncate(list.count as usize);
        Ok((entries, list.total))
    }

    /// A value that fits into `room`, its version, and how long the driver says it is.
    fn get(&self, name: &[u8; 128], room: u32, reserved: u32) -> Got {
        let mut buffer = vec![0; room as usize];
        let mut get = Get {
            name: *name,
            buffer: buffer.as_mut_ptr().expose_provenance() as u64,
            len: room,
            reserved,
            version: 0,
        };
        // SAFETY: the driver updates a Get, and writes at most `room` bytes where it points to.
        let result = unsafe { ioctl(&self.0, Updater::<GET, Get>::new(&mut get)) };
        buffer.truncate(get.len as usize);
        Got {
            result,
            version: get.version,
            len: get.len,
            buffer,
        }
    }
}

struct Got {
    result: Result<(), Errno>,
    version: u64,
    len: u32,
    buffer: Vec<u8>,
}

/// Asks for the secret `name`, which has this value and has not changed since the start, in every way that
/// the device has.
pub fn verify(name: &str, value: &[u8]) -> anyhow::Result<()> {
    let device = Device::open()?;
    let len = u32::try_from(value.len())?;
    let at_once = Timespec::default();
    let field = |text: &str| {
        let mut field = [0; 128];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    };

    ensure!(
        device.poll(Some(&at_once))? == PollFlags::IN,
        "the first epoch is no news"
    );
    ensure!(device.epoch()? == 1, "it is not the first epoch");
    ensure!(device.poll(Some(&at_once))?.is_empty(), "it stays news");

    let (entries, total) = device.list(4096)?;
    ensure!(entries.len() == total as usize, "some are not listed");
    let entry = entries.iter().find(|entry| entry.name == field(name));
    let entry = entry.context("it is not listed")?;
    ensure!(
        (
            entry.version,
            entry.value_len,
            entry.uid,
            entry.gid,
            entry.mode
        ) == (1, len, 0, 0, 0o400),
        "it is listed with something else"
    );
    ensure!(
        device.list(0)?.1 == total,
        "an empty list has another total"
    );

    for room in [len, len + 1000] {
        let got = device.get(&field(name), room, 0);
        got.result.context("it is not fetched")?;
        ensure!(got.buffer == value && got.version == 1, "it differs");
    }
    for room in [0, len - 1] {
        let got = device.get(&field(name), room, 0);
        ensure!(got.result == Err(Errno::MSGSIZE), "room for {room}");
        ensure!(got.len == len, "its length is not told");
        ensure!(got.buffer.iter().all(|byte| *byte == 0), "part of it came");
    }
    for (what, name, reserved, errno) in [
        ("an unknown name", field("NO_SUCH"), 0, Errno::NOENT),
        ("an empty name", field(""), 0, Errno::INVAL),
        ("an illegal name", field("A/B"), 0, Errno::INVAL),
        ("a name without an end", [b'A'; 128], 0, Errno::INVAL),
        ("a reserved field", field(name), 1, Errno::INVAL),
    ] {
        let got = device.get(&name, len, reserved);
        ensure!(got.result == Err(errno), "{what}: {:?}", got.result);
    }
    // SAFETY: the driver does not know it and touches nothing.
    let unknown = unsafe { ioctl(&device.0, Getter::<UNKNOWN, u64>::new()) };
    ensure!(unknown == Err(Errno::NOTTY), "an unknown request");
    Ok(())
}
