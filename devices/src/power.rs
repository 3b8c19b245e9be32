//! Power-off and reset: the sleep and reset registers of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7
//! "Sleep Control and Status Registers", 4.8.3.6 "Reset Register"). All are one byte wide, in I/O space.

/// Port of the sleep control register (FADT `SLEEP_CONTROL_REG`).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;

/// Port of the sleep status register (FADT `SLEEP_STATUS_REG`). It reads as 0: nothing wakes this
/// machine, so `WAK_STS` is never set.
pub const SLEEP_STATUS_PORT: u16 = 0x601;

/// Port of the reset register (FADT `RESET_REG`).
pub const RESET_PORT: u16 = 0x604;

/// What to write to the reset register (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 1;

/// `SLP_TYP` of the state that is off, for the `\_S5` package.
pub const SLEEP_TYPE_OFF: u8 = 5;

const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111 << SLP_TYP_SHIFT;
const SLP_EN: u8 = 1 << 5;

/// What the guest asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Switch off.
    Off,
    /// Begin anew.
    Reset,
}

/// What a write of `value` to `port` asks for; `None` where it means nothing here.
#[must_use]
pub fn write(port: u16, value: u8) -> Option<PowerRequest> {
    const OFF: u8 = SLP_EN | SLEEP_TYPE_OFF << SLP_TYP_SHIFT;
    match port {
        SLEEP_CONTROL_PORT if value & (SLP_EN | SLP_TYP_MASK) == OFF => Some(PowerRequest::Off),
        RESET_PORT if value == RESET_VALUE => Some(PowerRequest::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_write_only_the_documented_values_mean_something() {
        for port in 0..=u16::MAX {
            for value in [0, 1, 0x14, 0x20, 0x34, 0x3c, 0xff] {
                let expected = match (port, value) {
                    (0x600, 0x34) => Some(PowerRequest::Off),
                    (0x604, 1) => Some(PowerRequest::Reset),
                    _ => None,
                };
                assert_eq!(write(port, value), expected, "{port:#x} {value:#x}");
            }
        }
    }

    #[test]
    fn test_write_sleep_reserved_bits_are_ignored() {
        assert_eq!(write(SLEEP_CONTROL_PORT, 0xf7), Some(PowerRequest::Off));
        assert_eq!(write(SLEEP_CONTROL_PORT, 0x14), None, "SLP_EN is not set");
    }
}
