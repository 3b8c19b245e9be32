//! What the host does to the device, and what the driver gets to know of it.

use super::*;
use crate::virtio::secrets::Rehydrated;
use crate::virtio::testing::{readable, writable};

fn change<R>(rig: &mut Rig<SecretsDevice>, change: impl FnOnce(&mut SecretsDevice) -> R) -> R {
    let result = rig.transport().with_device(|device, _| change(device));
    rig.run();
    result
}

fn rotate(rig: &mut Rig<SecretsDevice>, text: &str, value: &[u8]) {
    let value = sealed(value);
    change(rig, |device| device.rotate(&name(text), value)).expect("declared");
}

fn revoke(rig: &mut Rig<SecretsDevice>, text: &str) {
    let revoked = rig
        .transport()
        .with_device(|device, mem| device.revoke(&name(text), mem));
    revoked.expect("declared");
    rig.run();
}

fn rehydrate(rig: &mut Rig<SecretsDevice>, secrets: Vec<Secret>) -> Rehydrated {
    let result = rig
        .transport()
        .with_device(|device, mem| device.rehydrate(secrets, mem));
    rig.run();
    result.expect("deliverable")
}

#[test]
fn test_rotate_keeps_attached_pages_and_serves_the_new_value() {
    let mut rig = rig();
    rig.event_buffers(2);
    let old = rig.attached("A", &[(PAGES, PAGE)]);
    rig.interrupts();

    rotate(&mut rig, "A", &pattern(50, 0x11));

    assert_eq!(
        rig.interrupts(),
        3,
        "an event was used and the configuration changed"
    );
    assert_eq!(rig.events(), [(1, "A".into(), 2)]);
    assert_eq!(u64_at(&rig.config::<8>(0), 0), 2);
    assert_eq!(
        rig.read(PAGES, 50),
        [pattern(40, 0xa0), vec![0; 10]].concat()
    );
    let response = rig.ask(&attach("A", &[(PAGES + PAGE, PAGE)]));
    assert_eq!(
        (u32_at(&response.body, 4), u64_at(&response.body, 8)),
        (50, 2)
    );
    assert_eq!(rig.read(PAGES + PAGE, 50), pattern(50, 0x11));
    assert_eq!(rig.ask(&get("A")).body[16..], pattern(50, 0x11));
    assert_eq!(rig.ask_status(&detach(old)), OK);
    assert!(rig.is_zero(PAGES, PAGE));
    assert_eq!(rig.ask_status(&ack(2)), OK);
}

#[test]
fn test_revoke_wipes_every_page_at_once_and_for_good() {
    let mut rig = rig();
    rig.event_buffers(2);
    let handle = rig.attached("A", &[(PAGES, PAGE)]);
    rig.attached("A", &[(PAGES + 2 * PAGE, PAGE), (PAGES + 4 * PAGE, PAGE)]);
    rig.attached("C", &[(PAGES + 3 * PAGE, PAGE)]);

    revoke(&mut rig, "A");
    revoke(&mut rig, "A");

    assert!(rig.is_zero(PAGES, 3 * PAGE) && rig.is_zero(PAGES + 4 * PAGE, PAGE));
    assert_eq!(rig.read(PAGES + 3 * PAGE, 1), [0xc1]);
    assert_eq!(rig.events(), [(2, "A".into(), 2)], "once");
    assert_eq!(
        rig.ask_status(&attach("A", &[(PAGES + PAGE, PAGE)])),
        REVOKED
    );
    assert_eq!(rig.ask_status(&get("A")), REVOKED);
    let value = sealed(b"again");
    let rotated = change(&mut rig, |device| device.rotate(&name("A"), value));
    assert!(matches!(rotated, Err(super::super::HostError::Revoked(_))));
    assert_eq!(rig.ask_status(&detach(handle)), OK);
    assert_eq!(rig.ask_status(&get("B")), OK);
    assert_eq!(u32_at(&rig.ask(&list(0)).body, 0), 3, "still declared");
}

#[test]
fn test_change_undeclared_secret_is_refused() {
    let mut rig = rig();
    let value = sealed(b"value");
    let rotated = change(&mut rig, |device| device.rotate(&name("D"), value));
    assert_eq!(
        rotated.expect_err("not declared").to_string(),
        "no secret D is declared for this VM"
    );
    let revoked = rig
        .transport()
        .with_device(|device, mem| device.revoke(&name("D"), mem));
    assert!(revoked.is_err());
    assert_eq!(rig.transport().with_device(|device, _| device.epoch()), 1);
}

#[test]
fn test_freeze_refuses_all_but_detach_and_ack() {
    let mut rig = rig();
    let handle = rig.attached("A", &[(PAGES, PAGE)]);
    let generation = rig.get(0xfc);

    change(&mut rig, SecretsDevice::freeze);

    assert_ne!(rig.get(0xfc), generation);
    assert_eq!(u32_at(&rig.config::<4>(16), 0), 1);
    for request in [list(0), attach("A", &[(PAGES + PAGE, PAGE)]), get("A")] {
        let response = rig.ask(&request);
        assert_eq!((response.status, response.body), (FROZEN, vec![]));
    }
    assert_eq!(rig.ask_status(&get("A")[..20]), INVALID);
    assert_eq!(
        rig.read(PAGES, 40),
        pattern(40, 0xa0),
        "attached pages keep their value"
    );
    assert_eq!(rig.ask_status(&ack(1)), OK);
    assert_eq!(rig.ask_status(&detach(handle)), OK);
    assert!(rig.is_zero(PAGES, PAGE));
}

#[test]
fn test_rehydrate_refills_every_page_with_the_new_values() {
    let mut rig = rig();
    rig.event_buffers(1);
    rig.attached("A", &[(PAGES, PAGE)]);
    rig.attached("B", &[(PAGES + PAGE, 2 * PAGE), (PAGES + 4 * PAGE, PAGE)]);
    rig.attached("B", &[(PAGES + 6 * PAGE, 3 * PAGE)]);
    rig.attached("C", &[(PAGES + 10 * PAGE, PAGE)]);
    change(&mut rig, SecretsDevice::freeze);
    let generation = rig.get(0xfc);

    let fresh = vec![
        secret("B", &pattern(12_288, 0x22)),
        secret("A", &pattern(4097, 0x11)),
        secret("NEW", b"new"),
    ];
    let done = rehydrate(&mut rig, fresh);

    let counts = Rehydrated {
        refilled: 2,
        renewed: 0,
        wiped: 2,
    };
    assert_eq!(done, counts);
    assert_ne!(rig.get(0xfc), generation);
    assert_eq!(
        rig.config::<24>(0)[..12],
        [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]
    );
    assert_eq!(u32_at(&rig.config::<4>(16), 0), 0, "not frozen any more");
    assert!(rig.is_zero(PAGES, PAGE), "too long for its pages now");
    let value = pattern(12_288, 0x22);
    assert_eq!(rig.read(PAGES + PAGE, 8192), value[..8192]);
    assert_eq!(rig.read(PAGES + 4 * PAGE, 4096), value[8192..]);
    assert_eq!(rig.read(PAGES + 6 * PAGE, 12_288), value);
    assert!(
        rig.is_zero(PAGES + 10 * PAGE, PAGE),
        "not declared any more"
    );
    assert_eq!(rig.events(), [(3, String::new(), 2)]);
    assert_eq!(rig.ask(&get("NEW")).body[16..], *b"new");
    assert_eq!(rig.ask_status(&get("C")), NOENT);
    assert_eq!(
        u64_at(&rig.ask(&list(0)).body, 8 + 128),
        2,
        "versions are never used again"
    );
}

#[test]
fn test_rehydrate_gives_handles_of_old_versions_the_current_value() {
    let mut rig = rig();
    rig.attached("A", &[(PAGES, PAGE)]);
    rotate(&mut rig, "A", b"second");
    rig.attached("A", &[(PAGES + PAGE, PAGE)]);
    rotate(&mut rig, "A", b"third");
    rig.attached("A", &[(PAGES + 2 * PAGE, PAGE)]);
    rig.attached("C", &[(PAGES + 3 * PAGE, PAGE)]);
    revoke(&mut rig, "C");

    let fresh = vec![secret("A", b"third"), secret("C", b"back")];
    let done = rehydrate(&mut rig, fresh);

    let counts = Rehydrated {
        refilled: 2,
        renewed: 2,
        wiped: 0,
    };
    assert_eq!(done, counts);
    for page in 0..3 {
        assert_eq!(rig.read(PAGES + page * PAGE, 6), *b"third\0");
    }
    assert_eq!(rig.read(PAGES + 3 * PAGE, 5), *b"back\0");
    let done = rehydrate(&mut rig, vec![secret("A", b"third")]);
    let counts = Rehydrated {
        refilled: 3,
        renewed: 0,
        wiped: 1,
    };
    assert_eq!(done, counts, "all were current");
}

#[test]
fn test_reset_wipes_and_forgets_every_handle() {
    let mut rig = rig();
    rig.attached("A", &[(PAGES, PAGE)]);
    let handle = rig.attached("B", &[(PAGES + PAGE, 4 * PAGE)]);
    rotate(&mut rig, "A", b"waits for a buffer");

    rig.set(0x70, 0);

    assert!(rig.is_zero(PAGES, 8 * PAGE));
    rig.start();
    rig.event_buffers(2);
    assert_eq!(rig.events(), [], "a new driver is told nothing old");
    assert_eq!(rig.ask_status(&detach(handle)), NOENT);
    rig.attached("B", &[(PAGES, 4 * PAGE)]);
    assert_eq!(rig.ask(&get("A")).body[16..], *b"waits for a buffer");
}

#[test]
fn test_events_wait_for_buffers_and_replace_their_like() {
    let mut rig = rig();
    for round in 0..3 {
        rotate(&mut rig, "A", &pattern(30, round));
        rotate(&mut rig, "B", &pattern(30, round));
    }
    revoke(&mut rig, "B");
    let fresh = vec![secret("A", b"one"), secret("B", b"two")];
    rehydrate(&mut rig, fresh);
    rotate(&mut rig, "B", b"three");

    rig.event_buffers(8);

    assert_eq!(
        rig.events(),
        [
            (1, "A".into(), 6),
            (2, "B".into(), 8),
            (3, String::new(), 9),
            (1, "B".into(), 10),
        ]
    );
    rotate(&mut rig, "A", b"four");
    assert_eq!(rig.events(), [(1, "A".into(), 11)]);
}

#[test]
fn test_events_skip_unusable_buffers() {
    let mut rig = rig();
    let small = rig.send(1, &[writable(PAGES, 143)]);
    let unwritable = rig.send(1, &[readable(PAGES, 1000)]);
    let split = rig.send(1, &[writable(PAGES, 100), writable(PAGES + PAGE, 44)]);
    rig.kick(1);
    assert_eq!(rig.used(1), [], "no event, no buffer taken");

    rotate(&mut rig, "A", b"x");

    let head = u32::from;
    let expected = [(head(small), 0), (head(unwritable), 0), (head(split), 144)];
    assert_eq!(rig.used(1), expected);
    assert_eq!(rig.read(PAGES + PAGE, 44), [0; 44]);
    assert_eq!(rig.read(PAGES, 17)[16], b'A');
}

#[test]
fn test_change_before_the_driver_starts() {
    let mut rig = Rig::new(device());
    rotate(&mut rig, "A", b"early");
    revoke(&mut rig, "B");
    assert_eq!(rig.interrupts(), 0);
    rig.start();
    rig.event_buffers(3);
    assert_eq!(rig.events(), []);
    assert_eq!(u64_at(&rig.config::<8>(0), 0), 3);
    assert_eq!(rig.ask(&get("A")).body[16..], *b"early");
    assert_eq!(rig.ask_status(&get("B")), REVOKED);
}
