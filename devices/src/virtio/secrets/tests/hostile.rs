//! Rings and chains that a driver must not make, and memory that changes while the device looks.

use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{
    INDIRECT, LIVE, NEEDS_RESET, NEXT, RAM, REQUEST, RESPONSE, WRITE, readable, rings, writable,
};

/// The device still answers.
fn assert_works(rig: &mut Rig<SecretsDevice>) {
    assert_eq!(rig.status(), LIVE);
    assert_eq!(rig.ask(&get("C")).body[16..], [0xc1]);
}

#[test]
fn test_malformed_chain_is_returned_unwritten() {
    let mut rig = rig();
    rig.write(REQUEST, &get("A"));
    rig.write(RESPONSE, &[0x55; 100]);
    type Descriptors = Vec<(u64, u32, u16, u16)>;
    let cases: Vec<(&str, Descriptors)> = vec![
        ("loops on itself", vec![(REQUEST, 136, NEXT, 0)]),
        (
            "loops through the writable part",
            vec![(REQUEST, 136, NEXT, 1), (RESPONSE, 100, NEXT | WRITE, 1)],
        ),
        (
            "loops back to the request",
            vec![(REQUEST, 136, NEXT, 1), (RESPONSE, 100, NEXT | WRITE, 0)],
        ),
        ("next outside the table", vec![(REQUEST, 136, NEXT, 64)]),
        ("next far outside", vec![(REQUEST, 136, NEXT, u16::MAX)]),
        (
            "writable before readable",
            vec![(RESPONSE, 100, NEXT | WRITE, 1), (REQUEST, 136, 0, 0)],
        ),
        ("indirect", vec![(REQUEST, 32, INDIRECT, 0)]),
        (
            "indirect in the middle",
            vec![(REQUEST, 136, NEXT, 1), (RESPONSE, 96, INDIRECT | WRITE, 0)],
        ),
        (
            "request outside RAM",
            vec![(RAM, 136, NEXT, 1), (RESPONSE, 100, WRITE, 0)],
        ),
        (
            "request across the end of RAM",
            vec![(RAM - 1, 136, NEXT, 1), (RESPONSE, 100, WRITE, 0)],
        ),
        (
            "request wraps",
            vec![(u64::MAX - 3, 136, NEXT, 1), (RESPONSE, 100, WRITE, 0)],
        ),
        (
            "response outside RAM",
            vec![(REQUEST, 136, NEXT, 1), (RAM, 100, WRITE, 0)],
        ),
        (
            "response partly outside RAM",
            vec![
                (REQUEST, 136, NEXT, 1),
                (RESPONSE, 100, NEXT | WRITE, 2),
                (RAM - 50, 51, WRITE, 0),
            ],
        ),
        (
            "huge response",
            vec![(REQUEST, 136, NEXT, 1), (RESPONSE, u32::MAX, WRITE, 0)],
        ),
        (
            "no length",
            vec![(REQUEST, 136, NEXT, 1), (RESPONSE, 0, WRITE, 0)],
        ),
        ("no length at all", vec![(REQUEST, 0, 0, 0)]),
    ];
    for (case, descriptors) in cases {
        for (descriptor, index) in descriptors.into_iter().zip(0..) {
            rig.describe(0, index, descriptor);
        }
        rig.offer(0, 0);
        rig.kick(0);
        assert_eq!(rig.used(0), [(0, 0)], "{case}");
        assert_eq!(rig.read(RESPONSE, 100), [0x55; 100], "{case}");
        assert_eq!(rig.status(), LIVE, "{case}");
    }
    assert_works(&mut rig);
}

#[test]
fn test_response_parts_that_overlap_are_the_drivers_own_loss() {
    let mut rig = rig();
    let handle = rig.attached("A", &[(PAGES, PAGE)]);
    // Onto the request, onto itself, onto an attached page.
    for parts in [
        vec![readable(REQUEST, 136), writable(REQUEST, 136)],
        vec![
            readable(REQUEST, 136),
            writable(RESPONSE, 40),
            writable(RESPONSE, 40),
            writable(RESPONSE + 20, 40),
        ],
        vec![readable(REQUEST, 136), writable(PAGES, 80)],
    ] {
        rig.write(REQUEST, &get("A"));
        rig.send(0, &parts);
        rig.kick(0);
        assert_eq!(rig.used(0)[0].1, 72);
    }
    assert_eq!(rig.ask_status(&detach(handle)), OK);
    assert!(rig.is_zero(PAGES, PAGE));
    assert_works(&mut rig);
}

#[test]
fn test_ring_index_far_ahead_stops_the_device_until_reset() {
    for queue in [0, 1] {
        let mut rig = rig();
        rig.attached("A", &[(PAGES, PAGE)]);
        let handled = rig.used(queue).len();
        rig.interrupts();
        rig.transport().with_device(|device, mem| {
            // Something to tell, so that the device looks at the eventq.
            device.revoke(&name("C"), mem).expect("declared");
        });
        let avail = rings(queue).1;
        rig.write(avail + 2, &(1_u16 + 65).to_le_bytes());

        rig.kick(queue);

        assert_eq!(rig.status(), LIVE | NEEDS_RESET, "queue {queue}");
        assert_ne!(rig.interrupts() & 2, 0, "the driver is told");
        rig.write(avail + 2, &2_u16.to_le_bytes());
        rig.kick(queue);
        assert_eq!(rig.used(queue).len(), handled, "nothing more is used");
        assert_eq!(rig.read(PAGES, 40), pattern(40, 0xa0));

        rig.start();
        assert!(rig.is_zero(PAGES, PAGE), "the reset wiped");
        assert_eq!(rig.status(), LIVE);
        assert_eq!(rig.ask_status(&get("C")), REVOKED);
        assert_eq!(rig.ask_status(&get("A")), OK);
    }
}

#[test]
fn test_head_outside_the_table_stops_the_device() {
    for head in [64, u16::MAX] {
        let mut rig = rig();
        rig.offer(0, head);
        rig.kick(0);
        assert_eq!(rig.status(), LIVE | NEEDS_RESET);
    }
}

#[test]
fn test_rings_outside_ram_refuse_activation() {
    let good = rings(0);
    for (table, avail, used) in [
        (RAM, good.1, good.2),
        (RAM - 16, good.1, good.2),
        (good.0, RAM - 4, good.2),
        (good.0, good.1, RAM - 4),
        (good.0, good.1, !3),
    ] {
        let mut rig = Rig::new(device());
        rig.set_up();
        rig.set_up_queue(0, (table, avail, used));
        rig.set_up_queue(1, rings(1));
        rig.set(0x70, LIVE);
        assert_eq!(rig.status(), LIVE | NEEDS_RESET);
        rig.offer(0, 0);
        rig.kick(0);
        assert_eq!(rig.used(0), []);
        rig.start();
        assert_works(&mut rig);
    }
}

#[test]
fn test_all_descriptors_at_once() {
    let mut rig = rig();
    rig.write(REQUEST, &get("A"));
    for index in 0..32 {
        let response = RESPONSE + 0x100 * index;
        rig.send(0, &[readable(REQUEST, 136), writable(response, 72)]);
    }
    rig.kick(0);
    assert_eq!(rig.used(0).len(), 32);
    for index in 0..32 {
        let response = rig.read(RESPONSE + 0x100 * index, 72);
        assert_eq!(response[32..], pattern(40, 0xa0));
    }
}

#[test]
fn test_attach_then_rings_cannot_move_there() {
    let mut rig = rig();
    rig.attached("A", &[(PAGES, PAGE)]);
    // While the device is live its queues cannot be configured.
    rig.set_up_queue(1, (PAGES, PAGES + 0x1000, PAGES + 0x2000));
    rig.write(PAGES, &pattern(40, 0xa0));
    rig.event_buffers(1);
    let value = secret("A", b"new").value;
    let rotated = rig
        .transport()
        .with_device(|device, _| device.rotate(&name("A"), value));
    rotated.expect("declared");
    rig.run();
    assert_eq!(rig.read(PAGES, 40), pattern(40, 0xa0));
}

/// While another thread changes the request as fast as it can, the device checks what it acts on.
#[test]
fn test_request_that_changes_under_the_device() {
    const INSIDE: u64 = PAGES + 16 * PAGE;
    const TRIES: usize = 3000;
    let mut rig = rig();
    rig.write(PAGES, &[0x55; 32 * 4096]);
    // The bad ones differ from the good one in a byte each, so that no mixture of them is good.
    let good = attach("C", &[(INSIDE, PAGE)]);
    let bad = [
        attach("C", &[(INSIDE + 8, PAGE)]),
        attach("C", &[(INSIDE | 1 << 40, PAGE)]),
        attach("C", &[(INSIDE, PAGE + 8)]),
        attach("C", &[(INSIDE, PAGE | 1 << 40)]),
    ];
    let done = AtomicUsize::new(0);
    let mem = rig.mem.clone();
    let (mut accepted, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Ends by itself should the other thread panic: its tries take less than a second.
            let begin = std::time::Instant::now();
            for request in bad.iter().flat_map(|bad| [&good, bad]).cycle() {
                mem.write_slice(request, GuestAddress(REQUEST))
                    .expect("RAM");
                if done.load(Ordering::Relaxed) == TRIES || begin.elapsed().as_secs() > 60 {
                    break;
                }
            }
        });
        let len = u32::try_from(good.len()).expect("short");
        let second = REQUEST + 0x1_0000;
        for _ in 0..TRIES {
            rig.send(0, &[readable(REQUEST, len), writable(RESPONSE, 64)]);
            rig.kick(0);
            let written = rig.used(0)[0].1 as usize;
            let response = Response::parse(&rig.read(RESPONSE, written));
            if response.status == OK {
                accepted += 1;
                assert_eq!(rig.read(INSIDE, 1), [0xc1]);
                rig.write(second, &detach(u32_at(&response.body, 0)));
                rig.send(0, &[readable(second, 16), writable(RESPONSE, 64)]);
                rig.kick(0);
                rig.used(0);
                assert_eq!(rig.read(RESPONSE, 4), [0; 4], "detached");
            } else {
                refused += 1;
                assert_eq!(response.status, INVALID);
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(
        accepted > 0 && refused > 0,
        "{accepted} and {refused}: both were seen"
    );
    assert_eq!(rig.read(PAGES, 16 * 4096), [0x55; 16 * 4096]);
    assert!(rig.is_zero(INSIDE, PAGE));
    assert_eq!(rig.read(INSIDE + PAGE, 15 * 4096), [0x55; 15 * 4096]);
    assert_works(&mut rig);
}
