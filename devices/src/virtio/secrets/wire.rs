//! The wire format: requests parsed strictly, responses and events encoded. Little endian throughout.

use cachot_secrets::Name;
use serde::{Deserialize, Serialize};

use super::pages::PageRange;

/// Virtio device id.
pub const DEVICE_ID: u32 = 58;

/// Index of the requestq.
pub const REQUEST_QUEUE: usize = 0;

/// Index of the eventq.
pub const EVENT_QUEUE: usize = 1;

/// Most ranges in an ATTACH.
pub const MAX_RANGES: usize = 256;

/// Bytes of a request that are looked at; an ATTACH of [`MAX_RANGES`], the longest there is, is shorter.
pub const MAX_REQUEST: usize = 4096 + 128 + 16 * MAX_RANGES;

/// Bytes of a `virtio_secrets_resp`.
pub const RESPONSE_HEADER: u32 = 16;

/// Bytes of a LIST response's body before its entries.
pub const LIST_HEADER: u32 = 8;

/// Bytes of an entry in a LIST response.
pub const LIST_ENTRY: u32 = 152;

/// Bytes of an ATTACH response's body, and of a GET response's body before the value.
pub const VALUE_HEADER: u32 = 16;

/// Bytes of a `virtio_secrets_event`.
pub const EVENT: u32 = 144;

const NAME: usize = 128;

/// Status of a response. There is no DENIED, which is 2: this device has no policy to refuse a secret by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// No secret of that name, no handle of that number.
    NoEnt = 1,
    /// The secret was revoked.
    Revoked = 3,
    /// Not now; an event will tell.
    Frozen = 4,
    /// The buffer or the ranges are too small.
    TooBig = 5,
    /// The host cannot get the value, or a limit is reached.
    Unavailable = 6,
    /// The request is malformed.
    Invalid = 7,
}

/// What an event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The secret has a new version.
    Rotated = 1,
    /// The secret's pages were wiped; it will not come back.
    Revoked = 2,
    /// Every attached page was filled again.
    Rehydrated = 3,
}

/// A well-formed request.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Entries from number `start` on.
    List { start: u32 },
    /// Deliver the secret into these pages.
    Attach { name: Name, ranges: Vec<PageRange> },
    /// Wipe and forget a handle.
    Detach { handle: u32 },
    /// Deliver the secret into the response.
    Get { name: Name },
    /// The driver has acted on all it was told up to this epoch.
    Ack { epoch: u64 },
}

impl Request {
    /// Parses a whole request; `None` if it is malformed.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let kind = fields.u16()?;
        fields.reserved::<6>()?;
        let request = match kind {
            1 => {
                let start = fields.u32()?;
                fields.reserved::<4>()?;
                Self::List { start }
            }
            2 => {
                let name = fields.name()?;
                let count = usize::try_from(fields.u32()?).ok()?;
                fields.reserved::<4>()?;
                if !(1..=MAX_RANGES).contains(&count) {
                    return None;
                }
                let ranges = (0..count)
                    .map(|_| PageRange::new(fields.u64()?, fields.u64()?))
                    .collect::<Option<_>>()?;
                Self::Attach { name, ranges }
            }
            3 => {
                let handle = fields.u32()?;
                fields.reserved::<4>()?;
                Self::Detach { handle }
            }
            4 => Self::Get {
                name: fields.name()?,
            },
            5 => Self::Ack {
                epoch: fields.u64()?,
            },
            _ => return None,
        };
        fields.0.is_empty().then_some(request)
    }
}

/// What is left of a request.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn reserved<const N: usize>(&mut self) -> Option<()> {
        (self.take()? == [0; N]).then_some(())
    }

    fn name(&mut self) -> Option<Name> {
        let field = self.take::<NAME>()?;
        let len = field.iter().position(|byte| *byte == 0)?;
        let (name, padding) = field.split_at(len);
        if padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        str::from_utf8(name).ok()?.parse().ok()
    }
}

/// A name as it is on the wire.
fn name_field(name: &Name) -> [u8; NAME] {
    let mut field = [0; NAME];
    // A Name has at most 127 bytes.
    field[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    field
}

/// A `virtio_secrets_resp`.
pub fn response_header(status: Status, epoch: u64) -> [u8; RESPONSE_HEADER as usize] {
    let mut header = [0; RESPONSE_HEADER as usize];
    header[..4].copy_from_slice(&(status as u32).to_le_bytes());
    header[8..].copy_from_slice(&epoch.to_le_bytes());
    header
}

/// An entry of a LIST response.
pub struct ListEntry<'a> {
    pub name: &'a Name,
    pub version: u64,
    pub value_len: u32,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl ListEntry<'_> {
    /// Appends [`LIST_ENTRY`] bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&name_field(self.name));
        into.extend_from_slice(&self.version.to_le_bytes());
        for field in [self.value_len, self.uid, self.gid, self.mode] {
            into.extend_from_slice(&field.to_le_bytes());
        }
    }
}

/// The body of an ATTACH response.
pub fn attach_body(handle: u32, value_len: u32, version: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(VALUE_HEADER as usize);
    body.extend_from_slice(&handle.to_le_bytes());
    body.extend_from_slice(&value_len.to_le_bytes());
    body.extend_from_slice(&version.to_le_bytes());
    body
}

/// The body of a GET response up to the value.
pub fn get_body(value_len: u32, version: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(VALUE_HEADER as usize);
    body.extend_from_slice(&value_len.to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&version.to_le_bytes());
    body
}

/// A `virtio_secrets_event`.
pub fn event(kind: EventKind, name: Option<&Name>, epoch: u64) -> [u8; EVENT as usize] {
    let mut event = [0; EVENT as usize];
    event[..4].copy_from_slice(&(kind as u32).to_le_bytes());
    event[8..16].copy_from_slice(&epoch.to_le_bytes());
    if let Some(name) = name {
        event[16..].copy_from_slice(&name_field(name));
    }
    event
}
