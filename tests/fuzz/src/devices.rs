//! Devices out of an image, with a guest that goes on in any way: whatever state was accepted, the device works
//! on, stays inside RAM, and can be saved and restored again.

use std::fs::File;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::LazyLock;

use cachot_devices::memory::GuestRam;
use cachot_devices::serial::{Console, ConsoleState, PORTS};
use cachot_devices::virtio::VirtioDevice;
use cachot_devices::virtio::block::{BlockDevice, BlockState};
use cachot_devices::virtio::mmio::TransportState;
use cachot_devices::virtio::rng::RngDevice;
use cachot_devices::virtio::secrets::{self, SecretsDevice};
use cachot_devices::virtio::vsock::Vsock;
use cachot_vmm::state::DeviceState;
use postcard::take_from_bytes;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde::{Deserialize, Serialize};

use crate::rig::{Rig, ram};
use crate::values::secrets;

/// Device ids (virtio 1.2, "Device Types").
pub const BLOCK: u32 = 2;
/// The entropy device's.
pub const RNG: u32 = 4;
/// The socket device's.
pub const VSOCK: u32 = 19;

/// Longest disk: 8 MiB, in sectors. An image with another one is refused before the device is made.
const MAX_SECTORS: u64 = 16_384;

/// Most steps of an input.
const MAX_STEPS: usize = 64;

/// What the guest, or the host, does.
#[derive(Debug, Serialize, Deserialize)]
pub enum Step<'a> {
    /// Writes to RAM.
    Poke {
        /// What `at` counts from: 0 is address 0, then come the three parts of each queue.
        base: u8,
        /// Bytes from there.
        at: u32,
        /// What is written.
        bytes: &'a [u8],
    },
    /// Notifies a queue.
    Notify(u32),
    /// Reads registers.
    Read {
        /// Where in the slot.
        offset: u16,
        /// How many bytes.
        len: u8,
    },
    /// Writes registers.
    Write {
        /// Where in the slot.
        offset: u16,
        /// What.
        bytes: &'a [u8],
    },
    /// The machine is paused, saved, and resumed.
    Save,
}

/// A device's state ([`DeviceState`]), then what is done with the device ([`Step`]).
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let Ok((saved, mut rest)) = take_from_bytes::<DeviceState>(input) else {
        return false;
    };
    let mut steps = Vec::new();
    while steps.len() < MAX_STEPS
        && let Ok((step, behind)) = take_from_bytes::<Step<'_>>(rest)
    {
        steps.push(step);
        rest = behind;
    }
    device(&saved, &ram(), &steps)
}

/// Restores a device, if the state is one, and goes on with these steps; whether it is one.
///
/// # Panics
/// Where a promise is broken.
pub fn device(saved: &DeviceState, ram: &GuestRam, steps: &[Step<'_>]) -> bool {
    let state = saved.state.as_slice();
    match saved.id {
        secrets::DEVICE_ID => go_on(blank, state, ram, steps, |rig| {
            let rehydrated = rig
                .transport()
                .with_device(|device, ram| device.rehydrate(secrets(0b0111), ram));
            rehydrated.expect("attached pages are RAM");
        }),
        BLOCK => {
            let state = postcard::from_bytes::<TransportState<BlockState>>(state);
            let Ok(disk) = state.map(|state| state.device) else {
                return false;
            };
            (1..=MAX_SECTORS).contains(&disk.sectors)
                && go_on(|| block(disk), saved.state.as_slice(), ram, steps, |_| {})
        }
        RNG => go_on(|| RngDevice, state, ram, steps, |_| {}),
        VSOCK => go_on(vsock, state, ram, steps, |_| {}),
        _ => false,
    }
}

fn blank() -> SecretsDevice {
    SecretsDevice::new(Vec::new()).expect("it has no secrets")
}

fn block(disk: BlockState) -> BlockDevice {
    let file = memfd_create("disk", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&file, disk.sectors * 512).expect("a small file");
    BlockDevice::new(File::from(file), disk.read_only).expect("whole sectors")
}

/// Nobody connects, and nobody listens where the guest connects to.
fn vsock() -> Vsock {
    static LISTENER: LazyLock<UnixListener> = LazyLock::new(|| {
        let name = format!("cachot-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("nobody else has the name");
        listener.set_nonblocking(true).expect("a socket");
        listener
    });
    let listener = LISTENER.try_clone().expect("a descriptor");
    Vsock::new(listener, "/nonexistent/vsock").expect("descriptors")
}

/// `finish` is what the host does between restoring the device and letting it work.
fn go_on<D: VirtioDevice<GuestRam> + 'static>(
    make: impl Fn() -> D,
    state: &[u8],
    ram: &GuestRam,
    steps: &[Step<'_>],
    finish: impl Fn(&Rig<D>),
) -> bool {
    let Ok(state) = postcard::from_bytes::<TransportState<D::State>>(state) else {
        return false;
    };
    let bases: Vec<u64> = state
        .queues
        .iter()
        .flat_map(|queue| [queue.desc_table, queue.avail_ring, queue.used_ring])
        .collect();
    let mut rig = Rig::new(make(), ram.clone());
    let restored = rig.transport().restore(state);
    if restored.is_err() {
        return false;
    }
    finish(&rig);
    rig.transport().resume();
    rig.work();
    for step in steps {
        match step {
            Step::Poke { base, at, bytes } => {
                let base = usize::from(*base).checked_sub(1);
                let base = base.map_or(Some(&0), |index| bases.get(index));
                if let Some(at) = base.and_then(|base| base.checked_add(u64::from(*at))) {
                    rig.poke(at, bytes);
                }
            }
            Step::Notify(queue) => rig.set(NOTIFY, *queue),
            Step::Read { offset, len } => {
                rig.read(u64::from(*offset), &mut vec![0; usize::from(*len)]);
            }
            Step::Write { offset, bytes } => rig.write(u64::from(*offset), bytes),
            Step::Save => save(&rig, &make),
        }
        rig.work();
    }
    save(&rig, &make);
    true
}

/// `QueueNotify` ("MMIO Device Register Layout").
const NOTIFY: u64 = 0x50;

/// What a device saves is a state that it can have.
fn save<D: VirtioDevice<GuestRam> + 'static>(rig: &Rig<D>, make: &impl Fn() -> D) {
    if rig.transport().pause().is_ok() {
        let state = postcard::to_allocvec(&rig.transport().save()).expect("plain data");
        let state = postcard::from_bytes(&state).expect("it was just written");
        let copy = Rig::new(make(), rig.ram.clone());
        let restored = copy.transport().restore(state);
        restored.expect("a device's own state");
    }
    rig.transport().resume();
}

/// The console: restored, every register written and read.
///
/// # Panics
/// Where a promise is broken.
pub fn console(state: ConsoleState) {
    let Ok(mut console) = Console::restore(state, io::sink()) else {
        return;
    };
    for offset in 0..u8::try_from(PORTS).expect("there are eight") {
        console.read(offset);
        console.write(offset, 0x5a);
    }
    Console::restore(console.save(), io::sink()).expect("a console's own state");
}
