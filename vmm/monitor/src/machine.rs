//! The machine: KVM objects, memory, devices and the guest's first state, made in the order that is fast.
//!
//! Memory slots come first: the in-kernel interrupt controllers register on KVM's I/O buses, and the
//! next change of a memory slot would wait milliseconds for the grace period that this starts. For the same
//! reason there are no ioeventfds, whose removal costs 16 ms: notifications are served by the vCPU thread.

use std::io;
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex};

use cachot_devices::memory::{GuestRam, RamError, Swap};
use cachot_devices::serial::{Console, ConsoleError};
use cachot_devices::virtio::VirtioDevice;
use cachot_devices::virtio::block::{BlockDevice, BlockError};
use cachot_devices::virtio::mmio::{MmioSlot, Transport};
use cachot_devices::virtio::rng::RngDevice;
use cachot_devices::virtio::secrets::SecretsDevice;
use cachot_devices::virtio::vsock::Vsock;
use event_manager::MutEventSubscriber;
use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{self, AcpiError};
use crate::boot::{self, BootError};
use crate::bus::{Bus, Output};
use crate::keeper::Setup;
use crate::layout;
use crate::metrics::Timeline;
use crate::protocol::VSOCK_SOCKET;
use crate::vcpu::{Crew, CrewError};
use crate::x86_64::msr::{self, MsrError};
use crate::x86_64::registers::{self, RegisterError};
use crate::x86_64::{cpuid, interrupts};

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// What was handed over as `/dev/kvm` speaks another language.
    #[error(
        "this is not KVM as this program knows it (API version {0}): load the kvm_intel or kvm_amd module"
    )]
    Version(i32),
    /// The host's KVM is too old.
    #[error("the host's KVM lacks {0}: a Linux kernel of version 5.10 or later is needed")]
    Missing(&'static str),
    /// More vCPUs than KVM has.
    #[error("{asked} vCPUs are not possible: this host's KVM has at most {most} (--cpus)")]
    Cpus {
        /// Number in the configuration.
        asked: u8,
        /// Most that the host's KVM can have.
        most: usize,
    },
    /// KVM refused something.
    #[error("KVM failed: {call}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// No memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// vCPU registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// vCPU model-specific registers.
    #[error(transparent)]
    Msr(#[from] MsrError),
    /// More CPUID leaves than KVM takes.
    #[error("the CPUID table of this host is too long")]
    Cpuid,
    /// vCPU threads.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Kernel, initial RAM disk or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
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

fn kvm_error(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { call, source }
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
    let kvm = open(setup.kvm)?;
    let vm = create_vm(&kvm)?;
    let swap = if setup.config.allow_swap {
        Swap::Ignored
    } else {
        Swap::Locked
    };
    let ram = GuestRam::new(setup.config.memory, swap)?;
    add_memory(&vm, &ram)?;
    // Before the interrupt controllers, because on Intel these are memory slots as well.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(layout::KVM_TSS).expect("usize has 64 bits");
    vm.set_tss_address(tss)
        .map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(kvm_error("KVM_CREATE_IRQCHIP"))?;
    let vcpus = create_vcpus(&kvm, &vm, setup.config.cpus)?;

    let mut board = Board {
        vm,
        ram,
        slots: Vec::new(),
        devices: Vec::new(),
        subscribers: Vec::new(),
    };
    board.attach(SecretsDevice::new(setup.secrets))?;
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
        self.vm
            .register_irqfd(line, gsi)
            .map_err(kvm_error("KVM_IRQFD"))
    }
}

fn open(fd: std::os::fd::OwnedFd) -> Result<Kvm, MachineError> {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is owned, and ownership goes to the object. A file that is not KVM
    // answers the next call with an error.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(MachineError::Version(version));
    }
    for (cap, name) in [
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(MachineError::Missing(name));
        }
    }
    Ok(kvm)
}

/// KVM gives up where a signal is pending; the signal is served later.
fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(kvm_error("KVM_CREATE_VM")),
        }
    }
}

fn add_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), MachineError> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.host_address(),
        };
        // SAFETY: the mapping is the RAM's and stays for as long as the machine, which keeps it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8) -> Result<Vec<VcpuFd>, MachineError> {
    let most = kvm.get_max_vcpus();
    if usize::from(count) > most {
        return Err(MachineError::Cpus { asked: count, most });
    }
    let baseline = cpuid::baseline(kvm).map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
    (0..count)
        .map(|index| {
            let vcpu = vm
                .create_vcpu(index.into())
                .map_err(kvm_error("KVM_CREATE_VCPU"))?;
            let cpuid =
                cpuid::for_vcpu(&baseline, index, count).map_err(|_| MachineError::Cpuid)?;
            vcpu.set_cpuid2(&cpuid)
                .map_err(kvm_error("KVM_SET_CPUID2"))?;
            msr::set_boot_msrs(&vcpu)?;
            if index == 0 {
                interrupts::mask_lint0(&vcpu).map_err(kvm_error("KVM_SET_LAPIC"))?;
            }
            registers::set_fpu(&vcpu).map_err(kvm_error("KVM_SET_FPU"))?;
            Ok(vcpu)
        })
        .collect()
}
