//! Requests, well-formed and malformed.

use super::*;
use crate::virtio::secrets::{MAX_ATTACHED, MAX_HANDLES};
use crate::virtio::testing::{Part, RAM, REQUEST, RESPONSE, readable, rings, writable};

#[test]
fn test_config_holds_epoch_count_and_limits() {
    let rig = rig();
    let config: [u8; 24] = rig.config(0);
    assert_eq!(u64_at(&config, 0), 1);
    assert_eq!(u32_at(&config, 8), 3);
    assert_eq!(u32_at(&config, 12), 1 << 20);
    assert_eq!(u64_at(&config, 16), 0);
    assert_eq!(rig.config::<8>(16), [0; 8]);
    assert_eq!(rig.config::<4>(24), [0; 4], "past the end");
    assert_eq!(rig.config::<1>(8), [3]);
}

#[test]
fn test_list_returns_all_entries_in_order() {
    let mut rig = rig();
    let response = rig.ask(&list(0));
    assert_eq!((response.status, response.epoch), (OK, 1));
    assert_eq!(
        (u32_at(&response.body, 0), u32_at(&response.body, 4)),
        (3, 3)
    );
    assert_eq!(response.body.len(), 8 + 3 * 152);
    for (entry, (name, len)) in
        response.body[8..]
            .chunks(152)
            .zip([("A", 40), ("B", 10_000), ("C", 1)])
    {
        assert_eq!(entry[..128], field(name));
        assert_eq!(u64_at(entry, 128), 1, "version");
        assert_eq!(u32_at(entry, 136), len);
        assert_eq!((u32_at(entry, 140), u32_at(entry, 144)), (10, 20));
        assert_eq!(u32_at(entry, 148), 0o400);
    }
}

#[test]
fn test_list_small_buffer_or_late_start_returns_part() {
    let mut rig = rig();
    for (start, room, count) in [
        (0, 24, 0),
        (0, 24 + 151, 0),
        (0, 24 + 152, 1),
        (1, 24 + 2 * 152, 2),
        (2, 0x1000, 1),
        (3, 0x1000, 0),
        (u32::MAX, 0x1000, 0),
    ] {
        let response = Response::parse(&rig.call(&list(start), room));
        assert_eq!(response.status, OK);
        assert_eq!(u32_at(&response.body, 0), 3);
        assert_eq!(u32_at(&response.body, 4), count);
        assert_eq!(response.body.len(), 8 + 152 * count as usize);
    }
}

#[test]
fn test_attach_fills_ranges_in_order_and_zeroes_the_rest() {
    let mut rig = rig();
    rig.write(PAGES, &[0x55; 6 * 4096]);
    // Two ranges, the second one below the first; a page between and around them is left alone.
    let ranges = [(PAGES + 3 * PAGE, 2 * PAGE), (PAGES + PAGE, PAGE)];

    let response = rig.ask(&attach("B", &ranges));

    assert_eq!(response.status, OK);
    assert_eq!(u32_at(&response.body, 0), 1, "the handle");
    assert_eq!(u32_at(&response.body, 4), 10_000);
    assert_eq!(u64_at(&response.body, 8), 1, "the version");
    let value = pattern(10_000, 0xb0);
    assert_eq!(rig.read(PAGES + 3 * PAGE, 8192), value[..8192]);
    assert_eq!(rig.read(PAGES + PAGE, 10_000 - 8192), value[8192..]);
    assert!(rig.is_zero(PAGES + PAGE + 1808, PAGE - 1808));
    for untouched in [0, 2, 5] {
        assert_eq!(rig.read(PAGES + untouched * PAGE, 4096), [0x55; 4096]);
    }
}

#[test]
fn test_attach_twice_gives_two_handles() {
    let mut rig = rig();
    let first = rig.attached("A", &[(PAGES, PAGE)]);
    let second = rig.attached("A", &[(PAGES + PAGE, 2 * PAGE)]);
    assert_ne!(first, second);
    assert_eq!(rig.read(PAGES, 40), rig.read(PAGES + PAGE, 40));
}

#[test]
fn test_attach_too_small_ranges_returns_toobig_with_length() {
    let mut rig = rig();
    rig.write(PAGES, &[0x55; 8192]);
    let response = rig.ask(&attach("B", &[(PAGES, 2 * PAGE)]));
    assert_eq!(response.status, TOOBIG);
    assert_eq!(
        (u32_at(&response.body, 0), u32_at(&response.body, 4)),
        (0, 10_000)
    );
    assert_eq!(rig.read(PAGES, 8192), [0x55; 8192]);
    assert_eq!(
        rig.ask_status(&attach("A", &[(PAGES, 2 * PAGE)])),
        OK,
        "nothing was kept"
    );
}

#[test]
fn test_detach_wipes_and_frees_the_pages() {
    let mut rig = rig();
    let handle = rig.attached("B", &[(PAGES, 3 * PAGE)]);
    let other = rig.attached("A", &[(PAGES + 3 * PAGE, PAGE)]);
    assert!(!rig.is_zero(PAGES, 3 * PAGE));

    assert_eq!(rig.ask(&detach(handle)).body, b"");

    assert!(rig.is_zero(PAGES, 3 * PAGE));
    assert_eq!(rig.read(PAGES + 3 * PAGE, 40), pattern(40, 0xa0));
    assert_eq!(rig.ask_status(&detach(handle)), NOENT);
    let again = rig.attached("A", &[(PAGES + PAGE, PAGE)]);
    assert!(
        again != handle && again != other,
        "numbers are not used again soon"
    );
}

#[test]
fn test_detach_unknown_handle_returns_noent() {
    let mut rig = rig();
    let handle = rig.attached("A", &[(PAGES, PAGE)]);
    for unknown in [0, handle + 1, u32::MAX] {
        assert_eq!(rig.ask_status(&detach(unknown)), NOENT);
    }
    assert_eq!(rig.ask_status(&detach(handle)), OK);
}

#[test]
fn test_get_returns_the_value() {
    let mut rig = rig();
    for (name, value) in [
        ("A", pattern(40, 0xa0)),
        ("B", pattern(10_000, 0xb0)),
        ("C", vec![0xc1]),
    ] {
        let exact = u32::try_from(32 + value.len()).expect("fits");
        for room in [exact, exact + 1, 0x1_0000] {
            let response = Response::parse(&rig.call(&get(name), room));
            assert_eq!(response.status, OK);
            assert_eq!(u32_at(&response.body, 0), exact - 32);
            assert_eq!(u32_at(&response.body, 4), 0);
            assert_eq!(u64_at(&response.body, 8), 1);
            assert_eq!(response.body[16..], value);
        }
    }
}

#[test]
fn test_get_small_buffer_returns_toobig_without_a_value_byte() {
    let mut rig = rig();
    for room in [32, 33, 71] {
        rig.write(RESPONSE, &[0x55; 100]);
        let response = Response::parse(&rig.call(&get("A"), room));
        assert_eq!(response.status, TOOBIG);
        assert_eq!(response.body.len(), 16);
        assert_eq!(u32_at(&response.body, 0), 40);
        assert_eq!(rig.read(RESPONSE + 32, 68), [0x55; 68]);
    }
}

#[test]
fn test_unknown_name_returns_noent() {
    let mut rig = rig();
    let longest = "x".repeat(127);
    for unknown in ["D", "AA", "a", "_", longest.as_str()] {
        assert_eq!(rig.ask_status(&get(unknown)), NOENT);
        assert_eq!(rig.ask_status(&attach(unknown, &[(PAGES, PAGE)])), NOENT);
    }
    assert_eq!(rig.ask_status(&get("A")), OK);
}

#[test]
fn test_ack_takes_epochs_up_to_the_current_one() {
    let mut rig = rig();
    assert_eq!(rig.ask_status(&ack(2)), INVALID);
    assert_eq!(rig.ask_status(&ack(u64::MAX)), INVALID);
    assert_eq!(
        rig.transport()
            .with_device(|device, _| device.acknowledged()),
        0
    );
    assert_eq!(rig.ask_status(&ack(1)), OK);
    assert_eq!(rig.ask_status(&ack(0)), OK);
    assert_eq!(
        rig.transport()
            .with_device(|device, _| device.acknowledged()),
        1
    );
}

/// All kinds of request, each of which the device answers with OK.
fn well_formed(rig: &mut Rig<SecretsDevice>) -> Vec<Vec<u8>> {
    let handle = rig.attached("A", &[(PAGES, PAGE)]);
    vec![
        list(0),
        attach("B", &[(PAGES + PAGE, PAGE), (PAGES + 2 * PAGE, 2 * PAGE)]),
        detach(handle),
        get("C"),
        ack(1),
    ]
}

#[test]
fn test_request_truncated_or_too_long_is_invalid() {
    let mut rig = rig();
    for request in well_formed(&mut rig) {
        for len in 0..request.len() {
            assert_eq!(
                rig.ask_status(&request[..len]),
                INVALID,
                "{len} of {request:x?}"
            );
        }
        for more in [1, 7, 8, 16, 4096, 9000] {
            let mut long = request.clone();
            long.resize(request.len() + more, 0);
            assert_eq!(
                rig.ask_status(&long),
                INVALID,
                "{more} more than {request:x?}"
            );
        }
        assert_eq!(rig.ask_status(&request), OK, "{request:x?}");
    }
}

#[test]
fn test_request_reserved_or_type_changed_is_invalid() {
    let mut rig = rig();
    for request in well_formed(&mut rig) {
        let trailing = match request[0] {
            1 | 3 => 12..16,
            2 => 140..144,
            _ => 0..0,
        };
        for at in (2..8).chain(trailing) {
            let mut changed = request.clone();
            changed[at] = 1;
            assert_eq!(
                rig.ask_status(&changed),
                INVALID,
                "byte {at} of {request:x?}"
            );
        }
        for kind in [0, 6, 7, 0x0101, u16::MAX] {
            let mut changed = request.clone();
            changed[..2].copy_from_slice(&kind.to_le_bytes());
            assert_eq!(rig.ask_status(&changed), INVALID, "type {kind}");
        }
        assert_eq!(rig.ask_status(&request), OK);
    }
}

#[test]
fn test_request_invalid_name_is_invalid() {
    let mut rig = rig();
    let mut unterminated = [b'A'; 128];
    let mut dirty = field("A");
    dirty[127] = 1;
    let fields = [
        field(""),
        field("1A"),
        field("A-B"),
        field("A/../B"),
        field("A B"),
        field("\u{e9}"),
        dirty,
        unterminated,
        [0xff; 128],
    ];
    for field in fields {
        let mut request = get("A");
        request[8..].copy_from_slice(&field);
        assert_eq!(rig.ask_status(&request), INVALID);
        let mut request = attach("A", &[(PAGES, PAGE)]);
        request[8..136].copy_from_slice(&field);
        assert_eq!(rig.ask_status(&request), INVALID);
    }
    unterminated[127] = 0;
    let mut request = get("A");
    request[8..].copy_from_slice(&unterminated);
    assert_eq!(rig.ask_status(&request), NOENT, "127 bytes are a name");
}

#[test]
fn test_attach_invalid_ranges_are_refused_and_nothing_is_written() {
    let mut rig = rig();
    let taken = rig.attached("B", &[(PAGES + 8 * PAGE, 3 * PAGE)]);
    rig.write(PAGES, &[0x55; 8 * 4096]);
    let too_many: Vec<_> = (0..257).map(|n| (PAGES + (16 + n) * PAGE, PAGE)).collect();
    let cases: Vec<(&str, Vec<(u64, u64)>)> = vec![
        ("no range", vec![]),
        ("257 ranges", too_many),
        ("zero length", vec![(PAGES, 0)]),
        (
            "zero length after a good one",
            vec![(PAGES, PAGE), (PAGES + PAGE, 0)],
        ),
        ("address not aligned", vec![(PAGES + 1, PAGE)]),
        ("address aligned to 2048", vec![(PAGES + 2048, PAGE)]),
        ("length not aligned", vec![(PAGES, PAGE + 1)]),
        ("length below a page", vec![(PAGES, 40)]),
        ("past the end of RAM", vec![(RAM, PAGE)]),
        ("across the end of RAM", vec![(RAM - PAGE, 2 * PAGE)]),
        ("far outside", vec![(1 << 52, PAGE)]),
        ("wraps to zero", vec![(u64::MAX - PAGE + 1, PAGE)]),
        (
            "wraps past zero",
            vec![(PAGES, u64::MAX - PAGES + 1 + PAGE)],
        ),
        ("huge length", vec![(PAGES, !0xfff)]),
        (
            "huge lengths that wrap in sum",
            vec![(PAGES, 1 << 63), (PAGES, 1 << 63)],
        ),
        ("twice the same", vec![(PAGES, PAGE), (PAGES, PAGE)]),
        (
            "overlap inside",
            vec![(PAGES, 2 * PAGE), (PAGES + PAGE, PAGE)],
        ),
        (
            "overlap inside, other order",
            vec![(PAGES + PAGE, PAGE), (PAGES, 2 * PAGE)],
        ),
        ("enclosed", vec![(PAGES, 4 * PAGE), (PAGES + PAGE, PAGE)]),
        ("first page of a handle", vec![(PAGES + 8 * PAGE, PAGE)]),
        ("last page of a handle", vec![(PAGES + 10 * PAGE, PAGE)]),
        ("runs into a handle", vec![(PAGES, 9 * PAGE)]),
        ("around a handle", vec![(PAGES, 32 * PAGE)]),
        ("the request itself", vec![(REQUEST, PAGE)]),
        ("the response", vec![(RESPONSE, PAGE)]),
        ("the end of the response", vec![(RESPONSE + 0xf000, PAGE)]),
        ("descriptors", vec![(rings(0).0, PAGE)]),
        ("available ring", vec![(rings(0).1, PAGE)]),
        ("used ring", vec![(rings(0).2, PAGE)]),
        ("the other queue's descriptors", vec![(rings(1).0, PAGE)]),
        ("the other queue's available ring", vec![(rings(1).1, PAGE)]),
        ("the other queue's used ring", vec![(rings(1).2, PAGE)]),
        ("around a ring", vec![(rings(0).2 - PAGE, 3 * PAGE)]),
    ];
    for (case, ranges) in cases {
        assert_eq!(rig.ask_status(&attach("A", &ranges)), INVALID, "{case}");
        assert_eq!(rig.read(PAGES, 8 * 4096), [0x55; 8 * 4096], "{case}");
    }
    assert_eq!(rig.read(PAGES + 8 * PAGE, 10_000), pattern(10_000, 0xb0));
    for (case, range) in [
        ("next to a ring", (rings(1).2 + PAGE, PAGE)),
        ("next to the response", (RESPONSE + 0x1_0000, PAGE)),
        ("next to a handle, below", (PAGES + 7 * PAGE, PAGE)),
        ("next to a handle, above", (PAGES + 11 * PAGE, PAGE)),
        ("the last page of RAM", (RAM - PAGE, PAGE)),
    ] {
        assert_eq!(rig.ask_status(&attach("A", &[range])), OK, "{case}");
    }
    assert_eq!(rig.ask_status(&detach(taken)), OK);
    assert_eq!(
        rig.ask_status(&attach("A", &[(PAGES + 8 * PAGE, PAGE)])),
        OK,
        "after the detach"
    );
}

#[test]
fn test_attach_most_ranges() {
    let mut rig = rig();
    // Every other page, so that no two make one run.
    let ranges: Vec<_> = (0..256).map(|n| (PAGES + 2 * n * PAGE, PAGE)).collect();
    let handle = rig.attached("B", &ranges);
    let value = pattern(10_000, 0xb0);
    assert_eq!(rig.read(PAGES, 4096), value[..4096]);
    assert_eq!(rig.read(PAGES + 4 * PAGE, 1808), value[8192..]);
    assert_eq!(
        rig.ask_status(&attach("A", &[(PAGES + 510 * PAGE, PAGE)])),
        INVALID
    );
    assert_eq!(
        rig.ask_status(&attach("A", &[(PAGES + 509 * PAGE, PAGE)])),
        OK
    );
    assert_eq!(rig.ask_status(&detach(handle)), OK);
    assert!(rig.is_zero(PAGES, 500 * PAGE));
}

#[test]
fn test_attach_over_a_limit_is_unavailable() {
    use crate::virtio::testing::Memory;
    use vm_memory::GuestAddress;
    let size = MAX_ATTACHED + (8 << 20);
    let ranges = [(GuestAddress(0), usize::try_from(size).expect("64-bit host"))];
    let memory = || Memory::from_ranges(&ranges).expect("mapped");

    let mut rig = Rig::with_memory(device(), memory());
    rig.start();
    for n in 0..MAX_HANDLES as u64 {
        rig.attached("A", &[(PAGES + n * PAGE, PAGE)]);
    }
    let next = PAGES + MAX_HANDLES as u64 * PAGE;
    assert_eq!(rig.ask_status(&attach("A", &[(next, PAGE)])), UNAVAILABLE);
    assert_eq!(rig.ask_status(&detach(7)), OK);
    assert_eq!(rig.ask_status(&attach("A", &[(next, PAGE)])), OK);
    assert_eq!(
        rig.ask_status(&attach("A", &[(PAGES + 6 * PAGE, PAGE)])),
        UNAVAILABLE
    );

    let mut rig = Rig::with_memory(device(), memory());
    rig.start();
    let whole = rig.attached("A", &[(PAGES, MAX_ATTACHED - PAGE)]);
    let next = PAGES + MAX_ATTACHED;
    assert_eq!(
        rig.ask_status(&attach("A", &[(next, 2 * PAGE)])),
        UNAVAILABLE
    );
    assert_eq!(rig.ask_status(&attach("A", &[(next, PAGE)])), OK);
    assert_eq!(
        rig.ask_status(&attach("A", &[(next + PAGE, PAGE)])),
        UNAVAILABLE
    );
    assert_eq!(rig.ask_status(&detach(whole)), OK);
    assert_eq!(rig.ask_status(&attach("A", &[(next + PAGE, PAGE)])), OK);
}

#[test]
fn test_response_without_room_does_nothing() {
    let mut rig = rig();
    rig.write(RESPONSE, &[0x55; 64]);
    let handle = rig.attached("A", &[(PAGES, PAGE)]);
    rig.write(RESPONSE, &[0x55; 64]);
    for request in [
        list(0),
        attach("A", &[(PAGES + PAGE, PAGE)]),
        detach(handle),
        get("A"),
        ack(1),
    ] {
        for room in [0, 1, 8, 15] {
            assert_eq!(rig.call(&request, room), b"", "no header, nothing written");
        }
    }
    assert_eq!(rig.read(RESPONSE, 64), [0x55; 64]);
    assert_eq!(
        rig.read(PAGES, 40),
        pattern(40, 0xa0),
        "the detach was not done"
    );
    assert!(rig.is_zero(PAGES + PAGE, PAGE));
    for (request, room) in [
        (list(0), 16),
        (list(0), 23),
        (attach("A", &[(PAGES + PAGE, PAGE)]), 16),
        (attach("A", &[(PAGES + PAGE, PAGE)]), 31),
        (get("A"), 16),
        (get("A"), 31),
    ] {
        let response = Response::parse(&rig.call(&request, room));
        assert_eq!(
            (response.status, response.body),
            (INVALID, vec![]),
            "room for {room}"
        );
        assert!(rig.is_zero(PAGES + PAGE, PAGE));
    }
    for request in [detach(handle), ack(1)] {
        assert_eq!(Response::parse(&rig.call(&request, 16)).status, OK);
    }
}

#[test]
fn test_request_and_response_split_over_descriptors() {
    let mut rig = rig();
    for chunk in [1, 2, 3, 5, 17] {
        let request = list(1);
        rig.write(REQUEST, &request);
        rig.write(RESPONSE, &[0x55; 0x1000]);
        let split = |addr: u64, len: u32, part: fn(u64, u32) -> Part| {
            let starts = (0..len).step_by(chunk as usize);
            starts.map(move |at| part(addr + u64::from(at), chunk.min(len - at)))
        };
        let mut parts: Vec<Part> = split(REQUEST, 16, readable).collect();
        let readable_parts = parts.len();
        // 64 descriptors are all there are.
        let room = (chunk * (64 - u32::try_from(readable_parts).expect("few"))).min(400);
        parts.extend(split(RESPONSE, room, writable));
        rig.send(0, &parts);
        rig.kick(0);

        let used = rig.used(0);
        let fitting = (room - 24) / 152;
        assert_eq!(used[0].1, 24 + 152 * fitting, "chunks of {chunk}");
        let response = Response::parse(&rig.read(RESPONSE, used[0].1 as usize));
        assert_eq!((response.status, u32_at(&response.body, 4)), (OK, fitting));
        assert_eq!(rig.read(RESPONSE + u64::from(used[0].1), 64), [0x55; 64]);
    }
}

#[test]
fn test_get_value_crosses_descriptors() {
    let mut rig = rig();
    rig.write(REQUEST, &get("B"));
    let head = rig.send(
        0,
        &[
            readable(REQUEST, 100),
            readable(REQUEST + 100, 36),
            writable(PAGES, 20),
            writable(PAGES + 0x4000, 5000),
            writable(PAGES + 0x8000, 5012),
        ],
    );
    rig.kick(0);
    assert_eq!(rig.used(0), [(u32::from(head), 10_032)]);
    let bytes = [
        rig.read(PAGES, 20),
        rig.read(PAGES + 0x4000, 5000),
        rig.read(PAGES + 0x8000, 5012),
    ]
    .concat();
    assert_eq!(bytes[32..], pattern(10_000, 0xb0));
}
