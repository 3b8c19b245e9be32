//! Model-specific registers in a snapshot: all that this host's KVM lists and a guest of ours can have.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// `IA32_TIME_STAMP_COUNTER`.
const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;

/// Registers that guests do not have, because CPUID hides their feature (`cpuid.rs`): first and last.
/// Numbers: Intel SDM, volume 4; AMD APM, volume 2, appendix A; Linux, `arch/x86/include/asm/hyperv-tlfs.h`.
const HIDDEN: &[(u32, u32)] = &[
    // Performance counters, their events and controls.
    (0xc1, 0xc8),
    (0x186, 0x18d),
    (0x309, 0x30c),
    (0x345, 0x345),
    (0x38d, 0x390),
    (0x3f1, 0x3f6),
    (0x4c1, 0x4c8),
    (0xc001_0000, 0xc001_0007),
    (0xc001_0200, 0xc001_020b),
    (0xc000_0300, 0xc000_0303),
    // Machine check control, which exists only where CPUID says so.
    (0x17b, 0x17b),
    // VMX.
    (0x480, 0x493),
    // Processor trace and last branch records.
    (0x560, 0x583),
    (0x14ce, 0x14cf),
    (0x1200, 0x121f),
    // Hyper-V's, which no leaf announces.
    (0x4000_0000, 0x4000_0fff),
];

/// One register.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrState {
    /// Its number.
    pub index: u32,
    /// What it holds.
    pub data: u64,
}

/// Why model-specific registers cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum MsrStateError {
    /// KVM refused the call.
    #[error("KVM refused a list of model-specific registers")]
    Kvm(#[from] kvm_ioctls::Error),
    /// A register of the saved machine that this host's KVM does not have.
    #[error(
        "this host's KVM cannot set model-specific register {0:#x} as it was: restore on a host with the same \
         kind of processor and kernel"
    )]
    Refused(u32),
}

/// Numbers of the registers to save on this host.
///
/// # Errors
/// When KVM does not tell.
pub fn list(kvm: &Kvm) -> Result<Vec<u32>, MsrStateError> {
    let hidden = |index: u32| {
        HIDDEN
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&index))
    };
    let list = kvm.get_msr_index_list()?;
    Ok(list
        .as_slice()
        .iter()
        .copied()
        .filter(|index| !hidden(*index))
        .collect())
}

/// Reads those of `indices` that this vCPU has.
///
/// # Errors
/// When KVM refuses.
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<MsrState>, MsrStateError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked: Vec<_> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&asked).expect("the list is within its limit");
        // KVM stops at the first one that it does not have; reading goes on behind it.
        let done = vcpu.get_msrs(&mut msrs)?;
        let entries = &msrs.as_slice()[..done];
        found.extend(entries.iter().map(|entry| MsrState {
            index: entry.index,
            data: entry.data,
        }));
        rest = &rest[(done + usize::from(done < asked.len())).min(rest.len())..];
    }
    arm_passed_deadline(&mut found);
    Ok(found)
}

/// A deadline that has passed reads as zero, which would disarm the timer; and the interrupt that it caused
/// may be on its way still. A deadline in the past raises it again; one interrupt too many does no harm.
fn arm_passed_deadline(msrs: &mut [MsrState]) {
    let now = msrs.iter().find(|msr| msr.index == TSC).map(|msr| msr.data);
    let deadline = msrs.iter_mut().find(|msr| msr.index == TSC_DEADLINE);
    if let (Some(now), Some(deadline)) = (now, deadline)
        && deadline.data == 0
    {
        deadline.data = now;
    }
}

/// Sets registers, the time-stamp counter first and the deadline that refers to it last.
///
/// # Errors
/// See [`MsrStateError`].
pub fn write(vcpu: &VcpuFd, saved: &[MsrState]) -> Result<(), MsrStateError> {
    let mut sorted = saved.to_vec();
    sorted.sort_by_key(|msr| match msr.index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    });
    let mut rest = sorted.as_slice();
    while !rest.is_empty() {
        let asked: Vec<_> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|msr| kvm_msr_entry {
                index: msr.index,
                data: msr.data,
                ..Default::default()
            })
            .collect();
        let msrs = Msrs::from_entries(&asked).expect("the list is within its limit");
        let done = vcpu.set_msrs(&msrs)?;
        rest = &rest[done..];
        if done < asked.len()
            && let Some((refused, behind)) = rest.split_first()
        {
            if !holds(vcpu, *refused) {
                return Err(MsrStateError::Refused(refused.index));
            }
            rest = behind;
        }
    }
    Ok(())
}

/// Whether the register holds that already: some can be read and not written.
fn holds(vcpu: &VcpuFd, msr: MsrState) -> bool {
    let asked = kvm_msr_entry {
        index: msr.index,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[asked]).expect("one register fits a list");
    matches!(vcpu.get_msrs(&mut msrs), Ok(1)) && msrs.as_slice()[0].data == msr.data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msr(index: u32, data: u64) -> MsrState {
        MsrState { index, data }
    }

    #[test]
    fn test_passed_deadline_is_armed_again_and_a_coming_one_is_left() {
        for (deadline, expected) in [(0, 77), (500, 500)] {
            let mut msrs = [msr(TSC_DEADLINE, deadline), msr(0x1a0, 0), msr(TSC, 77)];

            arm_passed_deadline(&mut msrs);

            assert_eq!(msrs[0].data, expected);
            assert_eq!((msrs[1].data, msrs[2].data), (0, 77));
        }
    }
}
