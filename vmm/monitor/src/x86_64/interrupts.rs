//! The local APIC's LINT0 input, which on a PC takes the interrupts of the legacy controllers.
//!
//! KVM's in-kernel controllers come with those, and every interrupt below 16 reaches both them and the I/O APIC.
//! Nobody initialises the legacy ones on a hardware-reduced machine, so what they deliver would look like
//! an exception to the guest.

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

/// Offset of the local vector table's entry for LINT0 in the APIC page (Intel SDM, volume 3A, "Local APIC
/// Register Address Map").
const LVT_LINT0: usize = 0x350;

/// The mask bit of an entry ("Local Vector Table"), in its third byte.
const MASKED_BYTE: usize = 2;
const MASKED: i8 = 1;

/// Masks LINT0. Needed for the first vCPU only: KVM unmasks it there as firmware would.
///
/// # Errors
/// When KVM refuses.
pub fn mask_lint0(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    set_masked(&mut lapic);
    vcpu.set_lapic(&lapic)
}

fn set_masked(lapic: &mut kvm_lapic_state) {
    lapic.regs[LVT_LINT0 + MASKED_BYTE] |= MASKED;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_set_masked_leaves_other_bits() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT0..LVT_LINT0 + 4].copy_from_slice(&[0x11, 0x07, 0x02, 0x55]);

        set_masked(&mut lapic);

        let entry = &lapic.regs[LVT_LINT0..LVT_LINT0 + 4];
        // Bit 16 of the register.
        assert_eq!(entry, [0x11, 0x07, 0x03, 0x55]);
        assert_eq!(lapic.regs[LVT_LINT0 + 4], 0);
    }
}
