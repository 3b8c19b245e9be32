//! The machine's KVM objects, made in the order that is fast.
//!
//! Memory slots come first: the in-kernel interrupt controllers register on KVM's I/O buses, and the
//! next change of a memory slot would wait milliseconds for the grace period that this starts. For the same
//! reason there are no ioeventfds, whose removal costs 16 ms: notifications are served by the vCPU thread.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use cachot_devices::memory::GuestRam;
use kvm_bindings::{KVM_API_VERSION, kvm_cpuid_entry2, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::layout;
use crate::x86_64::msr::{self, MsrError};
use crate::x86_64::{cpuid, interrupts, registers};

/// Failures of KVM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
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
    Call {
        /// The call.
        call: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Model-specific registers of a vCPU.
    #[error(transparent)]
    Msr(#[from] MsrError),
    /// More CPUID leaves than KVM takes.
    #[error("the CPUID table of this host is too long")]
    Cpuid,
}

fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { call, source }
}

/// Takes over `/dev/kvm`, and checks that it can do what is needed.
///
/// # Errors
/// See [`KvmError`].
pub fn open(fd: OwnedFd) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is owned, and ownership goes to the object. A file that is not KVM
    // answers the next call with an error.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version(version));
    }
    for (cap, name) in [
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Missing(name));
        }
    }
    Ok(kvm)
}

/// Makes a virtual machine with this memory and interrupt controllers, in the order that is fast.
///
/// # Errors
/// See [`KvmError`].
pub fn create(kvm: &Kvm, ram: &GuestRam) -> Result<VmFd, KvmError> {
    let vm = create_vm(kvm)?;
    add_memory(&vm, ram)?;
    // Before the interrupt controllers, because on Intel these are memory slots as well.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(layout::KVM_TSS).expect("usize has 64 bits");
    vm.set_tss_address(tss)
        .map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

/// Makes an interrupt of the guest out of every write to an eventfd.
///
/// # Errors
/// When KVM refuses.
pub fn connect(vm: &VmFd, line: &EventFd, gsi: u32) -> Result<(), KvmError> {
    vm.register_irqfd(line, gsi).map_err(failed("KVM_IRQFD"))
}

/// KVM gives up where a signal is pending; the signal is served later.
fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(failed("KVM_CREATE_VM")),
        }
    }
}

fn add_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
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
            .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Makes vCPUs without any state yet.
///
/// # Errors
/// See [`KvmError`].
pub fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8) -> Result<Vec<VcpuFd>, KvmError> {
    let most = kvm.get_max_vcpus();
    if usize::from(count) > most {
        return Err(KvmError::Cpus { asked: count, most });
    }
    (0..count)
        .map(|index| {
            vm.create_vcpu(index.into())
                .map_err(failed("KVM_CREATE_VCPU"))
        })
        .collect()
}

/// Brings new vCPUs into the state in which firmware leaves them; answers their CPUID tables.
///
/// # Errors
/// See [`KvmError`].
///
/// # Panics
/// With more vCPUs than [`create_vcpus`] makes.
pub fn reset_vcpus(kvm: &Kvm, vcpus: &[VcpuFd]) -> Result<Vec<Vec<kvm_cpuid_entry2>>, KvmError> {
    let count = u8::try_from(vcpus.len()).expect("their number was one of 8 bits");
    let baseline = cpuid::baseline(kvm).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let mut cpuids = Vec::with_capacity(vcpus.len());
    for (index, vcpu) in (0..).zip(vcpus) {
        let cpuid = cpuid::for_vcpu(&baseline, index, count).map_err(|_| KvmError::Cpuid)?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        msr::set_boot_msrs(vcpu)?;
        if index == 0 {
            interrupts::mask_lint0(vcpu).map_err(failed("KVM_SET_LAPIC"))?;
        }
        registers::set_fpu(vcpu).map_err(failed("KVM_SET_FPU"))?;
        cpuids.push(cpuid.as_slice().to_vec());
    }
    Ok(cpuids)
}

/// Raises an edge-triggered interrupt now, rather than soon, as an eventfd would.
///
/// # Errors
/// When KVM refuses.
pub fn pulse(vm: &VmFd, gsi: u32) -> Result<(), KvmError> {
    [true, false]
        .into_iter()
        .try_for_each(|active| vm.set_irq_line(gsi, active))
        .map_err(failed("KVM_IRQ_LINE"))
}
