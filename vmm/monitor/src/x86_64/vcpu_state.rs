//! A vCPU as data: read between two guest instructions, and put into a new vCPU.

use std::fmt;

use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::msr_state::{self, MsrState, MsrStateError};

/// How far a TSC may be from the saved one's frequency without being scaled: what Linux tolerates between
/// two clocks of one machine, in parts per million.
const TSC_TOLERANCE_PPM: u32 = 250;

/// Why a vCPU cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM refused a call.
    #[error("KVM refused the state of a vCPU: {call}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Model-specific registers.
    #[error(transparent)]
    Msr(#[from] MsrStateError),
    /// More CPUID leaves than KVM takes.
    #[error("the saved CPUID table is too long")]
    Cpuid,
}

fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Kvm { call, source }
}

/// All registers of one vCPU. They may hold a guest's secrets, so there is no way to print them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are KVM's structures")]
pub struct VcpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// None where the host's TSC has no known frequency.
    pub tsc_khz: Option<u32>,
    pub mp_state: kvm_mp_state,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xsave: kvm_xsave,
    pub xcrs: kvm_xcrs,
    pub debug_regs: kvm_debugregs,
    pub lapic: kvm_lapic_state,
    pub msrs: Vec<MsrState>,
    pub events: kvm_vcpu_events,
}

impl fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuState").finish_non_exhaustive()
    }
}

impl VcpuState {
    /// Reads a vCPU that rests. `cpuid` is what it was given: some hosts' KVM tells something else. `msrs` are the
    /// registers that this host's KVM has.
    ///
    /// # Errors
    /// See [`VcpuStateError`].
    pub fn read(
        vcpu: &VcpuFd,
        cpuid: &[kvm_cpuid_entry2],
        msrs: &[u32],
    ) -> Result<Self, VcpuStateError> {
        // First, because KVM brings a vCPU that waits for its start-up interrupt, and its local APIC, up to date.
        let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        Ok(Self {
            mp_state,
            cpuid: cpuid.to_vec(),
            tsc_khz: vcpu.get_tsc_khz().ok(),
            regs: vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
            xsave: vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
            debug_regs: vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
            msrs: msr_state::read(vcpu, msrs)?,
            // Last: reading other state can make an event pending.
            events: vcpu
                .get_vcpu_events()
                .map_err(failed("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Puts the state into a new vCPU of a machine with interrupt controllers.
    ///
    /// # Errors
    /// See [`VcpuStateError`].
    pub fn write(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        // First: what the other registers may hold depends on the features.
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| VcpuStateError::Cpuid)?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        self.scale_tsc(vcpu)?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(failed("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(failed("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(failed("KVM_SET_SREGS"))?;
        // SAFETY: the structure is as long as KVM reads: this process has not enabled any of the features that
        // would make it longer.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
        // A host without XSAVE has none, and refuses an empty set.
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(failed("KVM_SET_XCRS"))?;
        }
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
        // After the special registers, which hold its base; before the model-specific ones, of which the
        // deadline of its timer is one.
        vcpu.set_lapic(&self.lapic)
            .map_err(failed("KVM_SET_LAPIC"))?;
        msr_state::write(vcpu, &self.msrs)?;
        // After the general registers, which clear pending exceptions.
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        // Tells the guest that it was stopped, so that its watchdogs do not count the time between. KVM
        // refuses it where the guest has no such clock.
        match vcpu.kvmclock_ctrl() {
            Err(error) if error.errno() != libc::EINVAL => Err(failed("KVM_KVMCLOCK_CTRL")(error)),
            _ => Ok(()),
        }
    }

    /// Makes the time-stamp counter run as fast as it did.
    fn scale_tsc(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let (Some(saved), Ok(own)) = (self.tsc_khz, vcpu.get_tsc_khz()) else {
            return Ok(());
        };
        let tolerated = u64::from(own) * u64::from(TSC_TOLERANCE_PPM) / 1_000_000;
        if u64::from(saved.abs_diff(own)) <= tolerated {
            return Ok(());
        }
        vcpu.set_tsc_khz(saved).map_err(failed("KVM_SET_TSC_KHZ"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A state of zeros.
    pub fn empty() -> VcpuState {
        VcpuState {
            cpuid: Vec::new(),
            tsc_khz: None,
            mp_state: kvm_mp_state::default(),
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            xsave: kvm_xsave::default(),
            xcrs: kvm_xcrs::default(),
            debug_regs: kvm_debugregs::default(),
            lapic: kvm_lapic_state::default(),
            msrs: Vec::new(),
            events: kvm_vcpu_events::default(),
        }
    }

    #[test]
    fn test_debug_shows_no_register() {
        let mut state = empty();
        state.regs.rax = 0x5ec2e7;
        assert_eq!(format!("{state:?}"), "VcpuState { .. }");
    }
}
