//! The machine: KVM objects, memory, devices and the guest's first state.

use std::io;
use std::sync::{Arc, Mutex};

use cachot_devices::memory::{GuestRam, RamError, Swap};
use cachot_devices::serial::{Console, ConsoleError};
use cachot_devices::virtio::VirtioDevice;
use cachot_devices::virtio::block::{BlockDevice, BlockError};
use cachot_devices::virtio::mmio::{MmioSlot, Transport};
use cachot_devices::virtio::rng::RngDevice;
use cachot_devices::virtio::secrets::{HostError, SecretsDevice};
use cachot_devices::virtio::vsock::Vsock;
use event_manager::MutEventSubscriber;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{self, AcpiError};
use crate::boot::{self, BootError};
use crate::bus::{Bus, Output};
use crate::keeper::Setup;
use crate::kvm::{self, KvmError};
use crate::layout;
use crate::metrics::Timeline;
use crate::protocol::VSOCK_SOCKET;
use crate::vcpu::{Crew, CrewError};
use crate::x86_64::registers::{self, RegisterError};

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The first vCPU's registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// vCPU threads.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Kernel, initial RAM disk or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Secrets that the device does not take.
    #[error(transparent)]
    Secrets(#[from] HostError),
    /// Serial console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// Disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A device's eventfds.
    #[error("cannot make a device: raise the limit of open files (`ulimit -n`)")]
    Device(#[source] io::Error),
}

/// A device as the rest of the monitor handles it, whatever it is.
pub trait Pausable: Send {
    /// Lets the device finish and rest.
    fn pause(&mut self);
    /// Lets it work again.
    fn resume(&mut self);
}

impl<D: VirtioDevice<GuestRam>> Pausable for Transport<D, GuestRam> {
    fn pause(&mut self) {
        // A device that cannot finish has told its driver so, and rests as well.
        drop(Transport::pause(self));
    }

    fn resume(&mut self) {
        Transport::resume(self);
    }
}

/// A running or runnable machine.
pub struct Machine {
    /// vCPU threads, resting.
    pub crew: Crew,
    /// Raises the power button's event in the guest.
    pub power_button: EventFd,
    /// Devices, for pausing.
    pub devices: Vec<Arc<Mutex<dyn Pausable>>>,
    /// Guest memory; KVM uses it for as long as the machine exists.
    pub ram: GuestRam,
    /// The virtual machine.
    pub vm: VmFd,
}

/// Builds everything; the vCPUs wait for [`Crew::resume`]. The second result are the devices' event
/// handlers, for the device thread.
///
/// # Errors
/// See [`MachineError`].
pub fn build(
    setup: Setup,
    timeline: &Arc<Timeline>,
) -> Result<(Machine, Vec<Box<dyn MutEventSubscriber>>), MachineError> {
    let kvm = kvm::open(setup.kvm)?;
    let swap = if setup.config.allow_swap {
        Swap::Ignored
    } else {
        Swap::Locked
    };
    let ram = GuestRam::new(setup.config.memory, swap)?;
    let vm = kvm::create(&kvm, &ram)?;
    let vcpus = kvm::create_vcpus(&kvm, &vm, setup.config.cpus)?;

    let mut board = Board {
        vm,
        ram,
        slots: Vec::new(),
        devices: Vec::new(),
        subscribers: Vec::new(),
    };
    board.attach(SecretsDevice::new(setup.secrets)?)?;
    if let Some(listener) = setup.vsock {
        board.attach(Vsock::new(listener, VSOCK_SOCKET).map_err(MachineError::Device)?)?;
    }
    board.attach(RngDevice)?;
    if let Some((image, read_only)) = setup.disk {
        board.attach(BlockDevice::new(image, read_only)?)?;
    }
    let rsdp = acpi::write_tables(&board.ram, setup.config.cpus, board.slots.len())?;
    let entry = boot::load(
        &board.ram,
        setup.kernel,
        setup.initrd,
        &setup.config.cmdline,
        rsdp,
    )?;
    if let Some(first) = vcpus.first() {
        registers::set_entry(first, &board.ram, entry)?;
    }

    let output: Output = match setup.console {
        Some(file) => Box::new(file),
        None => Box::new(io::sink()),
    };
    let console = Console::new(output)?;
    board.connect(console.line(), layout::CONSOLE_GSI)?;
    let power_button =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(MachineError::Device)?;
    board.connect(&power_button, layout::GED_GSI)?;
    let bus = Arc::new(Bus::new(console, board.slots, Arc::clone(timeline)));
    let crew = Crew::new(vcpus, &bus)?;
    let machine = Machine {
        crew,
        power_button,
        devices: board.devices,
        ram: board.ram,
        vm: board.vm,
    };
    Ok((machine, board.subscribers))
}

/// A machine that devices are put on.
struct Board {
    vm: VmFd,
    ram: GuestRam,
    slots: Vec<MmioSlot>,
    devices: Vec<Arc<Mutex<dyn Pausable>>>,
    subscribers: Vec<Box<dyn MutEventSubscriber>>,
}

impl Board {
    /// Puts a device into the next slot.
    fn attach<D>(&mut self, device: D) -> Result<(), MachineError>
    where
        D: VirtioDevice<GuestRam> + 'static,
    {
        let transport = Transport::new(device, self.ram.clone()).map_err(MachineError::Device)?;
        let slot = u32::try_from(self.slots.len()).expect("there are under 16 slots");
        self.connect(transport.interrupt().line(), layout::MMIO_GSI + slot)?;
        let transport = Arc::new(Mutex::new(transport));
        self.slots.push(MmioSlot::new(&transport));
        self.devices.push(transport.clone());
        self.subscribers.push(Box::new(transport));
        Ok(())
    }

    fn connect(&self, line: &EventFd, gsi: u32) -> Result<(), MachineError> {
        Ok(kvm::connect(&self.vm, line, gsi)?)
    }
}
