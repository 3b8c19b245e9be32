//! Saved states: the round trip, and states that no device has had.

use super::*;
use crate::virtio::mmio::TransportState;
use crate::virtio::secrets::{
    AttachmentState, Content, EventKind, EventState, MAX_HANDLES, Rehydrated, SecretsState,
};
use crate::virtio::testing::{LIVE, Memory, RAM, rings};

type State = TransportState<SecretsState>;

/// A device with handles, an acknowledged epoch and waiting events.
fn busy() -> Rig<SecretsDevice> {
    let mut rig = rig();
    rig.attached("A", &[(PAGES, PAGE)]);
    let gone = rig.attached("C", &[(PAGES + PAGE, PAGE)]);
    rig.attached(
        "B",
        &[(PAGES + 4 * PAGE, PAGE), (PAGES + 2 * PAGE, 2 * PAGE)],
    );
    assert_eq!(rig.ask_status(&detach(gone)), OK);
    let value = sealed(&pattern(44, 7));
    rig.transport().with_device(|device, mem| {
        device.rotate(&name("A"), value).expect("declared");
        device.revoke(&name("C"), mem).expect("declared");
    });
    rig.run();
    assert_eq!(rig.ask_status(&ack(2)), OK);
    rig
}

fn saved(rig: &Rig<SecretsDevice>) -> State {
    rig.transport().pause().expect("quiesced");
    rig.transport().save()
}

#[test]
fn test_save_holds_everything_but_values() {
    let rig = busy();
    let state = saved(&rig);
    let event = |kind, text: &str, epoch| EventState {
        kind,
        name: Some(text.into()),
        epoch,
    };
    let handle = |handle, name: &str, content, ranges| AttachmentState {
        handle,
        name: name.into(),
        content,
        ranges,
    };
    assert_eq!(
        state.device,
        SecretsState {
            epoch: 3,
            acknowledged: 2,
            handles: vec![
                handle(1, "A", Content::Superseded(1), vec![(PAGES, PAGE)]),
                handle(
                    3,
                    "B",
                    Content::Current(1),
                    vec![(PAGES + 4 * PAGE, PAGE), (PAGES + 2 * PAGE, 2 * PAGE)]
                ),
            ],
            events: vec![
                event(EventKind::Rotated, "A", 2),
                event(EventKind::Revoked, "C", 3)
            ],
        }
    );
}

#[test]
fn test_restore_round_trip() {
    let rig = busy();
    let state = saved(&rig);

    let mut restored = rig.restored(blank());

    let again = saved(&restored);
    assert_eq!(again, state);
    assert_eq!(
        u32_at(&restored.config::<4>(16), 0),
        1,
        "frozen until the values are there"
    );
    restored.transport().resume();
    restored.run();
    assert_eq!(restored.ask_status(&get("A")), FROZEN);
    // The attached pages of the image hold zero bytes.
    for page in 0..8 {
        restored.write(PAGES + page * PAGE, &[0; 4096]);
    }
    let fresh = vec![secret("A", b"fresh a"), secret("B", &pattern(9000, 9))];
    let result = restored
        .transport()
        .with_device(|device, mem| device.rehydrate(fresh, mem));
    let counts = Rehydrated {
        refilled: 1,
        renewed: 1,
        wiped: 0,
    };
    assert_eq!(result.expect("deliverable"), counts);
    restored.run();
    assert_eq!(restored.read(PAGES, 8), *b"fresh a\0");
    let value = pattern(9000, 9);
    assert_eq!(restored.read(PAGES + 4 * PAGE, 4096), value[..4096]);
    assert_eq!(restored.read(PAGES + 2 * PAGE, 4904), value[4096..]);
    assert_eq!(restored.status(), LIVE);
    restored.event_buffers(3);
    assert_eq!(
        restored.events(),
        [
            (1, "A".into(), 2),
            (2, "C".into(), 3),
            (3, String::new(), 4)
        ]
    );
    assert_eq!(restored.ask(&get("A")).body[16..], *b"fresh a");
    assert_eq!(
        u64_at(&restored.ask(&get("A")).body, 8),
        4,
        "a version that was never used"
    );
    assert_eq!(restored.ask_status(&detach(3)), OK);
    assert!(restored.is_zero(PAGES + 2 * PAGE, 3 * PAGE));
    assert_eq!(restored.attached("A", &[(PAGES + 2 * PAGE, PAGE)]), 4);
}

#[test]
fn test_restore_source_goes_on_as_before() {
    let mut rig = busy();
    saved(&rig);
    rig.transport().resume();
    rig.run();
    assert_eq!(rig.ask(&get("A")).body[16..], pattern(44, 7));
    assert_eq!(rig.read(PAGES, 40), pattern(40, 0xa0));
}

#[test]
fn test_generation_differs_across_a_restore() {
    let rig = busy();
    let before = rig.get(0xfc);
    let restored = rig.restored(blank());
    let frozen = restored.get(0xfc);
    restored
        .transport()
        .with_device(|device, mem| device.rehydrate(vec![], mem))
        .expect("nothing to deliver");
    let after = restored.get(0xfc);
    assert!(before != frozen && frozen != after && before != after);
}

#[test]
fn test_restore_hostile_state_is_refused() {
    let rig = busy();
    let good = saved(&rig);
    let handle = |handle, ranges: &[(u64, u64)]| AttachmentState {
        handle,
        name: "A".into(),
        content: Content::Current(1),
        ranges: ranges.to_vec(),
    };
    let free = PAGES + 64 * PAGE;
    let event = |kind, name: Option<&str>, epoch| EventState {
        kind,
        name: name.map(str::to_owned),
        epoch,
    };
    type Change<'a> = Box<dyn Fn(&mut State) + 'a>;
    let add = |pages: AttachmentState| -> Change {
        Box::new(move |state: &mut State| state.device.handles.push(pages.clone()))
    };
    let tell = |event: EventState| -> Change {
        Box::new(move |state: &mut State| state.device.events.push(event.clone()))
    };
    let many = |count: u64| -> Change {
        Box::new(move |state: &mut State| {
            state.device.handles = (0..count)
                .map(|n| AttachmentState {
                    handle: u32::try_from(n + 1).expect("few"),
                    name: "A".into(),
                    content: Content::Wiped,
                    ranges: vec![(PAGES + n * PAGE, PAGE)],
                })
                .collect();
        })
    };
    let cases: Vec<(&str, &str, Change)> = vec![
        ("epoch 0", "epoch", Box::new(|s| s.device.epoch = 0)),
        (
            "epoch at the end",
            "epoch",
            Box::new(|s| s.device.epoch = u64::MAX),
        ),
        (
            "epoch over the limit",
            "epoch",
            Box::new(|s| s.device.epoch = 1 << 63),
        ),
        (
            "acknowledged the future",
            "epoch",
            Box::new(|s| s.device.acknowledged = 4),
        ),
        ("handle 0", "number", add(handle(0, &[(free, PAGE)]))),
        ("handle twice", "number", add(handle(1, &[(free, PAGE)]))),
        (
            "version 0",
            "version",
            Box::new(|s| s.device.handles[0].content = Content::Superseded(0)),
        ),
        (
            "version of the future",
            "version",
            Box::new(|s| s.device.handles[0].content = Content::Current(4)),
        ),
        ("no range", "range", add(handle(9, &[]))),
        (
            "257 ranges",
            "too many",
            add(handle(9, &[(free, PAGE); 257])),
        ),
        (
            "unaligned",
            "whole pages",
            add(handle(9, &[(free + 8, PAGE)])),
        ),
        ("no length", "whole pages", add(handle(9, &[(free, 0)]))),
        (
            "wraps",
            "whole pages",
            add(handle(9, &[(!0xfff, 2 * PAGE)])),
        ),
        ("not RAM", "not RAM", add(handle(9, &[(RAM, PAGE)]))),
        (
            "not RAM at the end",
            "not RAM",
            add(handle(9, &[(RAM - PAGE, 2 * PAGE)])),
        ),
        (
            "another handle's page",
            "twice",
            add(handle(9, &[(PAGES + 3 * PAGE, PAGE)])),
        ),
        (
            "overlap inside",
            "twice",
            add(handle(9, &[(free, PAGE), (free, PAGE)])),
        ),
        ("a ring", "virtqueue", add(handle(9, &[(rings(1).1, PAGE)]))),
        (
            "around a ring",
            "virtqueue",
            add(handle(9, &[(rings(0).0 - PAGE, 8 * PAGE)])),
        ),
        (
            "illegal name",
            "name",
            Box::new(|s| s.device.handles[0].name = "A/B".into()),
        ),
        (
            "empty name",
            "name",
            Box::new(|s| s.device.handles[0].name = String::new()),
        ),
        (
            "event without a name",
            "event",
            tell(event(EventKind::Rotated, None, 1)),
        ),
        (
            "event with a name",
            "event",
            tell(event(EventKind::Rehydrated, Some("A"), 1)),
        ),
        (
            "event of the future",
            "event",
            tell(event(EventKind::Rotated, Some("B"), 4)),
        ),
        (
            "event twice",
            "twice",
            tell(event(EventKind::Rotated, Some("A"), 1)),
        ),
        (
            "event with an illegal name",
            "name",
            tell(event(EventKind::Rotated, Some(""), 1)),
        ),
        (
            "too many events",
            "more events",
            Box::new(|s| {
                let events =
                    (0..2050).map(|n| event(EventKind::Rotated, Some(&format!("N{n}")), 1));
                s.device.events = events.collect();
            }),
        ),
        (
            "handles without a queue",
            "no virtqueue",
            Box::new(|s| s.queues.iter_mut().for_each(|queue| queue.ready = false)),
        ),
        (
            "queue outside RAM",
            "RAM",
            Box::new(|s| s.queues[0].used_ring = RAM),
        ),
        (
            "queue missing",
            "number of queues",
            Box::new(|s| s.queues.truncate(1)),
        ),
        (
            "queue larger",
            "another size",
            Box::new(|s| s.queues[0].max_size = 128),
        ),
        (
            "queue of an odd size",
            "queue 0",
            Box::new(|s| s.queues[0].size = 48),
        ),
        ("features", "features", Box::new(|s| s.driver_features |= 1)),
    ];
    for (case, reason, change) in cases {
        let mut state = good.clone();
        change(&mut state);
        let new = Rig::with_memory(blank(), rig.mem.clone());
        let error = new.transport().restore(state).expect_err(case);
        assert!(error.to_string().contains(reason), "{case}: {error}");
    }

    // Limits, in memory that is large enough to reach them.
    let large = || {
        let size = 96 << 20;
        let mem = Memory::from_ranges(&[(vm_memory::GuestAddress(0), size)]).expect("mapped");
        Rig::with_memory(blank(), mem)
    };
    let most = MAX_HANDLES as u64;
    for (change, possible) in [
        (many(most), true),
        (many(most + 1), false),
        (add(handle(9, &[(32 << 20, 64 << 20)])), false),
        (add(handle(9, &[(32 << 20, (64 << 20) - 4 * PAGE)])), true),
    ] {
        let mut state = good.clone();
        change(&mut state);
        let restored = large().transport().restore(state);
        assert_eq!(restored.is_ok(), possible, "{restored:?}");
    }

    let new = Rig::with_memory(blank(), rig.mem.clone());
    new.transport()
        .restore(good)
        .expect("unchanged it is valid");
}
