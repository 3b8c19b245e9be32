//! Values that any process can make again from a seed, one byte at a time.

/// Byte `at` of the value of `seed`. From 256 bytes on, every byte value occurs.
pub fn byte(seed: u64, at: usize) -> u8 {
    // An offset that changes every 256 bytes keeps pages different; SplitMix64's finalizer mixes it.
    let block = (at / 256) as u64;
    let mut mixed = (seed ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(1);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [offset, odd, ..] = (mixed ^ mixed >> 31).to_le_bytes();
    // An odd factor makes this a permutation of the 256 byte values in each block.
    let [low, ..] = at.to_le_bytes();
    low.wrapping_mul(odd | 1).wrapping_add(offset)
}

/// The first `len` bytes of the value of `seed`.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| byte(seed, at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_bytes_hold_every_byte_value_and_differ_by_seed() {
        let value = bytes(7, 256);
        assert!((0..=255).all(|byte| value.contains(&byte)));
        assert_ne!(value, bytes(8, 256));
        assert_ne!(bytes(7, 512)[256..], value);
    }
}
