//! The machine's shape as the manifest tells it.

use std::fs::File;

use cachot_devices::memory::GuestRam;
use cachot_devices::virtio::VirtioDevice;
use cachot_devices::virtio::block::BlockDevice;
use cachot_devices::virtio::rng::RngDevice;
use cachot_devices::virtio::secrets::SecretsDevice;
use cachot_devices::virtio::vsock::Vsock;
use cachot_snapshot::image::{CpuBaseline, Digest, Machine, MemoryRegion};
use kvm_bindings::kvm_cpuid_entry2;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::kvm::{self, KvmError};
use crate::state::MachineState;
use crate::x86_64::cpuid;

/// The shape of a machine with this RAM.
pub fn of(state: &MachineState, ram: &GuestRam) -> Machine {
    let mut file_offset = 0;
    let memory = ram
        .iter()
        .map(|region| {
            let described = MemoryRegion {
                guest_start: region.start_addr().0,
                length: region.len(),
                file_offset,
            };
            file_offset += region.len();
            described
        })
        .collect();
    let cpuid = state.vcpus.first().map_or(&[][..], |vcpu| &vcpu.cpuid);
    Machine {
        cpus: u8::try_from(state.vcpus.len()).unwrap_or(u8::MAX),
        memory,
        devices: state.devices.iter().map(|device| name(device.id)).collect(),
        cpu: cpu(cpuid),
    }
}

fn name(id: u32) -> String {
    const SECRETS: u32 = id_of::<SecretsDevice>();
    const VSOCK: u32 = id_of::<Vsock>();
    const RNG: u32 = id_of::<RngDevice>();
    const BLOCK: u32 = id_of::<BlockDevice>();
    match id {
        SECRETS => "secrets".into(),
        VSOCK => "vsock".into(),
        RNG => "rng".into(),
        BLOCK => "block".into(),
        other => format!("virtio-{other}"),
    }
}

const fn id_of<D: VirtioDevice<GuestRam>>() -> u32 {
    D::ID
}

/// The CPU that this host gives a machine, told as in a manifest, to be compared with that of an image before it is
/// restored. `kvm` is `/dev/kvm`. The fingerprint is of what vCPUs have in common, so no vCPU's own.
///
/// # Errors
/// When this is not KVM, or not one that can run a machine; see [`KvmError`].
pub fn host_cpu(kvm: &File) -> Result<CpuBaseline, KvmError> {
    let call = |call| move |source| KvmError::Call { call, source };
    let kvm = kvm
        .try_clone()
        .map_err(|error| call("duplicating its descriptor")(error.into()))?;
    let kvm = kvm::open(kvm.into())?;
    let baseline = cpuid::baseline(&kvm).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(cpu(baseline.as_slice()))
}

fn cpu(entries: &[kvm_cpuid_entry2]) -> CpuBaseline {
    let mut table = Vec::new();
    for entry in entries {
        for word in [
            entry.function,
            entry.index,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ] {
            table.extend_from_slice(&word.to_le_bytes());
        }
    }
    CpuBaseline {
        vendor: cpuid::vendor(entries),
        features: cpuid::features(entries),
        fingerprint: Digest::of(&table),
    }
}
