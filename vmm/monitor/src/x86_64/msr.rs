//! Model-specific registers that differ from their reset values when a guest starts.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MISC_ENABLE` (Intel SDM, volume 4, table 2-2): bit 0 says that string instructions are fast.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// `IA32_MTRR_DEF_TYPE` (Intel SDM, volume 3A, "MTRR Definition Type Register"): bit 11 switches the
/// registers on, type 6 is write-back: all of memory is cacheable where page tables say nothing else.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Failures of [`set_boot_msrs`].
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM refused the call.
    #[error("KVM_SET_MSRS failed")]
    Kvm(#[from] kvm_ioctls::Error),
    /// KVM refused one register.
    #[error("KVM refused to set model-specific register {0:#x}")]
    Refused(u32),
}

/// Sets the registers that firmware would have set.
///
/// # Errors
/// See [`MsrError`].
///
/// # Panics
/// Never: two registers are far from the limit of a list.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).expect("two registers fit a list");
    let done = vcpu.set_msrs(&msrs)?;
    match entries.get(done) {
        Some(refused) => Err(MsrError::Refused(refused.index)),
        None => Ok(()),
    }
}
