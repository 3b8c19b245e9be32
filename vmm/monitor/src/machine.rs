//! The machine: KVM objects, memory and devices, with a first state that a kernel or a snapshot gives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cachot_devices::memory::{GuestRam, RamError, Swap};
use cachot_devices::serial::{Console, ConsoleError};
use cachot_devices::virtio::block::{BlockDevice, BlockError};
use cachot_devices::virtio::mmio::{MmioSlot, Transport};
use cachot_devices::virtio::rng::RngDevice;
use cachot_devices::virtio::secrets::{HostError, Secret, SecretsDevice};
use cachot_devices::virtio::vsock::Vsock;
use cachot_devices::virtio::{RestoreError, VirtioDevice};
use cachot_secrets::Name;
use event_manager::MutEventSubscriber;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{self, AcpiError};
use crate::boot::{self, BootError};
use crate::bus::{Bus, Output};
use crate::keeper::{Setup, Source};
use crate::kvm::{self, KvmError};
use crate::layout;
use crate::metrics::Timeline;
use crate::protocol::VSOCK_SOCKET;
use crate::restore::{self, Image, ImageError};
use crate::seccomp::Filter;
use crate::state::{self, DeviceState, MachineState, StateError};
use crate::vcpu::{Crew, CrewError};
use crate::x86_64::msr_state::{self, MsrStateError};
use crate::x86_64::registers::{self, RegisterError};
use crate::x86_64::vm_state::{VmState, VmStateError};

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
    /// The snapshot.
    #[error(transparent)]
    Image(#[from] ImageError),
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

/// Why a machine cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// vCPUs.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// Model-specific registers.
    #[error(transparent)]
    Msrs(#[from] MsrStateError),
    /// Interrupt controllers and clock.
    #[error(transparent)]
    Vm(#[from] VmStateError),
    /// A device's state.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A device as the rest of the monitor handles it, whatever it is.
pub trait Device: Send {
    /// Lets it finish and rest.
    fn pause(&mut self);
    /// Lets it work again.
    fn resume(&mut self);
    /// The device as data. It rests.
    ///
    /// # Errors
    /// Never in practice: the state is plain data.
    fn save(&self) -> Result<DeviceState, StateError>;
}

impl<D: VirtioDevice<GuestRam>> Device for Transport<D, GuestRam> {
    fn pause(&mut self) {
        // A device that cannot finish has told its driver so, and rests as well.
        drop(Transport::pause(self));
    }

    fn resume(&mut self) {
        Transport::resume(self);
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        Ok(DeviceState {
            id: D::ID,
            state: postcard::to_allocvec(&Transport::save(self))?,
        })
    }
}

/// A running or runnable machine.
pub struct Machine {
    /// vCPU threads, resting.
    pub crew: Crew,
    /// Raises the power button's event in the guest.
    pub power_button: EventFd,
    /// The device of the secrets, which is among the devices.
    pub secrets: Arc<Mutex<Transport<SecretsDevice, GuestRam>>>,
    devices: Vec<Arc<Mutex<dyn Device>>>,
    bus: Arc<Bus>,
    /// Guest memory; KVM uses it for as long as the machine exists.
    pub ram: GuestRam,
    /// The file of the disk that the guest may write to, if it has one.
    pub writable_disk: Option<File>,
    /// Copies of secrets that its restore could not put back, by secret.
    pub left_zero: BTreeMap<Name, u64>,
    /// CPUID table of each vCPU.
    cpuids: Vec<Vec<kvm_cpuid_entry2>>,
    vm: VmFd,
    kvm: Kvm,
}

impl Machine {
    /// Lets all devices finish and rest.
    pub fn pause_devices(&self) {
        self.each_device(|device| device.pause());
    }

    /// Lets all devices work again.
    pub fn resume_devices(&self) {
        self.each_device(|device| device.resume());
    }

    fn each_device(&self, mut act: impl FnMut(&mut dyn Device)) {
        for device in &self.devices {
            act(&mut *device.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The machine as data. vCPUs and devices rest.
    ///
    /// # Errors
    /// See [`SaveError`].
    pub fn save(&self) -> Result<MachineState, SaveError> {
        // Devices were quiesced before: what they have raised is in the controllers by now.
        let msrs = msr_state::list(&self.kvm)?;
        let vcpus = self.crew.states(&self.cpuids, &msrs)?;
        let mut devices = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            devices.push(device.save()?);
        }
        Ok(MachineState {
            memory: self.ram.size(),
            vm: VmState::read(&self.vm)?,
            vcpus,
            console: self.bus.save_console(),
            devices,
        })
    }
}

/// Builds everything; the vCPUs wait for [`Crew::resume`]. The second result are the devices' event
/// handlers, for the device thread.
///
/// # Errors
/// See [`MachineError`].
pub fn build(
    setup: Setup,
    timeline: &Arc<Timeline>,
    vcpu_filter: &Filter,
) -> Result<(Machine, Vec<Box<dyn MutEventSubscriber>>), MachineError> {
    let kvm = kvm::open(setup.kvm)?;
    let swap = if setup.config.allow_swap {
        Swap::Ignored
    } else {
        Swap::Locked
    };
    let (ram, first, left_zero) = match setup.source {
        Source::Kernel { kernel, initrd } => (
            GuestRam::new(setup.config.memory, swap)?,
            First::Kernel { kernel, initrd },
            BTreeMap::new(),
        ),
        Source::Image {
            memory,
            state,
            plan,
        } => {
            let key = setup.config.commitment_key;
            let mut image = Image::read(state, plan, &setup.secrets, key)?;
            let ram = image.map(memory, &setup.config, swap)?;
            let refilled = image.refill(&ram)?;
            (ram, First::Image(Box::new(image)), refilled.left_zero)
        }
    };
    let vm = kvm::create(&kvm, &ram)?;
    let vcpus = kvm::create_vcpus(&kvm, &vm, setup.config.cpus)?;

    let image = match &first {
        First::Kernel { .. } => None,
        First::Image(image) => Some(&**image),
    };
    let mut board = Board {
        vm,
        ram,
        slots: Vec::new(),
        devices: Vec::new(),
        subscribers: Vec::new(),
        saved: image.map(|image| image.state.devices.as_slice()),
    };
    let secrets = board.attach_secrets(setup.secrets)?;
    if let Some(listener) = setup.vsock {
        board.attach(Vsock::new(listener, VSOCK_SOCKET).map_err(MachineError::Device)?)?;
    }
    board.attach(RngDevice)?;
    let mut writable_disk = None;
    if let Some((disk, read_only)) = setup.disk {
        if !read_only {
            writable_disk = Some(disk.try_clone().map_err(MachineError::Device)?);
        }
        board.attach(BlockDevice::new(disk, read_only)?)?;
    }
    board.check_complete()?;

    let output: Output = match setup.console {
        Some(file) => Box::new(file),
        None => Box::new(io::sink()),
    };
    let console = match image {
        Some(image) => Console::restore(image.state.console.clone(), output)?,
        None => Console::new(output)?,
    };
    board.connect(console.line(), layout::CONSOLE_GSI)?;
    let power_button =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(MachineError::Device)?;
    board.connect(&power_button, layout::POWER_BUTTON_GSI)?;

    let Board {
        vm,
        ram,
        slots,
        devices,
        subscribers,
        ..
    } = board;
    let is_restored = image.is_some();
    let cpuids = match first {
        First::Kernel { kernel, initrd } => {
            let cpuids = kvm::reset_vcpus(&kvm, &vcpus)?;
            let rsdp = acpi::write_tables(&ram, setup.config.cpus, slots.len())?;
            let entry = boot::load(&ram, kernel, initrd, &setup.config.cmdline, rsdp)?;
            if let Some(first) = vcpus.first() {
                registers::set_entry(first, &ram, entry)?;
            }
            cpuids
        }
        First::Image(image) => {
            restore::write(&image, &vm, &vcpus, &ram)?;
            let vcpus = image.state.vcpus.into_iter();
            vcpus.map(|vcpu| vcpu.cpuid).collect()
        }
    };
    let bus = Arc::new(Bus::new(console, slots, Arc::clone(timeline)));
    let crew = Crew::new(vcpus, &bus, vcpu_filter)?;
    let machine = Machine {
        crew,
        power_button,
        secrets,
        devices,
        bus,
        ram,
        writable_disk,
        left_zero,
        cpuids,
        vm,
        kvm,
    };
    if is_restored {
        // After the interrupt controllers' state, which would take their interrupts away again: what the guest must
        // hear of its restore.
        machine.resume_devices();
    }
    Ok((machine, subscribers))
}

/// What gives the machine its first state.
enum First {
    Kernel { kernel: File, initrd: Option<File> },
    Image(Box<Image>),
}

/// A machine that devices are put on.
struct Board<'a> {
    vm: VmFd,
    ram: GuestRam,
    slots: Vec<MmioSlot>,
    devices: Vec<Arc<Mutex<dyn Device>>>,
    subscribers: Vec<Box<dyn MutEventSubscriber>>,
    /// States of the devices that are still to be put on, where the machine comes from a snapshot.
    saved: Option<&'a [DeviceState]>,
}

impl Board<'_> {
    /// Puts the device of the secrets into the next slot. From a snapshot it comes back with its pages filled.
    fn attach_secrets(
        &mut self,
        secrets: Vec<Secret>,
    ) -> Result<Arc<Mutex<Transport<SecretsDevice, GuestRam>>>, MachineError> {
        if self.saved.is_none() {
            return self.attach(SecretsDevice::new(secrets)?);
        }
        let device = self.attach(SecretsDevice::new(Vec::new())?)?;
        restore::rehydrate(secrets, &device)?;
        Ok(device)
    }

    /// Puts a device into the next slot.
    fn attach<D>(&mut self, device: D) -> Result<Arc<Mutex<Transport<D, GuestRam>>>, MachineError>
    where
        D: VirtioDevice<GuestRam> + 'static,
    {
        let mut transport =
            Transport::new(device, self.ram.clone()).map_err(MachineError::Device)?;
        if let Some(state) = self.next_saved(D::ID)? {
            transport
                .restore(state::read(state).map_err(ImageError::State)?)
                .map_err(ImageError::Device)?;
        }
        let slot = u32::try_from(self.slots.len()).expect("there are under 16 slots");
        self.connect(transport.interrupt().line(), layout::MMIO_GSI + slot)?;
        let transport = Arc::new(Mutex::new(transport));
        self.slots.push(MmioSlot::new(&transport));
        self.devices.push(transport.clone());
        self.subscribers.push(Box::new(transport.clone()));
        Ok(transport)
    }

    /// The state of the next device, which has to have this id.
    fn next_saved(&mut self, id: u32) -> Result<Option<&[u8]>, ImageError> {
        let Some(saved) = self.saved else {
            return Ok(None);
        };
        match saved.split_first() {
            Some((next, rest)) if next.id == id => {
                self.saved = Some(rest);
                Ok(Some(&next.state))
            }
            _ => Err(other_devices()),
        }
    }

    fn check_complete(&self) -> Result<(), ImageError> {
        match self.saved {
            Some([_, ..]) => Err(other_devices()),
            _ => Ok(()),
        }
    }

    fn connect(&self, line: &EventFd, gsi: u32) -> Result<(), MachineError> {
        Ok(kvm::connect(&self.vm, line, gsi)?)
    }
}

fn other_devices() -> ImageError {
    ImageError::Device(RestoreError(
        "the image's machine has other devices than this one".into(),
    ))
}
