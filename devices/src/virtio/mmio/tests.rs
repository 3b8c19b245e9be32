//! The registers, as a driver that follows the rules sees them and as one that does not.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::virtio::testing::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, LIVE, Memory, NEEDS_RESET, RAM, Rig, rings,
    writable,
};
use crate::virtio::{ActivateError, read_config_bytes};

/// A device of two queues that counts what happens to it and returns every chain.
#[derive(Debug)]
struct Probe {
    config: [u8; 12],
    refuse: bool,
    fail: bool,
    activated: Option<u64>,
    resets: u32,
    served: Vec<usize>,
    backend: OwnedFd,
}

impl Probe {
    const FEATURES: u64 = 1 << 3 | 1 << 40;

    fn new() -> Self {
        Self {
            config: *b"0123456789ab",
            refuse: false,
            fail: false,
            activated: None,
            resets: 0,
            served: Vec::new(),
            backend: eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"),
        }
    }
}

const FROM_BACKEND: usize = 99;
const NOTHING: [usize; 0] = [];

impl VirtioDevice<Memory> for Probe {
    type State = u32;

    const ID: u32 = 77;
    const QUEUE_SIZES: &'static [u16] = &[64, 16];

    fn features(&self) -> u64 {
        Self::FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.config[..4].copy_from_slice(&word);
        }
    }

    fn config_generation(&self) -> u32 {
        0x1234
    }

    fn activate(&mut self, features: u64, _mem: &Memory) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError("for the test".into()));
        }
        self.activated = Some(features);
        Ok(())
    }

    fn reset(&mut self, _mem: &Memory) {
        self.activated = None;
        self.resets += 1;
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut QueueIo<'_, Memory>,
    ) -> Result<(), DeviceError> {
        self.served.push(index);
        if self.fail {
            return Err(std::io::Error::other("for the test").into());
        }
        while let Some(chain) = io.pop(index)? {
            io.complete(index, chain.head, 1)?;
        }
        Ok(())
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.backend.as_fd())
    }

    fn process_backend(&mut self, _io: &mut QueueIo<'_, Memory>) -> Result<(), DeviceError> {
        rustix::io::read(&self.backend, &mut [0; 8]).expect("readable");
        self.served.push(FROM_BACKEND);
        Ok(())
    }

    fn save(&self) -> u32 {
        self.resets
    }

    fn restore(&mut self, state: u32, _mem: &Memory) -> Result<(), RestoreError> {
        self.resets = state;
        Ok(())
    }
}

fn served(rig: &Rig<Probe>) -> Vec<usize> {
    std::mem::take(&mut rig.transport().device.served)
}

fn rig() -> Rig<Probe> {
    let rig = Rig::started(Probe::new());
    served(&rig);
    rig
}

#[test]
fn test_identity_registers() {
    let rig = Rig::new(Probe::new());
    for (register, expected) in [
        (0x000, 0x7472_6976),
        (0x004, 2),
        (0x008, 77),
        (0x00c, u32::from_le_bytes(*b"cach")),
        (0x034, 64),
        (0x044, 0),
        (0x060, 0),
        (0x070, 0),
        (0x0b0, u32::MAX),
        (0x0b4, u32::MAX),
        (0x0b8, u32::MAX),
        (0x0bc, u32::MAX),
        (0x0fc, 0x1234),
        (0x0f0, 0),
        (0x030, 0),
    ] {
        assert_eq!(rig.get(register), expected, "{register:#x}");
    }
    rig.set(0x30, 1);
    assert_eq!(rig.get(0x34), 16);
    for absent in [2, u32::MAX] {
        rig.set(0x30, absent);
        assert_eq!((rig.get(0x34), rig.get(0x44)), (0, 0));
    }
}

#[test]
fn test_access_of_another_width_is_ignored() {
    let rig = Rig::new(Probe::new());
    let slot = MmioSlot::new(&rig.shared());
    for width in [0, 1, 2, 3, 5, 8] {
        let mut data = vec![0xff; width];
        slot.read(0, &mut data);
        assert_eq!(data, vec![0; width]);
        slot.write(0x70, &vec![1; width]);
        assert_eq!(rig.status(), 0);
    }
    let mut word = [0xff; 4];
    slot.read(1, &mut word);
    assert_eq!(word, [0; 4], "unaligned");
    slot.read(u64::MAX, &mut word);
    slot.write(u64::MAX, &word);
}

#[test]
fn test_config_space() {
    let rig = Rig::new(Probe::new());
    assert_eq!(rig.config::<8>(0), *b"01234567");
    assert_eq!(rig.config::<2>(3), *b"34");
    assert_eq!(rig.config::<8>(8), *b"89ab\0\0\0\0");
    assert_eq!(rig.config::<4>(12), [0; 4]);
    assert_eq!(rig.config::<4>(u64::MAX - 0x1000), [0; 4]);
    MmioSlot::new(&rig.shared()).write(0x100, b"wxyz");
    assert_eq!(rig.config::<5>(0), *b"wxyz4");
}

#[test]
fn test_features_are_offered_in_halves() {
    let rig = Rig::new(Probe::new());
    for (select, expected) in [(0, 1 << 3), (1, 1 << 8 | 1), (2, 0), (u32::MAX, 0)] {
        rig.set(0x14, select);
        assert_eq!(rig.get(0x10), expected);
    }
}

#[test]
fn test_features_accepted_reach_the_device() {
    let rig = rig();
    let version_1 = 1 << VIRTIO_F_VERSION_1;
    assert_eq!(
        rig.transport().device.activated,
        Some(Probe::FEATURES | version_1)
    );
}

#[test]
fn test_features_unacceptable_do_not_give_features_ok() {
    for (low, high) in [(1 << 3, 0), (1 << 4, 1), (0, 1 | 1 << 31), (0, 0)] {
        let rig = Rig::new(Probe::new());
        rig.set(0x70, ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, low), (1, high), (2, u32::MAX)] {
            rig.set(0x24, select);
            rig.set(0x20, half);
        }
        rig.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER, "{low:#x} {high:#x}");
        rig.set(0x70, LIVE);
        assert_eq!(rig.status() & DRIVER_OK, 0);
        assert_eq!(rig.transport().device.activated, None);
    }
}

#[test]
fn test_features_are_fixed_by_features_ok() {
    let mut rig = Rig::new(Probe::new());
    rig.set_up();
    rig.set(0x24, 0);
    rig.set(0x20, 0xffff_ffff);
    rig.set(0x70, LIVE);
    assert_eq!(rig.status(), LIVE);
    let version_1 = 1 << VIRTIO_F_VERSION_1;
    assert_eq!(
        rig.transport().device.activated,
        Some(Probe::FEATURES | version_1)
    );
}

#[test]
fn test_status_bits_are_only_added() {
    let rig = rig();
    for fewer in [LIVE & !DRIVER, LIVE & !ACKNOWLEDGE, DRIVER_OK, 0x80] {
        rig.set(0x70, fewer);
        assert_eq!(rig.status(), LIVE);
    }
    rig.set(0x70, LIVE | 0x80 | 0x30 | NEEDS_RESET | 0xff00);
    assert_eq!(
        rig.status(),
        LIVE | 0x80,
        "FAILED is the driver's, the others are not"
    );
    assert_eq!(rig.transport().device.resets, 1, "the one of the start");
}

#[test]
fn test_queue_registers_only_between_features_ok_and_driver_ok() {
    let mut rig = Rig::new(Probe::new());
    rig.set_up_queue(0, rings(0));
    assert_eq!(rig.get(0x44), 0, "before FEATURES_OK");
    rig.set_up();
    rig.set(0x30, 0);
    for size in [0, 3, 128, 0x1_0010, u32::MAX] {
        rig.set(0x38, size);
        assert_eq!(rig.transport().queues[0].size(), 64, "{size}");
    }
    rig.set(0x44, 2);
    assert_eq!(rig.get(0x44), 0);
    rig.start();
    let before = QueueStateDef::from(&rig.transport().queues[1]);
    rig.set(0x30, 1);
    for register in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        rig.set(register, 0);
    }
    assert_eq!(
        QueueStateDef::from(&rig.transport().queues[1]),
        before,
        "after DRIVER_OK"
    );
}

#[test]
fn test_reset_clears_everything() {
    let mut rig = rig();
    rig.send(0, &[writable(0x10_0000, 1)]);
    rig.kick(0);
    rig.set(0x14, 1);
    rig.set(0x30, 1);
    assert_eq!(rig.get(0x60), 1);

    rig.set(0x70, 0);

    assert_eq!(rig.transport().device.resets, 2);
    let fresh = Rig::new(Probe::new());
    let mut state = fresh.transport().save();
    state.device = 2;
    assert_eq!(rig.transport().save(), state);
}

#[test]
fn test_activation_refused_needs_reset() {
    let mut rig = Rig::new(Probe::new());
    rig.transport().device.refuse = true;
    rig.start();
    assert_eq!(rig.status(), LIVE | NEEDS_RESET);
    assert_eq!(rig.interrupts(), 2);
    rig.kick(0);
    assert_eq!(served(&rig), NOTHING);

    rig.transport().device.refuse = false;
    rig.start();
    assert_eq!(rig.status(), LIVE);
    rig.kick(0);
    assert_eq!(served(&rig).last(), Some(&0));
}

#[test]
fn test_activation_with_a_broken_queue_needs_reset() {
    let (table, avail, used) = rings(1);
    for place in [
        (RAM, avail, used),
        (table, RAM - 8, used),
        (table, avail, u64::MAX - 3),
    ] {
        let mut rig = Rig::new(Probe::new());
        rig.set_up();
        rig.set_up_queue(1, place);
        rig.set(0x70, LIVE);
        assert_eq!(rig.status(), LIVE | NEEDS_RESET, "{place:x?}");
        assert_eq!(rig.transport().device.activated, None);
    }
    let mut rig = Rig::new(Probe::new());
    rig.set_up();
    rig.set(0x70, LIVE);
    assert_eq!(rig.status(), LIVE, "a driver need not use a queue");
    rig.kick(1);
    assert_eq!(served(&rig), NOTHING);
}

#[test]
fn test_interrupt_status_and_acknowledge() {
    let mut rig = rig();
    let interrupt = Arc::clone(rig.transport().interrupt());
    assert!(interrupt.line().read().is_err());
    rig.send(1, &[writable(0x10_0000, 1)]);
    rig.kick(1);
    interrupt.config_change();
    assert_eq!(interrupt.line().read().expect("raised"), 2);
    assert_eq!(rig.get(0x60), 3);
    rig.set(0x64, 1);
    assert_eq!(rig.get(0x60), 2);
    rig.set(0x64, u32::MAX);
    assert_eq!(rig.get(0x60), 0);
    assert!(interrupt.line().read().is_err());
}

#[test]
fn test_notification_before_driver_ok_is_served_after_it() {
    let mut rig = Rig::new(Probe::new());
    rig.set_up();
    rig.set_up_queue(0, rings(0));
    rig.send(0, &[writable(0x10_0000, 1)]);
    rig.kick(0);
    assert_eq!(served(&rig), NOTHING);
    rig.set(0x70, LIVE);
    rig.run();
    assert_eq!(served(&rig), [0]);
    assert_eq!(rig.used(0).len(), 1);
}

#[test]
fn test_notification_of_no_queue_is_ignored() {
    let mut rig = rig();
    for index in [2, 31, 32, 1000] {
        rig.kick(index);
    }
    assert_eq!(served(&rig), NOTHING);
    rig.kick(1);
    assert_eq!(served(&rig), [1]);
}

#[test]
fn test_device_failure_needs_reset() {
    let mut rig = rig();
    rig.transport().device.fail = true;
    rig.kick(0);
    assert_eq!(rig.status(), LIVE | NEEDS_RESET);
    assert_eq!(rig.interrupts(), 2);
    rig.transport().device.fail = false;
    rig.kick(0);
    rig.kick(1);
    assert_eq!(served(&rig), [0], "nothing more is served");
    rig.start();
    rig.kick(1);
    assert_eq!(served(&rig).last(), Some(&1));
}

#[test]
fn test_backend_is_served_only_while_the_device_works() {
    let mut rig = Rig::new(Probe::new());
    let ring = |rig: &Rig<Probe>| {
        let one = 1_u64.to_ne_bytes();
        rustix::io::write(&rig.transport().device.backend, &one).expect("written");
    };
    ring(&rig);
    rig.run();
    assert_eq!(served(&rig), NOTHING, "before the driver starts");
    rig.start();
    assert_eq!(served(&rig), [FROM_BACKEND]);
    rig.transport().pause().expect("quiesced");
    rig.run();
    ring(&rig);
    rig.run();
    assert_eq!(served(&rig), NOTHING, "paused");
    rig.transport().resume();
    rig.run();
    assert!(served(&rig).contains(&FROM_BACKEND));
    rig.set(0x70, 0);
    rig.run();
    ring(&rig);
    rig.run();
    assert_eq!(served(&rig), NOTHING, "reset");
}

#[test]
fn test_pause_holds_notifications_until_resume() {
    let mut rig = rig();
    rig.transport().pause().expect("quiesced");
    rig.send(1, &[writable(0x10_0000, 1)]);
    rig.kick(1);
    assert_eq!(served(&rig), NOTHING);
    rig.transport().resume();
    rig.run();
    assert_eq!(served(&rig), [0, 1]);
    assert_eq!(rig.used(1).len(), 1);
}

#[test]
fn test_restore_round_trip_of_a_live_device() {
    let mut rig = rig();
    rig.send(1, &[writable(0x10_0000, 1)]);
    rig.kick(1);
    assert_eq!(rig.used(1).len(), 1);
    rig.set(0x14, 1);
    rig.set(0x24, 1);
    rig.set(0x30, 1);

    let mut restored = rig.restored(Probe::new());

    assert_eq!(restored.transport().save(), rig.transport().save());
    let line = Arc::clone(restored.transport().interrupt());
    assert!(line.line().read().is_err());
    restored.send(1, &[writable(0x10_0000, 1)]);
    restored.kick(1);
    assert_eq!(restored.used(1), [], "paused");
    restored.transport().resume();
    assert!(
        line.line().read().is_ok(),
        "the interrupt that was pending is raised again"
    );
    restored.run();
    assert_eq!(restored.used(1).len(), 1);
}

#[test]
fn test_restore_round_trip_at_every_step_of_the_start() {
    let mut rig = Rig::new(Probe::new());
    let check = |rig: &Rig<Probe>| {
        let restored = rig.restored(Probe::new());
        assert_eq!(restored.transport().save(), rig.transport().save());
        rig.transport().resume();
    };
    check(&rig);
    rig.set(0x70, ACKNOWLEDGE);
    // A driver may write features that are not offered; it only cannot go on with them.
    rig.set(0x20, u32::MAX);
    check(&rig);
    rig.set_up();
    check(&rig);
    rig.set_up_queue(1, rings(1));
    check(&rig);
    rig.set(0x70, LIVE | 0x80);
    check(&rig);
    rig.transport().device.fail = true;
    rig.kick(1);
    assert_ne!(rig.status() & NEEDS_RESET, 0);
    check(&rig);
}

#[test]
fn test_restore_impossible_state_is_refused() {
    let rig = rig();
    let good = rig.transport().save();
    type Change = fn(&mut TransportState<u32>);
    let cases: [(&str, Change); 13] = [
        ("status", |s| s.status |= 0x10),
        ("status", |s| s.status |= 0x100),
        ("status", |s| s.status &= !FEATURES_OK),
        ("status", |s| s.interrupt_status = 4),
        ("features", |s| s.driver_features |= 1),
        ("features", |s| s.driver_features = 0),
        ("number of queues", |s| s.queues.truncate(1)),
        ("number of queues", |s| s.queues.push(s.queues[0].clone())),
        ("another size", |s| s.queues[1].max_size = 64),
        ("queue 1", |s| s.queues[1].size = 32),
        ("queue 1", |s| s.queues[1].desc_table += 1),
        ("not lie in RAM", |s| s.queues[1].used_ring = RAM),
        ("not offered", |s| s.queues[0].event_idx_enabled = true),
    ];
    for (reason, change) in cases {
        let mut state = good.clone();
        change(&mut state);
        let new = Rig::with_memory(Probe::new(), rig.mem.clone());
        let error = new.transport().restore(state.clone()).expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}: {state:?}");
    }
    let new = Rig::with_memory(Probe::new(), rig.mem.clone());
    new.transport()
        .restore(good)
        .expect("unchanged it is valid");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn test_any_register_writes_keep_the_status_possible(
        writes in prop::collection::vec((0..0x50_u32, prop_oneof![0..0x100_u32, any::<u32>()]), 1..80)
    ) {
        let mut rig = Rig::new(Probe::new());
        for (register, value) in writes {
            rig.set(register * 4, value);
            rig.run();
            let state = rig.transport().save();
            prop_assert!(rig.transport().check_status(&state).is_ok(), "{:?}", state);
            let live = rig.status() & DRIVER_OK != 0 && rig.status() & NEEDS_RESET == 0;
            prop_assert_eq!(rig.transport().device.activated.is_some(), live);
        }
    }
}
