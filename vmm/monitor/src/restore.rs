//! A machine out of a snapshot: what is in the image, then what the image forgot.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use cachot_devices::memory::{GuestRam, RamError, Swap};
use cachot_devices::virtio::RestoreError;
use cachot_devices::virtio::mmio::Transport;
use cachot_devices::virtio::secrets::{HostError, Secret, SecretsDevice};
use cachot_secrets::{Name, SecretValue, ValueError};
use cachot_snapshot::image::{MAX_PLAN_LEN, MAX_STATE_LEN};
use cachot_snapshot::plan::{Place, Plan, PlanError};
use cachot_snapshot::refill::{RefillError, Refilled, Target, refill};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};
use zeroize::Zeroizing;

use crate::acpi::{AcpiError, generation};
use crate::kvm::{self, KvmError};
use crate::layout;
use crate::protocol::Config;
use crate::state::{MachineState, StateError};
use crate::x86_64::register_file;
use crate::x86_64::vcpu_state::VcpuStateError;
use crate::x86_64::vm_state::VmStateError;

/// Why a snapshot does not become a machine.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A part cannot be read.
    #[error("cannot read the snapshot's {part}")]
    Read {
        /// The part.
        part: &'static str,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// A part is longer than it can be.
    #[error("the snapshot's {0} is longer than it can be: the image is damaged")]
    TooLong(&'static str),
    /// The state is not one.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state is of another machine than the keeper's configuration.
    #[error("the snapshot's state and its manifest describe different machines")]
    Shape,
    /// RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A device.
    #[error(transparent)]
    Device(RestoreError),
    /// The plan is not one.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A value cannot be brought into locked memory.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Copies of secrets cannot be put back.
    #[error(transparent)]
    Refill(RefillError<NoSuchPlace>),
    /// Secrets cannot be put back.
    #[error(transparent)]
    Secrets(#[from] HostError),
    /// KVM refused a call.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM refused a vCPU's state.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// KVM refused the rest.
    #[error(transparent)]
    Vm(#[from] VmStateError),
    /// The guest cannot be told that it is a copy.
    #[error(transparent)]
    Generation(#[from] AcpiError),
}

/// A snapshot without its RAM.
pub struct Image {
    /// The machine.
    pub state: MachineState,
    /// What was left out of RAM and registers.
    plan: Plan,
    /// The secrets' values now.
    values: BTreeMap<Name, SecretValue>,
    key: Option<[u8; 32]>,
}

impl Image {
    /// Reads the parts that are not RAM, and puts back what the registers have forgotten. `key` is the image's
    /// commitment key, where the keeper has it.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn read(
        state: File,
        plan: File,
        secrets: &[Secret],
        key: Option<[u8; 32]>,
    ) -> Result<Self, ImageError> {
        let state = read_part(&state, "state", MAX_STATE_LEN)?;
        let plan = read_part(&plan, "plan", MAX_PLAN_LEN)?;
        let value = |secret: &Secret| Ok((secret.name.clone(), secret.value.read()?));
        Ok(Self {
            state: MachineState::from_bytes(&state)?,
            plan: Plan::from_bytes(&plan)?,
            values: secrets
                .iter()
                .map(value)
                .collect::<Result<_, ValueError>>()?,
            key,
        })
    }

    /// Maps the RAM, after a look at whether all parts are of the machine that the keeper wants.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn map(
        &self,
        memory: OwnedFd,
        config: &Config,
        swap: Swap,
    ) -> Result<GuestRam, ImageError> {
        let cpus = usize::from(config.cpus);
        if self.state.memory != config.memory || self.state.vcpus.len() != cpus {
            return Err(ImageError::Shape);
        }
        Ok(GuestRam::map(memory, config.memory, swap)?)
    }
}

fn read_part(file: &File, part: &'static str, limit: u64) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read { part, source };
    let len = file.metadata().map_err(failed)?.len();
    let len = usize::try_from(len)
        .ok()
        .filter(|_| len <= limit)
        .ok_or(ImageError::TooLong(part))?;
    let mut bytes = vec![0; len];
    // Not by the file's position, which other monitors may share.
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

impl Image {
    /// Puts back what RAM and registers have forgotten.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn refill(&mut self, ram: &GuestRam) -> Result<Refilled, ImageError> {
        let files = self.state.vcpus.iter().map(register_file::read).collect();
        let mut target = Guest { ram, files };
        let refilled = refill(&self.plan, &self.values, self.key.as_ref(), &mut target);
        let refilled = refilled.map_err(ImageError::Refill)?;
        for (vcpu, file) in self.state.vcpus.iter_mut().zip(&target.files) {
            register_file::write(vcpu, file);
        }
        // Values are not kept where nobody needs them any more.
        self.values.clear();
        Ok(refilled)
    }
}

/// RAM and registers of the guest.
struct Guest<'a> {
    ram: &'a GuestRam,
    files: Vec<Zeroizing<[u8; register_file::LEN]>>,
}

/// A redaction that is neither in RAM nor in a register.
#[derive(Debug, thiserror::Error)]
#[error("the redaction plan names a place that the machine does not have")]
pub struct NoSuchPlace;

impl Target for Guest<'_> {
    type Error = NoSuchPlace;

    fn write(&mut self, place: Place, at: u64, bytes: &[u8]) -> Result<(), NoSuchPlace> {
        match place {
            Place::Ram => self
                .ram
                .write_slice(bytes, GuestAddress(at))
                .map_err(|_| NoSuchPlace),
            Place::Vcpu(number) => {
                let file = self.files.get_mut(usize::from(number)).ok_or(NoSuchPlace)?;
                let start = usize::try_from(at).map_err(|_| NoSuchPlace)?;
                let end = start.checked_add(bytes.len()).ok_or(NoSuchPlace)?;
                let part = file.get_mut(start..end).ok_or(NoSuchPlace)?;
                part.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn read(&self, place: Place, at: u64) -> Option<u8> {
        match place {
            Place::Ram => self.ram.read_obj(GuestAddress(at)).ok(),
            Place::Vcpu(number) => {
                let file = self.files.get(usize::from(number))?;
                file.get(usize::try_from(at).ok()?).copied()
            }
        }
    }
}

/// Gives the restored device its secrets: it fills the attached pages.
///
/// # Errors
/// See [`ImageError`].
pub fn rehydrate(
    secrets: Vec<Secret>,
    device: &Mutex<Transport<SecretsDevice, GuestRam>>,
) -> Result<(), ImageError> {
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    device.with_device(|device, ram| device.rehydrate(secrets, ram))?;
    Ok(())
}

/// Brings vCPUs and interrupt controllers into the saved state, and tells the guest that it is a copy. That the host's
/// CPU is fit for it was found by the keeper: asking KVM again takes longer than all the rest of this where the host is
/// itself a virtual machine.
///
/// # Errors
/// See [`ImageError`].
pub fn write(image: &Image, vm: &VmFd, vcpus: &[VcpuFd], ram: &GuestRam) -> Result<(), ImageError> {
    for (vcpu, state) in vcpus.iter().zip(&image.state.vcpus) {
        state.write(vcpu)?;
    }
    image.state.vm.write(vm)?;
    // After the interrupt controllers' state, which would take the interrupt away again.
    generation::renew(ram)?;
    Ok(kvm::pulse(vm, layout::GENERATION_GSI)?)
}
