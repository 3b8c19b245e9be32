//! The registers that can hold a guest's data, as one run of bytes in which a copy of a secret lies as it
//! would in memory.
//!
//! XSAVE splits vector registers: bytes 0-15 of register 0 to 15 are in one area, 16-31 in another, 32-63
//! in a third, and registers 16 to 31 in a fourth. Here each is whole, and consecutive registers follow one another:
//!
//! | offset | registers |
//! |---|---|
//! | 0 | `rax rbx rcx rdx rsi rdi rsp rbp r8`-`r15` |
//! | 128 | `cr2`, `dr0`-`dr3` |
//! | 168 | `st0`-`st7` (`mm0`-`mm7`), 16 bytes each |
//! | 296 | vector registers 0 to 31, 64 bytes each |
//!
//! Every 8 bytes may be a register's edge.

use kvm_bindings::kvm_cpuid_entry2;
use zeroize::Zeroizing;

use super::vcpu_state::VcpuState;

/// Bytes of the file.
pub const LEN: usize = VECTORS + 32 * VECTOR_LEN;

/// Distance between edges, in bytes.
pub const EDGE: usize = 8;

const STACK: usize = 168;
const VECTORS: usize = 296;
const VECTOR_LEN: usize = 64;

/// Offsets in the legacy area (Intel SDM, volume 1, "Legacy Region of an XSAVE Area").
const XSAVE_STACK: usize = 32;
const XSAVE_XMM: usize = 160;

/// State components (Intel SDM, volume 1, "XSAVE-Supported Features and State-Component Bitmaps").
const AVX: u32 = 2;
const ZMM_HIGH_256: u32 = 6;
const HIGH_16_ZMM: u32 = 7;

/// A run of bytes of the file and where it is in the XSAVE area.
struct Piece {
    file: usize,
    xsave: usize,
    len: usize,
}

/// The file of a vCPU.
#[must_use]
pub fn read(state: &VcpuState) -> Zeroizing<[u8; LEN]> {
    let mut file = Zeroizing::new([0; LEN]);
    for (index, word) in words(state).into_iter().enumerate() {
        file[8 * index..][..8].copy_from_slice(&word.to_le_bytes());
    }
    let xsave = xsave_bytes(state);
    for piece in pieces(&state.cpuid, xsave.len()) {
        let bytes = &xsave[piece.xsave..][..piece.len];
        file[piece.file..][..piece.len].copy_from_slice(bytes);
    }
    file
}

/// Puts a file back.
pub fn write(state: &mut VcpuState, file: &[u8; LEN]) {
    let word = |index: usize| {
        let bytes = file[8 * index..][..8].try_into();
        u64::from_le_bytes(bytes.expect("eight bytes"))
    };
    for (index, register) in words_mut(state).into_iter().enumerate() {
        *register = word(index);
    }
    let mut xsave = xsave_bytes(state);
    for piece in pieces(&state.cpuid, xsave.len()) {
        let bytes = &file[piece.file..][..piece.len];
        xsave[piece.xsave..][..piece.len].copy_from_slice(bytes);
    }
    for (word, bytes) in state.xsave.region.iter_mut().zip(xsave.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
}

fn xsave_bytes(state: &VcpuState) -> Zeroizing<Vec<u8>> {
    let words = state.xsave.region.iter();
    Zeroizing::new(words.flat_map(|word| word.to_le_bytes()).collect())
}

/// Everything up to [`STACK`], in order.
fn words_mut(state: &mut VcpuState) -> [&mut u64; STACK / 8] {
    let regs = &mut state.regs;
    let [db0, db1, db2, db3] = &mut state.debug_regs.db;
    [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rsp,
        &mut regs.rbp,
        &mut regs.r8,
        &mut regs.r9,
        &mut regs.r10,
        &mut regs.r11,
        &mut regs.r12,
        &mut regs.r13,
        &mut regs.r14,
        &mut regs.r15,
        &mut state.sregs.cr2,
        db0,
        db1,
        db2,
        db3,
    ]
}

fn words(state: &VcpuState) -> [u64; STACK / 8] {
    let (regs, db) = (&state.regs, &state.debug_regs.db);
    [
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rsp,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        state.sregs.cr2,
        db[0],
        db[1],
        db[2],
        db[3],
    ]
}

/// Where the pieces of the file are in an XSAVE area of `len` bytes in the standard format, whose
/// components' offsets CPUID tells. The state may be a file's: what does not fit is left out.
fn pieces(cpuid: &[kvm_cpuid_entry2], len: usize) -> Vec<Piece> {
    let offset = |component: u32| {
        cpuid
            .iter()
            .find(|entry| entry.function == 0xd && entry.index == component && entry.eax > 0)
            .and_then(|entry| usize::try_from(entry.ebx).ok())
    };
    let (avx, zmm_high, high_16) = (offset(AVX), offset(ZMM_HIGH_256), offset(HIGH_16_ZMM));
    let mut pieces = vec![Piece {
        file: STACK,
        xsave: XSAVE_STACK,
        len: 8 * 16,
    }];
    for register in 0..16 {
        let file = VECTORS + register * VECTOR_LEN;
        let parts = [
            (Some(XSAVE_XMM), 0, 16),
            (avx, 16, 16),
            (zmm_high, 32, 32),
            (high_16, 16 * VECTOR_LEN, VECTOR_LEN),
        ];
        for (area, within, len) in parts {
            if let Some(area) = area {
                pieces.push(Piece {
                    file: file + within,
                    xsave: area.saturating_add(register * len),
                    len,
                });
            }
        }
    }
    pieces.retain(|piece| piece.xsave.saturating_add(piece.len) <= len);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::vcpu_state::tests::empty;

    fn component(index: u32, size: u32, offset: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function: 0xd,
            index,
            eax: size,
            ebx: offset,
            ..Default::default()
        }
    }

    /// A state in which every byte of every register is another number (modulo a prime), with AVX-512.
    fn numbered() -> VcpuState {
        let mut state = empty();
        state.cpuid = vec![
            component(2, 256, 576),
            component(6, 512, 1152),
            component(7, 1024, 1664),
        ];
        for (index, word) in (0_u64..).zip(words_mut(&mut state)) {
            *word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        for (index, word) in (0_u32..).zip(state.xsave.region.iter_mut()) {
            *word = index.wrapping_mul(0x9e37_79b1);
        }
        state
    }

    #[test]
    fn test_vector_registers_are_whole_and_follow_one_another() {
        let mut state = empty();
        state.cpuid = vec![
            component(2, 256, 576),
            component(6, 512, 1152),
            component(7, 1024, 1664),
        ];
        // Where XSAVE puts the parts of registers 1 and 17.
        for (offset, mark) in [(160 + 16, 1), (576 + 16, 2), (1152 + 32, 3), (1664 + 64, 4)] {
            state.xsave.region[offset / 4] = mark;
        }

        let file = read(&state);

        let register = |number: usize| &file[VECTORS + number * VECTOR_LEN..][..VECTOR_LEN];
        assert_eq!(
            (register(1)[0], register(1)[16], register(1)[32]),
            (1, 2, 3)
        );
        assert_eq!(register(17)[0], 4);
        assert_eq!(file.iter().filter(|byte| **byte != 0).count(), 4);
    }

    #[test]
    fn test_write_what_was_read_changes_nothing() {
        let state = numbered();
        let file = read(&state);
        let mut copy = numbered();
        write(&mut copy, &[0; LEN]);

        write(&mut copy, &file);

        assert_eq!(copy.regs, state.regs);
        assert_eq!(copy.sregs.cr2, state.sregs.cr2);
        assert_eq!(copy.debug_regs.db, state.debug_regs.db);
        assert_eq!(copy.xsave.region, state.xsave.region);
    }

    #[test]
    fn test_write_zeroes_reach_every_register_and_no_control_word() {
        let mut state = numbered();
        state.regs.rip = 7;

        write(&mut state, &[0; LEN]);

        assert!(read(&state).iter().all(|byte| *byte == 0));
        assert_eq!(state.regs.rip, 7);
        // Control and status words, and the header of the area.
        assert_eq!(state.xsave.region[1], 0x9e37_79b1);
        assert_ne!(state.xsave.region[128], 0);
    }

    #[test]
    fn test_components_outside_the_area_are_left_out() {
        let mut state = numbered();
        state.cpuid = vec![component(2, 256, u32::MAX), component(7, 1024, 4090)];

        let file = read(&state);

        assert_eq!(file[VECTORS + 16..][..16], [0; 16]);
        write(&mut state, &file);
    }
}
