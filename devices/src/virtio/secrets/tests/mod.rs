//! The device against a driver made by hand.

mod fuzz;
mod host;
mod hostile;
mod oracle;
mod redaction;
mod requests;
mod restore;

use std::os::fd::AsFd;

use cachot_secrets::{Name, SealedValue, SecretValue};
use proptest::test_runner::Config;

use super::{Secret, SecretsDevice};
use crate::virtio::testing::Rig;

pub const OK: u32 = 0;
pub const NOENT: u32 = 1;
pub const REVOKED: u32 = 3;
pub const FROZEN: u32 = 4;
pub const TOOBIG: u32 = 5;
pub const UNAVAILABLE: u32 = 6;
pub const INVALID: u32 = 7;

/// Of tests with random input: fewer cases than usual (PROPTEST_CASES), as each is long. What fails is
/// printed, and not written into the source tree.
fn config() -> Config {
    Config {
        cases: Config::default().cases / 4,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

pub const PAGE: u64 = 4096;
/// Where tests attach pages: from here to the end of RAM nothing else is.
pub const PAGES: u64 = 0x10_0000;

pub fn name(text: &str) -> Name {
    text.parse().expect("a legal name")
}

/// A value as the monitor gets it from the keeper.
pub fn sealed(value: &[u8]) -> SealedValue {
    let value = SecretValue::copy_of(value).expect("lockable");
    let kept = value.seal().expect("sealable");
    let sent = kept.as_fd().try_clone_to_owned().expect("a descriptor");
    SealedValue::try_from(sent).expect("sealed")
}

pub fn secret(text: &str, value: &[u8]) -> Secret {
    Secret {
        name: name(text),
        mode: 0o400,
        uid: 10,
        gid: 20,
        value: sealed(value),
    }
}

/// The bytes of a value.
pub fn content(value: &SealedValue) -> Vec<u8> {
    let mut bytes = vec![0; value.len()];
    value.pread_into(0, &mut bytes).expect("readable");
    bytes
}

/// Bytes that occur nowhere else by chance.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let byte = |index: usize| {
        let [low, high, ..] = index.wrapping_mul(31).to_le_bytes();
        (low ^ high ^ seed) | 1
    };
    (0..len).map(byte).collect()
}

/// A device with the secrets A (40 bytes), B (10,000 bytes) and C (1 byte).
pub fn device() -> SecretsDevice {
    SecretsDevice::new(vec![
        secret("A", &pattern(40, 0xa0)),
        secret("B", &pattern(10_000, 0xb0)),
        secret("C", &[0xc1]),
    ])
    .expect("within the limits")
}

/// A device to restore into, which knows no value yet.
pub fn blank() -> SecretsDevice {
    SecretsDevice::new(vec![]).expect("within the limits")
}

pub fn rig() -> Rig<SecretsDevice> {
    Rig::started(device())
}

fn request(kind: u16, body: &[&[u8]]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend(body.concat());
    bytes
}

pub fn field(text: &str) -> [u8; 128] {
    let mut field = [0; 128];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

pub fn list(start: u32) -> Vec<u8> {
    request(1, &[&start.to_le_bytes(), &[0; 4]])
}

pub fn attach(name: &str, ranges: &[(u64, u64)]) -> Vec<u8> {
    let count = u32::try_from(ranges.len()).expect("few ranges");
    let mut bytes = request(2, &[&field(name), &count.to_le_bytes(), &[0; 4]]);
    for (address, length) in ranges {
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
    }
    bytes
}

pub fn detach(handle: u32) -> Vec<u8> {
    request(3, &[&handle.to_le_bytes(), &[0; 4]])
}

pub fn get(name: &str) -> Vec<u8> {
    request(4, &[&field(name)])
}

pub fn ack(epoch: u64) -> Vec<u8> {
    request(5, &[&epoch.to_le_bytes()])
}

/// A response, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u32,
    pub epoch: u64,
    pub body: Vec<u8>,
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Response {
    pub fn parse(bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 16, "a response has a header");
        assert_eq!(u32_at(bytes, 4), 0, "the reserved field is zero");
        Self {
            status: u32_at(bytes, 0),
            epoch: u64_at(bytes, 8),
            body: bytes[16..].to_vec(),
        }
    }
}

impl Rig<SecretsDevice> {
    /// A request with 64 KiB of room for the response.
    pub fn ask(&mut self, request: &[u8]) -> Response {
        Response::parse(&self.call(request, 0x1_0000))
    }

    pub fn ask_status(&mut self, request: &[u8]) -> u32 {
        self.ask(request).status
    }

    /// Attaches; the handle.
    pub fn attached(&mut self, name: &str, ranges: &[(u64, u64)]) -> u32 {
        let response = self.ask(&attach(name, ranges));
        assert_eq!(response.status, OK, "{name} {ranges:x?}");
        assert_eq!(response.body.len(), 16);
        let handle = u32_at(&response.body, 0);
        assert_ne!(handle, 0);
        handle
    }

    pub fn is_zero(&self, addr: u64, len: u64) -> bool {
        let len = usize::try_from(len).expect("fits");
        self.read(addr, len).iter().all(|byte| *byte == 0)
    }

    /// Gives the device `count` event buffers of 144 bytes.
    pub fn event_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let addr = EVENTS + 256 * u64::from(self.next_head(1));
            self.send(1, &[crate::virtio::testing::writable(addr, 144)]);
        }
        self.kick(1);
    }

    /// Events that arrived since the last call: kind, name, epoch.
    pub fn events(&mut self) -> Vec<(u32, String, u64)> {
        let used = self.used(1);
        used.into_iter()
            .map(|(head, len)| {
                assert_eq!(len, 144);
                let bytes = self.read(EVENTS + 256 * u64::from(head), 144);
                assert_eq!(u32_at(&bytes, 4), 0);
                let name = bytes[16..]
                    .split(|byte| *byte == 0)
                    .next()
                    .unwrap_or_default();
                let name = String::from_utf8(name.to_vec()).expect("a name");
                assert_eq!(bytes[16..], field(&name));
                (u32_at(&bytes, 0), name, u64_at(&bytes, 8))
            })
            .collect()
    }
}

/// Where [`Rig::event_buffers`] puts them, 256 bytes apart by descriptor.
pub const EVENTS: u64 = 0x7_0000;
