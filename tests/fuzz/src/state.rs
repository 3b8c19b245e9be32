//! A machine's state: what is read is the same when it is written and read again, and all that is derived
//! from it without KVM stays in bounds.

use cachot_vmm::state::MachineState;
use cachot_vmm::x86_64::vcpu_state::VcpuState;
use cachot_vmm::x86_64::{cpuid, register_file};

use crate::devices::{Step, console, device};
use crate::rig::ram;

/// More vCPUs or devices than these are not looked at: they are as good as the first ones.
const LOOKED_AT: usize = 8;

/// One state.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let Ok(mut state) = MachineState::from_bytes(input) else {
        return false;
    };
    let bytes = state.to_bytes().expect("plain data");
    let again = MachineState::from_bytes(&bytes).expect("it was just written");
    assert_eq!(again.to_bytes().expect("plain data"), bytes);

    for vcpu in state.vcpus.iter_mut().take(LOOKED_AT) {
        registers(vcpu);
        features(vcpu);
    }
    let put_back = state.to_bytes().expect("plain data");
    assert_eq!(put_back, bytes, "registers are put back as they were read");

    console(state.console);
    let steps = [0, 1, 2, 3].map(Step::Notify);
    let devices = state.devices.iter().take(LOOKED_AT);
    let restored = devices.map(|saved| device(saved, &ram(), &steps));
    restored.fold(false, |any, one| any | one)
}

/// Puts back what was read.
fn registers(vcpu: &mut VcpuState) {
    let file = register_file::read(vcpu);
    register_file::write(vcpu, &file);
}

/// What decides whether a host fits the guest.
fn features(vcpu: &VcpuState) {
    let (vendor, features) = (cpuid::vendor(&vcpu.cpuid), cpuid::features(&vcpu.cpuid));
    assert!(vendor.len() <= 3 * 12 && features.len() < 1000);
}
