//! Local APIC inputs as firmware leaves them: LINT0 takes the legacy interrupt controller's interrupts,
//! LINT1 is the NMI (Intel MultiProcessor Specification 1.4, "Virtual Wire Mode").

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

/// Offsets of the registers in the APIC page (Intel SDM, volume 3A, "Local APIC Register Address Map").
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;

/// Delivery modes, bits 8 to 10 of a local vector table entry.
const MODE_MASK: u32 = 0x700;
const MODE_NMI: u32 = 0x400;
const MODE_EXTINT: u32 = 0x700;

/// Sets both inputs.
///
/// # Errors
/// When KVM refuses.
pub fn set_lint(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    set_delivery_mode(&mut lapic, LVT_LINT0, MODE_EXTINT);
    set_delivery_mode(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    for (at, byte) in (0..)
        .step_by(8)
        .zip(&mut lapic.regs[register..register + 4])
    {
        let [mask, mode, ..] = [MODE_MASK >> at, mode >> at].map(|word| word.to_le_bytes()[0]);
        // The page is declared as characters, which are signed here.
        *byte = (byte.cast_unsigned() & !mask | mode).cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_set_delivery_mode_leaves_other_bits() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT1..LVT_LINT1 + 4].copy_from_slice(&[0x11, 0x13, 0x01, 0x55]);

        set_delivery_mode(&mut lapic, LVT_LINT1, MODE_NMI);

        assert_eq!(
            lapic.regs[LVT_LINT1..LVT_LINT1 + 4],
            [0x11, 0x14, 0x01, 0x55]
        );
        assert_eq!(lapic.regs[LVT_LINT1 + 4], 0);
    }
}
