//! The parts of a machine that belong to no vCPU: interrupt controllers and the paravirtual clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// The controllers. There is no PIT to save: the machine has none.
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Why it cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VmStateError {
    /// KVM refused a call.
    #[error("KVM refused the state of a machine: {call}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Not a state of this machine.
    #[error("the saved interrupt controllers are not those of this machine")]
    Chips,
}

fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmStateError {
    move |source| VmStateError::Kvm { call, source }
}

/// Interrupt controllers and clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    clock: kvm_clock_data,
    chips: Vec<kvm_irqchip>,
}

impl VmState {
    /// Reads them. All vCPUs rest.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn read(vm: &VmFd) -> Result<Self, VmStateError> {
        let clock = vm.get_clock().map_err(failed("KVM_GET_CLOCK"))?;
        let chips = CHIPS
            .iter()
            .map(|&chip_id| {
                let mut chip = kvm_irqchip {
                    chip_id,
                    ..Default::default()
                };
                vm.get_irqchip(&mut chip)
                    .map_err(failed("KVM_GET_IRQCHIP"))?;
                Ok(chip)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { clock, chips })
    }

    /// Puts them into a new machine whose vCPUs have their state already.
    ///
    /// # Errors
    /// See [`VmStateError`].
    pub fn write(&self, vm: &VmFd) -> Result<(), VmStateError> {
        if !self.chips.iter().map(|chip| chip.chip_id).eq(CHIPS) {
            return Err(VmStateError::Chips);
        }
        // Without flags: the guest's monotonic time goes on where it was, and does not jump by the time that
        // the image lay about. Wall-clock time is set by PID 1.
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))?;
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }
}
