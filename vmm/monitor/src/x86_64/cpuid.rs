//! The CPU that a guest sees: what KVM supports, less what a snapshot cannot carry, with a topology of
//! one socket and one thread a core.
//!
//! Leaves are described in the Intel SDM, volume 2A, "CPUID", and in the AMD APM, volume 3, appendix E.

use std::collections::BTreeSet;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

/// Bits that are cleared, by leaf and subleaf: what would make an image depend on its host, or open the
/// host to its guest.
const MASKED: &[Mask] = &[
    // Monitor/MWAIT (3), DS-CPL (4), VMX (5), PDCM (15).
    Mask {
        leaf: 1,
        subleaf: 0,
        ecx: bits(&[3, 4, 5, 15]),
        edx: bits(&[21]),
        ..Mask::NONE
    },
    // EBX: SGX (2), HLE (4), RTM (11), PT (25). ECX: LA57 (16), SGX_LC (30).
    // EDX: TSX_FORCE_ABORT (13), PCONFIG (18), ARCH_LBR (19), AMX-BF16 (22), -TILE (24), -INT8 (25).
    Mask {
        leaf: 7,
        subleaf: 0,
        ebx: bits(&[2, 4, 11, 25]),
        ecx: bits(&[16, 30]),
        edx: bits(&[11, 13, 18, 19, 22, 24, 25]),
        ..Mask::NONE
    },
    // EAX: ArchPerfmonExt (8), AMX-FP16 (21). EDX: AMX-COMPLEX (8).
    Mask {
        leaf: 7,
        subleaf: 1,
        eax: bits(&[8, 21]),
        edx: bits(&[8]),
        ..Mask::NONE
    },
    // Extended state components of AMX: TILECFG (17), TILEDATA (18).
    Mask {
        leaf: 0xd,
        subleaf: 0,
        eax: bits(&[17, 18]),
        ..Mask::NONE
    },
    // SVM (2), IBS (10), LWP (15), PERFCTR_CORE (23), PERFCTR_NB (24), PERFCTR_LLC (28), MWAITX (29).
    Mask {
        leaf: 0x8000_0001,
        subleaf: 0,
        ecx: bits(&[2, 10, 15, 23, 24, 28, 29]),
        ..Mask::NONE
    },
];

/// Leaves that are taken out: performance monitoring (0xa), SGX (0x12), processor trace (0x14), AMX tiles
/// (0x1d, 0x1e), AVX10-style and V2 topology that is built for other hosts (0x1f, 0x8000_0026), SVM
/// (0x8000_000a), instruction-based sampling (0x8000_001b), memory encryption (0x8000_001f), extended
/// performance monitoring (0x8000_0022).
const REMOVED: &[u32] = &[
    0xa,
    0x12,
    0x14,
    0x1d,
    0x1e,
    0x1f,
    0x8000_000a,
    0x8000_001b,
    0x8000_001f,
    0x8000_0022,
    0x8000_0026,
];

/// Leaf 1, ECX: the local APIC's timer has a TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor, whose leaves begin at 0x4000_0000.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: EBX holds a number of logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the number of cores of the package is in leaf 0x8000_0008 (CmpLegacy).
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x8000_0001, ECX: leaves 0x8000_001d and 0x8000_001e are valid.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

struct Mask {
    leaf: u32,
    subleaf: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

impl Mask {
    const NONE: Self = Self {
        leaf: 0,
        subleaf: 0,
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
}

const fn bits(positions: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < positions.len() {
        mask |= 1 << positions[i];
        i += 1;
    }
    mask
}

/// What all vCPUs of a machine on this host have in common.
///
/// # Errors
/// When KVM does not tell what it supports.
pub fn baseline(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    mask(&mut cpuid);
    // KVM leaves this bit to whoever makes the local APICs: it is right for those in the kernel.
    if kvm.check_extension(Cap::TscDeadlineTimer)
        && let Some(leaf) = find(&mut cpuid, 1, 0)
    {
        leaf.ecx |= TSC_DEADLINE;
    }
    Ok(cpuid)
}

/// Leaves whose bits are features, with the registers that hold them: EAX, EBX, ECX, EDX.
const FEATURES: &[(u32, u32, [bool; 4])] = &[
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, true, true, true]),
    (7, 2, [false, false, false, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
    (0x8000_0008, 0, [false, true, false, false]),
    (0x8000_0021, 0, [true, false, false, false]),
    // KVM's own.
    (0x4000_0001, 0, [true, false, false, true]),
];

/// The vendor's name.
#[must_use]
pub fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let bytes: Vec<u8> = entries
        .iter()
        .find(|entry| entry.function == 0)
        .into_iter()
        .flat_map(|entry| [entry.ebx, entry.edx, entry.ecx])
        .flat_map(u32::to_le_bytes)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The feature bits that a host needs, each as text: `LEAF.SUBLEAF.REGISTER.BIT`, the leaf in hexadecimal.
#[must_use]
pub fn features(entries: &[kvm_cpuid_entry2]) -> BTreeSet<String> {
    let words = FEATURES.iter().flat_map(|&(leaf, subleaf, registers)| {
        let of_leaf = |e: &&kvm_cpuid_entry2| e.function == leaf && e.index == subleaf;
        let entry = entries.iter().find(of_leaf);
        let words = entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx]);
        ["eax", "ebx", "ecx", "edx"]
            .into_iter()
            .zip(words)
            .zip(registers)
            .enumerate()
            .filter(|(_, (_, is_feature))| *is_feature)
            .flat_map(move |(number, ((register, word), _))| {
                let word = word & !set_by_us(leaf, number);
                let set = (0..u32::BITS).filter(move |bit| word >> bit & 1 != 0);
                set.map(move |bit| format!("{leaf:x}.{subleaf}.{register}.{bit}"))
            })
    });
    words.collect()
}

/// Bits that [`for_vcpu`] sets and KVM reports where the guest switched something on.
fn set_by_us(leaf: u32, register: usize) -> u32 {
    // Leaf 1, ECX: OSXSAVE.
    const OSXSAVE: u32 = 1 << 27;
    // Leaf 7, ECX: OSPKE.
    const OSPKE: u32 = 1 << 4;
    match (leaf, register) {
        (1, 2) => HYPERVISOR | OSXSAVE,
        (1, 3) => HTT,
        (7, 2) => OSPKE,
        (0x8000_0001, 2) => CMP_LEGACY,
        _ => 0,
    }
}

fn mask(cpuid: &mut CpuId) {
    cpuid.retain(|entry| {
        let tile_state = entry.function == 0xd && matches!(entry.index, 17 | 18);
        !REMOVED.contains(&entry.function) && !tile_state
    });
    for mask in MASKED {
        if let Some(entry) = find(cpuid, mask.leaf, mask.subleaf) {
            entry.eax &= !mask.eax;
            entry.ebx &= !mask.ebx;
            entry.ecx &= !mask.ecx;
            entry.edx &= !mask.edx;
        }
    }
    // Size of the save area for all components: that of the ones that are left. A component's leaf has
    // its size in EAX and its offset in EBX; the first 576 bytes are the legacy area and the header.
    let user_components = find(cpuid, 0xd, 0).map_or(0, |entry| entry.eax);
    let size = cpuid
        .as_slice()
        .iter()
        .filter(|entry| {
            entry.function == 0xd
                && (2..32).contains(&entry.index)
                && user_components & 1 << entry.index != 0
        })
        .map(|entry| entry.eax.saturating_add(entry.ebx))
        .fold(576, u32::max);
    if let Some(entry) = find(cpuid, 0xd, 0) {
        entry.ecx = size;
    }
}

fn find(cpuid: &mut CpuId, leaf: u32, subleaf: u32) -> Option<&mut kvm_cpuid_entry2> {
    cpuid
        .as_mut_slice()
        .iter_mut()
        .find(|entry| entry.function == leaf && entry.index == subleaf)
}

/// The CPUID of vCPU `index` of `count`.
///
/// # Errors
/// When there is no room for the leaves that are added; KVM reports far fewer than there is room for.
pub fn for_vcpu(baseline: &CpuId, index: u8, count: u8) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut cpuid = baseline.clone();
    let apic_id = u32::from(index);
    let last = u32::from(count) - 1;
    // Bits of the APIC id that number the cores.
    let core_bits = 32 - last.leading_zeros();
    let has_extended_topology = cpuid
        .as_slice()
        .iter()
        .any(|e| e.function == 0 && e.eax >= 0xb);

    cpuid.retain(|entry| entry.function != 0xb);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                // EBX: APIC id, number of logical processors, cache line of 8 × 8 bytes for CLFLUSH.
                entry.ebx = apic_id << 24 | u32::from(count) << 16 | 8 << 8;
                entry.ecx |= HYPERVISOR;
                set(&mut entry.edx, HTT, count > 1);
            }
            4 => intel_cache(entry, last),
            // ApicIdSize (15:12), number of cores less one (7:0).
            0x8000_0008 => entry.ecx = core_bits << 12 | last,
            0x8000_0001 => {
                let legacy = entry.ecx & TOPOLOGY_EXTENSIONS != 0 && count > 1;
                set(&mut entry.ecx, CMP_LEGACY, legacy);
            }
            0x8000_001d => amd_cache(entry, last),
            0x8000_001e => {
                // Extended APIC id; one thread a core, core number; one node.
                entry.eax = apic_id;
                entry.ebx = apic_id & 0xff;
                entry.ecx = 0;
                entry.edx = 0;
            }
            _ => {}
        }
    }
    if has_extended_topology {
        // Level types: 1 is threads, 2 is cores; a subleaf of type 0 ends the list.
        for (subleaf, shift, processors, kind) in [
            (0, 0, 1, 1),
            (1, core_bits, u32::from(count), 2),
            (2, 0, 0, 0),
        ] {
            cpuid.push(kvm_cpuid_entry2 {
                function: 0xb,
                index: subleaf,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: processors,
                ecx: kind << 8 | subleaf,
                edx: apic_id,
                ..Default::default()
            })?;
        }
    }
    Ok(cpuid)
}

fn set(register: &mut u32, bit: u32, value: bool) {
    if value {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

/// Leaf 4. EAX: cache type (4:0, 0 ends the list), level (7:5), sharing threads less one (25:14), cores of
/// the package less one (31:26).
fn intel_cache(entry: &mut kvm_cpuid_entry2, last: u32) {
    let kind = entry.eax & 0x1f;
    if kind == 0 {
        return;
    }
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { last } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing << 14 | last.min(0x3f) << 26;
}

/// Leaf 0x8000_001d: as leaf 4, without the cores of the package.
fn amd_cache(entry: &mut kvm_cpuid_entry2, last: u32) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { last } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing << 14;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn get(cpuid: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
        cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    }

    const ALL: [u32; 4] = [u32::MAX; 4];

    #[test]
    fn test_mask_clears_what_a_snapshot_cannot_carry_and_nothing_else() {
        let leaves = [
            leaf(1, 0, ALL),
            leaf(7, 0, ALL),
            leaf(0xa, 0, ALL),
            leaf(0x12, 0, ALL),
            leaf(0x1d, 0, ALL),
            leaf(0x8000_0001, 0, ALL),
            leaf(0x8000_000a, 0, ALL),
        ];
        let mut cpuid = CpuId::from_entries(&leaves).expect("few leaves");

        mask(&mut cpuid);

        let gone = |word: u32| !word;
        assert_eq!(
            get(&cpuid, 1, 0),
            Some([
                u32::MAX,
                u32::MAX,
                gone(1 << 3 | 1 << 4 | 1 << 5 | 1 << 15),
                gone(1 << 21)
            ])
        );
        let [_, ebx, ecx, edx] = get(&cpuid, 7, 0).expect("leaf 7 stays");
        assert_eq!(gone(ebx), 1 << 2 | 1 << 4 | 1 << 11 | 1 << 25);
        assert_eq!(gone(ecx), 1 << 16 | 1 << 30);
        assert_eq!(
            gone(edx),
            1 << 11 | 1 << 13 | 1 << 18 | 1 << 19 | 1 << 22 | 1 << 24 | 1 << 25
        );
        assert_eq!(
            get(&cpuid, 0x8000_0001, 0).map(|leaf| leaf[2] & 1 << 2),
            Some(0)
        );
        for removed in [0xa, 0x12, 0x1d, 0x8000_000a] {
            assert_eq!(get(&cpuid, removed, 0), None);
        }
    }

    #[test]
    fn test_mask_save_area_shrinks_to_the_components_left() {
        let leaves = [
            // x87, SSE, AVX, and the two of AMX.
            leaf(0xd, 0, [0b111 | 1 << 17 | 1 << 18, 832, 11008, 0]),
            leaf(0xd, 2, [256, 576, 0, 0]),
            leaf(0xd, 17, [64, 2752, 0, 0]),
            leaf(0xd, 18, [8192, 2816, 0, 0]),
        ];
        let mut cpuid = CpuId::from_entries(&leaves).expect("few leaves");

        mask(&mut cpuid);

        assert_eq!(get(&cpuid, 0xd, 0), Some([0b111, 832, 832, 0]));
        assert_eq!(get(&cpuid, 0xd, 2), Some([256, 576, 0, 0]));
        assert_eq!(get(&cpuid, 0xd, 17), None);
        assert_eq!(get(&cpuid, 0xd, 18), None);
    }

    #[test]
    fn test_features_are_those_that_a_host_needs() {
        let saved = [
            leaf(0, 0, [0x10, 1, 2, 3]),
            // What the topology and a running guest change is no host's.
            leaf(1, 0, [9, 9, 0b0101 | HYPERVISOR | 1 << 27, HTT]),
            leaf(7, 0, [2, 0b11, 0, 0]),
        ];

        let features = features(&saved);

        let expected = ["1.0.ecx.0", "1.0.ecx.2", "7.0.ebx.0", "7.0.ebx.1"];
        assert!(features.iter().eq(expected), "{features:?}");
    }

    #[test]
    fn test_for_vcpu_topology_of_four() {
        let leaves = [
            leaf(0, 0, [0x10, 0, 0, 0]),
            leaf(1, 0, [0; 4]),
            leaf(4, 0, [1 | 1 << 5, 0, 0, 0]),
            leaf(4, 3, [3 | 3 << 5, 0, 0, 0]),
            leaf(0xb, 0, ALL),
            leaf(0x8000_0001, 0, [0, 0, TOPOLOGY_EXTENSIONS, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x7007, 0]),
            leaf(0x8000_001d, 3, [3 | 3 << 5 | 7 << 14, 0, 0, 0]),
            leaf(0x8000_001e, 0, ALL),
        ];
        let baseline = CpuId::from_entries(&leaves).expect("few leaves");

        let cpuid = for_vcpu(&baseline, 3, 4).expect("there is room");

        assert_eq!(
            get(&cpuid, 1, 0),
            Some([0, 3 << 24 | 4 << 16 | 8 << 8, HYPERVISOR, HTT])
        );
        assert_eq!(get(&cpuid, 4, 0), Some([1 | 1 << 5 | 3 << 26, 0, 0, 0]));
        assert_eq!(
            get(&cpuid, 4, 3),
            Some([3 | 3 << 5 | 3 << 14 | 3 << 26, 0, 0, 0])
        );
        assert_eq!(get(&cpuid, 0xb, 0), Some([0, 1, 1 << 8, 3]));
        assert_eq!(get(&cpuid, 0xb, 1), Some([2, 4, 2 << 8 | 1, 3]));
        assert_eq!(get(&cpuid, 0xb, 2), Some([0, 0, 2, 3]));
        assert_eq!(
            get(&cpuid, 0x8000_0001, 0).map(|leaf| leaf[2] & CMP_LEGACY),
            Some(CMP_LEGACY)
        );
        assert_eq!(
            get(&cpuid, 0x8000_0008, 0),
            Some([0x3030, 0, 2 << 12 | 3, 0])
        );
        assert_eq!(
            get(&cpuid, 0x8000_001d, 3),
            Some([3 | 3 << 5 | 3 << 14, 0, 0, 0])
        );
        assert_eq!(get(&cpuid, 0x8000_001e, 0), Some([3, 3, 0, 0]));
    }

    #[test]
    fn test_for_vcpu_single_has_no_core_bits() {
        let leaves = [leaf(0, 0, [0xd, 0, 0, 0]), leaf(1, 0, [0, 0, 0, HTT])];
        let baseline = CpuId::from_entries(&leaves).expect("few leaves");

        let cpuid = for_vcpu(&baseline, 0, 1).expect("there is room");

        assert_eq!(
            get(&cpuid, 1, 0),
            Some([0, 1 << 16 | 8 << 8, HYPERVISOR, 0])
        );
        assert_eq!(get(&cpuid, 0xb, 1), Some([0, 1, 2 << 8 | 1, 0]));
    }
}
