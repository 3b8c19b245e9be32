//! A driver of the secrets device that does anything, and a host that changes secrets meanwhile: attached
//! pages stay in RAM and apart, a reset wipes them, and every state can be saved and restored.

use std::ops::Range;

use cachot_devices::virtio::secrets::{REQUEST_QUEUE, SecretsDevice};
use postcard::take_from_bytes;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::rig::{Rig, ram};
use crate::values::{name, sealed, secrets};

/// Most steps of an input.
const MAX_STEPS: usize = 64;

/// Where things are in RAM: the rings of queue 0, those of queue 1 0x4000 behind them, a request, its response, and
/// pages to attach.
const RINGS: u64 = 0x1_0000;
const REQUEST: u64 = 0x8_0000;
const RESPONSE: u64 = 0xc_0000;
const PAGES: u64 = 0x10_0000;
const PAGE: u64 = 4096;

/// Descriptors in each queue.
const QUEUE_SIZE: u16 = 16;

/// Flags of a descriptor (virtio 1.2, "The Virtqueue Descriptor Table").
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Registers ("MMIO Device Register Layout").
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_AVAIL_LOW: u64 = 0x90;
const QUEUE_USED_LOW: u64 = 0xa0;

/// Status of a device that works.
const LIVE: u32 = 0xf;

/// A descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// What driver and host do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Step<'a> {
    /// The driver sends a request of these bytes, with so much room for the response.
    Request(&'a [u8], u16),
    /// It attaches runs of pages (number of the first, how many) to a secret.
    Attach(u8, Vec<(u8, u8)>),
    /// It detaches a handle.
    Detach(u32),
    /// It wants the value of a secret.
    Get(u8),
    /// It makes a chain of any descriptors available, with this head, and these bytes where requests are.
    Chain(Vec<Descriptor>, u16, &'a [u8]),
    /// It offers a buffer for events.
    Buffer(u16),
    /// It resets the device and starts it again.
    Reset,
    /// The host gives a secret another value.
    Rotate(u8, u8),
    /// The host takes a secret away.
    Revoke(u8),
    /// The host lets nothing be delivered.
    Freeze,
    /// The host declares these secrets, and fills all pages.
    Rehydrate(u8),
    /// The machine is saved, and goes on as its own copy.
    Restore,
}

/// A sequence of [`Step`]s.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let device = SecretsDevice::new(secrets(0b1111)).expect("few secrets");
    let mut driver = Driver::start(Rig::new(device, ram()));
    let mut rest = input;
    let mut delivered = false;
    for _ in 0..MAX_STEPS {
        let Ok((step, behind)) = take_from_bytes::<Step<'_>>(rest) else {
            break;
        };
        rest = behind;
        driver = driver.take(step);
        delivered |= driver.check();
    }
    driver.reset();
    delivered
}

struct Driver {
    rig: Rig<SecretsDevice>,
    /// Chains made available so far in each queue.
    offered: [u16; 2],
}

impl Driver {
    fn start(rig: Rig<SecretsDevice>) -> Self {
        let mut driver = Self {
            rig,
            offered: [0; 2],
        };
        driver.set_up();
        driver
    }

    /// Sets up both queues, as a driver does.
    fn set_up(&mut self) {
        self.offered = [0; 2];
        self.rig.poke(RINGS, &[0; 0x8000]);
        let rig = &self.rig;
        for status in [1, 3] {
            rig.set(STATUS, status);
        }
        for (half, features) in [(0, 0), (1, 1)] {
            rig.set(DRIVER_FEATURES_SEL, half);
            rig.set(DRIVER_FEATURES, features);
        }
        rig.set(STATUS, LIVE & !4);
        for queue in 0..2 {
            let [table, avail, used] = rings(queue);
            rig.set(QUEUE_SEL, queue);
            rig.set(QUEUE_NUM, QUEUE_SIZE.into());
            for (register, address) in [
                (QUEUE_DESC_LOW, table),
                (QUEUE_AVAIL_LOW, avail),
                (QUEUE_USED_LOW, used),
            ] {
                rig.set(register, u32::try_from(address).expect("low"));
            }
            rig.set(QUEUE_READY, 1);
        }
        rig.set(STATUS, LIVE);
        self.rig.work();
        assert_eq!(self.rig.get(STATUS), LIVE);
    }

    fn take(mut self, step: Step<'_>) -> Self {
        match step {
            Step::Request(bytes, room) => self.request(bytes, room),
            Step::Attach(secret, pages) => {
                let mut bytes = request(2, Some(secret));
                bytes.extend_from_slice(
                    &u32::try_from(pages.len()).unwrap_or(u32::MAX).to_le_bytes(),
                );
                bytes.extend_from_slice(&[0; 4]);
                for (first, count) in pages {
                    bytes.extend_from_slice(&(PAGES + PAGE * u64::from(first)).to_le_bytes());
                    bytes.extend_from_slice(&(PAGE * u64::from(count)).to_le_bytes());
                }
                self.request(&bytes, 64);
            }
            Step::Detach(handle) => {
                let mut bytes = request(3, None);
                bytes.extend_from_slice(&handle.to_le_bytes());
                bytes.extend_from_slice(&[0; 4]);
                self.request(&bytes, 64);
            }
            Step::Get(secret) => self.request(&request(4, Some(secret)), u16::MAX),
            Step::Chain(descriptors, head, bytes) => {
                self.rig.poke(REQUEST, bytes);
                self.chain(0, &descriptors, head);
            }
            Step::Buffer(len) => self.chain(1, &[(RESPONSE, len.into(), WRITE, 0)], 0),
            Step::Reset => {
                self.reset();
                self.set_up();
            }
            Step::Rotate(secret, value) => self.host(|device| {
                // Of a secret that is not declared, or was revoked, there is no other value.
                drop(device.rotate(&name(secret.into()), sealed(value.into())));
            }),
            Step::Revoke(secret) => {
                let name = name(secret.into());
                let mut transport = self.rig.transport();
                drop(transport.with_device(|device, ram| device.revoke(&name, ram)));
            }
            Step::Freeze => self.host(SecretsDevice::freeze),
            Step::Rehydrate(mask) => self.rehydrate(mask),
            Step::Restore => return self.restore(),
        }
        self.rig.work();
        self
    }

    fn host(&self, change: impl FnOnce(&mut SecretsDevice)) {
        self.rig.transport().with_device(|device, _| change(device));
    }

    fn rehydrate(&self, mask: u8) {
        let mut transport = self.rig.transport();
        let done = transport.with_device(|device, ram| device.rehydrate(secrets(mask), ram));
        done.expect("attached pages are RAM");
    }

    fn request(&mut self, bytes: &[u8], room: u16) {
        self.rig.poke(REQUEST, bytes);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.chain(
            0,
            &[(REQUEST, len, NEXT, 1), (RESPONSE, room.into(), WRITE, 0)],
            0,
        );
    }

    /// Makes a chain available and notifies the device.
    fn chain(&mut self, queue: u32, descriptors: &[Descriptor], head: u16) {
        let [table, avail, _] = rings(queue);
        let mut bytes = Vec::new();
        for (address, len, flags, next) in descriptors.iter().take(QUEUE_SIZE.into()) {
            bytes.extend_from_slice(&address.to_le_bytes());
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&next.to_le_bytes());
        }
        self.rig.poke(table, &bytes);
        let offered = &mut self.offered[queue as usize];
        let entry = avail + 4 + 2 * u64::from(*offered % QUEUE_SIZE);
        *offered = offered.wrapping_add(1);
        self.rig.poke(entry, &head.to_le_bytes());
        self.rig.poke(avail + 2, &offered.to_le_bytes());
        self.rig.set(QUEUE_NOTIFY, queue);
    }

    fn attached(&self) -> Vec<Range<u64>> {
        self.rig.transport().with_device(|device, _| {
            let range = |one: cachot_devices::virtio::secrets::AttachedRange<'_>| {
                one.start..one.start + one.len
            };
            device.attached().map(range).collect()
        })
    }

    /// Attached pages are pages of RAM, each attached once. Whether there are some.
    fn check(&self) -> bool {
        let attached = self.attached();
        assert!(attached.is_sorted_by(|left, right| left.end <= right.start));
        for range in &attached {
            let len = range.end - range.start;
            assert!(range.start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE));
            assert!(self.rig.ram.is_ram(GuestAddress(range.start), len));
        }
        !attached.is_empty()
    }

    /// A reset wipes all pages that were attached, and attaches none.
    fn reset(&mut self) {
        let attached = self.attached();
        self.rig.set(STATUS, 0);
        for range in attached {
            let mut bytes =
                vec![0xff; usize::try_from(range.end - range.start).expect("it is in RAM")];
            let read = self
                .rig
                .ram
                .read_slice(&mut bytes, GuestAddress(range.start));
            read.expect("it is in RAM");
            assert!(
                bytes.iter().all(|byte| *byte == 0),
                "{range:x?} is not wiped"
            );
        }
        assert_eq!(self.attached(), []);
    }

    /// Goes on as a copy, restored as the monitor does it.
    fn restore(self) -> Self {
        if self.rig.transport().pause().is_err() {
            self.rig.transport().resume();
            return self;
        }
        let state = postcard::to_allocvec(&self.rig.transport().save()).expect("plain data");
        let blank = SecretsDevice::new(Vec::new()).expect("it has no secrets");
        let copy = Rig::new(blank, self.rig.ram.clone());
        let state = postcard::from_bytes(&state).expect("it was just written");
        copy.transport()
            .restore(state)
            .expect("a device's own state");
        let mut copy = Self {
            rig: copy,
            offered: self.offered,
        };
        assert_eq!(copy.attached(), self.attached());
        copy.rehydrate(0b1111);
        copy.rig.transport().resume();
        copy.rig.work();
        copy
    }
}

/// Table, available ring and used ring of a queue.
fn rings(queue: u32) -> [u64; 3] {
    let base = RINGS + 0x4000 * u64::from(queue);
    [base, base + 0x1000, base + 0x2000]
}

/// The head of a request (`resources/virtio-secrets.md`), and the name of a secret.
fn request(kind: u16, secret: Option<u8>) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.resize(8, 0);
    if let Some(secret) = secret {
        bytes.extend_from_slice(name(secret.into()).as_str().as_bytes());
        bytes.resize(8 + 128, 0);
    }
    bytes
}

const _: () = assert!(REQUEST_QUEUE == 0);
