//! Random rings and requests: whatever the driver does, the device writes only where it may.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use vm_memory::GuestAddress;

use crate::virtio::testing::{LIVE, Memory, NEXT, REQUEST, RESPONSE, WRITE, rings};

/// Bytes of RAM in these tests.
const RAM: u64 = PAGES + 32 * PAGE;

/// An address near something that matters.
fn address() -> impl Strategy<Value = u64> {
    let bases = [
        0,
        rings(0).0,
        rings(0).1,
        rings(0).2,
        rings(1).2,
        REQUEST,
        RESPONSE,
        PAGES,
        RAM,
    ];
    prop_oneof![
        8 => (prop::sample::select(bases.to_vec()), 0..20_000_u64).prop_map(|(b, o)| b + o),
        4 => (0..32_u64).prop_map(|page| PAGES + page * PAGE),
        1 => any::<u64>(),
        1 => (0..5000_u64).prop_map(|before| u64::MAX - before),
        1 => (0..5000_u64).prop_map(|before| RAM - before),
    ]
}

type Descriptor = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let len = prop_oneof![6 => 0..300_u32, 2 => 0..20_000_u32, 1 => any::<u32>()];
    let flags = prop_oneof![
        Just(0),
        Just(NEXT),
        Just(WRITE),
        Just(NEXT | WRITE),
        any::<u16>()
    ];
    let next = prop_oneof![9 => 0..8_u16, 1 => any::<u16>()];
    (address(), len, flags, next)
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["A", "B", "C", "D"]);
    let range = prop_oneof![
        4 => (0..32_u64, 1..4_u64).prop_map(|(page, count)| (PAGES + page * PAGE, count * PAGE)),
        1 => (address(), any::<u64>()),
        1 => address().prop_map(|address| (address & !0xfff, PAGE)),
    ];
    let whole = prop_oneof![
        4 => (name.clone(), vec(range, 1..5)).prop_map(|(name, ranges)| attach(name, &ranges)),
        1 => (0..8_u32).prop_map(detach),
        2 => name.prop_map(get),
        1 => (0..4_u32).prop_map(list),
        1 => (0..3_u64).prop_map(ack),
    ];
    let mutated = (
        whole.clone(),
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        0..40_usize,
    );
    prop_oneof![
        4 => whole,
        4 => mutated.prop_map(|(mut bytes, changes, more)| {
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.resize((bytes.len() + more).saturating_sub(20), 0x41);
            bytes
        }),
        1 => vec(any::<u8>(), 0..400),
    ]
}

/// A request, and the chain that may or may not lead to it.
#[derive(Debug, Clone)]
struct Round {
    request: Vec<u8>,
    /// How the request is cut into descriptors, and the room for the response; or any descriptors.
    chain: Result<(u32, u32), Vec<Descriptor>>,
    head: u16,
}

fn round() -> impl Strategy<Value = Round> {
    let chain = prop_oneof![
        3 => (0..200_u32, 0..20_000_u32).prop_map(Ok),
        2 => vec(descriptor(), 1..8).prop_map(Err),
    ];
    let head = prop_oneof![30 => Just(0), 1 => 0..64_u16, 1 => any::<u16>()];
    (request(), chain, head).prop_map(|(request, chain, head)| Round {
        request,
        chain,
        head,
    })
}

fn descriptors(round: &Round) -> Vec<Descriptor> {
    let len = u32::try_from(round.request.len()).expect("short");
    match &round.chain {
        Ok((cut, room)) => {
            let cut = *cut.min(&len);
            let mut parts = vec![
                (REQUEST, cut, NEXT, 0),
                (REQUEST + u64::from(cut), len - cut, NEXT, 0),
                (RESPONSE, *room, WRITE, 0),
            ];
            parts.retain(|part| part.1 > 0);
            let last = parts.len().saturating_sub(1);
            for (index, part) in parts.iter_mut().enumerate() {
                part.3 = u16::try_from(index + 1).expect("few");
                if index == last {
                    part.2 &= !NEXT;
                }
            }
            parts
        }
        Err(any) => any.clone(),
    }
}

/// Whether the device may write to its own descriptors or its available ring in this round: then it may
/// go on to chains that nobody made.
fn breaks_rings(descriptors: &[Descriptor]) -> bool {
    let (start, end) = (rings(0).0, rings(0).2);
    descriptors.iter().any(|(address, len, flags, _)| {
        flags & WRITE != 0 && *address < end && address.saturating_add((*len).into()) > start
    })
}

/// Bytes that the device may write in this round: used rings, what a descriptor offers, attached pages.
struct Allowed(Vec<(u64, u64)>);

impl Allowed {
    fn new(descriptors: &[Descriptor]) -> Self {
        let offered = descriptors
            .iter()
            .filter(|descriptor| descriptor.2 & WRITE != 0);
        let offered =
            offered.map(|(address, len, ..)| (*address, address.saturating_add((*len).into())));
        let used = [0, 1].map(|queue| (rings(queue).2, rings(queue).2 + 0x1000));
        Self(offered.chain(used).collect())
    }

    fn attached(&mut self, rig: &Rig<SecretsDevice>) {
        for handle in rig.transport().save().device.handles {
            self.0.extend(
                handle
                    .ranges
                    .iter()
                    .map(|(start, len)| (*start, start + len)),
            );
        }
    }

    /// Makes all of it equal in both memories.
    fn mask(&self, before: &mut [u8], after: &mut [u8]) {
        for (start, end) in &self.0 {
            let clamp = |at: u64| usize::try_from(at.min(RAM)).expect("64-bit host");
            let (start, end) = (clamp(*start), clamp(*end));
            before[start..end].fill(0);
            after[start..end].fill(0);
        }
    }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn test_device_writes_only_where_it_may(rounds in vec(round(), 1..12)) {
        let all = usize::try_from(RAM).expect("64-bit host");
        let mem = Memory::from_ranges(&[(GuestAddress(0), all)]).expect("mapped");
        let mut rig = Rig::with_memory(device(), mem);
        rig.start();
        for round in rounds {
            let chain = descriptors(&round);
            rig.write(rings(0).0, &[0; 0x400]);
            for (descriptor, index) in chain.iter().zip(0..) {
                rig.describe(0, index, *descriptor);
            }
            rig.write(REQUEST, &round.request);
            rig.offer(0, round.head);
            let mut before = rig.read(0, all);
            let mut allowed = Allowed::new(&chain);
            allowed.attached(&rig);

            rig.kick(0);

            allowed.attached(&rig);
            if breaks_rings(&chain) {
                rig.start();
                continue;
            }
            let mut after = rig.read(0, all);
            allowed.mask(&mut before, &mut after);
            let pages = before.chunks(4096).zip(after.chunks(4096));
            let changed: Vec<usize> =
                pages.enumerate().filter(|(_, (old, new))| old != new).map(|(page, _)| page).collect();
            prop_assert!(changed.is_empty(), "pages {:x?} changed", changed);
            if rig.status() != LIVE {
                rig.start();
            }
        }
        let mut attached = Allowed(Vec::new());
        attached.attached(&rig);
        rig.set(0x70, 0);
        for (start, end) in attached.0 {
            prop_assert!(rig.is_zero(start, end - start), "the reset wipes");
        }
    }
}
