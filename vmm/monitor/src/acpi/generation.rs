//! The VM generation identifier: 16 random bytes in guest memory, new for every machine and every copy of one.

use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::AcpiError;
use crate::layout;

/// Gives a machine a new identifier. One that was told of an older one must be told that it has changed,
/// by [`layout::GENERATION_GSI`].
///
/// # Errors
/// See [`AcpiError`].
pub fn renew<M: GuestMemory>(mem: &M) -> Result<(), AcpiError> {
    let mut id = [0_u8; 16];
    // So few bytes come at once, or not at all.
    getrandom(&mut id, GetRandomFlags::empty()).map_err(|errno| AcpiError::Random(errno.into()))?;
    Ok(mem.write_slice(&id, GuestAddress(layout::GENERATION_ID))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_devices::memory::{GuestRam, Swap};

    #[test]
    fn test_renew_is_another_one_each_time_and_touches_nothing_else() {
        let mem = GuestRam::new(16 << 20, Swap::Ignored).expect("memory");
        let read = || {
            let id: u128 = mem
                .read_obj(GuestAddress(layout::GENERATION_ID))
                .expect("in RAM");
            id
        };
        assert_eq!(read(), 0);

        renew(&mem).expect("in RAM");
        let first = read();
        renew(&mem).expect("in RAM");

        assert!(first != 0 && read() != 0 && read() != first);
        for neighbour in [-8, 16] {
            let address = GuestAddress(layout::GENERATION_ID.saturating_add_signed(neighbour));
            let word: u64 = mem.read_obj(address).expect("in RAM");
            assert_eq!(word, 0);
        }
    }
}
