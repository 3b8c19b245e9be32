//! What becomes of connections in a snapshot's source, and in what is restored from it.

use std::io::Read;
use std::thread::sleep;
use std::time::Duration;

use super::guest::{EVENT, Guest, TX, buffer, guest_connection, packet, restore_changed};
use crate::virtio::vsock::packet::op;

#[test]
fn test_restored_guest_is_told_before_new_connections() {
    let mut guest = Guest::new();
    let _host = guest_connection(&mut guest);
    let _client = guest.client(52);
    let (request, _) = guest.expect(op::REQUEST);

    let mut restored = guest.restored();

    assert_eq!(restored.rig.used(EVENT), [(0, 4)]);
    assert_eq!(restored.rig.read(buffer(EVENT, 0), 4), [0; 4]);
    // Packets wait until the guest offers the event's buffer again.
    let _new_client = restored.client(52);
    restored.rig.kick(EVENT);
    restored.expect_silence();
    restored.offer(EVENT, 0);
    restored.rig.kick(EVENT);
    let (new_request, _) = restored.expect(op::REQUEST);
    assert_ne!(new_request.src_port, request.src_port);
    // What the guest believed to be connected is not.
    restored.send(packet(7, 1024, op::RW), b"lost");
    restored.expect(op::RST);
}

#[test]
fn test_restored_guest_without_event_buffers_is_told_later() {
    let mut restored = Guest::without_buffers().restored();
    for index in 0..4 {
        restored.offer(0, index);
    }
    let _client = restored.client(52);
    restored.expect_silence();

    // Too small for an event, and back it goes.
    restored.offer_chain(EVENT, 0, &[(buffer(EVENT, 0), 3, 2)]);
    restored.offer(EVENT, 1);
    restored.rig.kick(EVENT);
    assert_eq!(restored.rig.used(EVENT), [(0, 0), (1, 4)]);
    restored.expect_silence();

    restored.offer(EVENT, 1);
    restored.rig.kick(EVENT);
    restored.expect(op::REQUEST);
}

#[test]
fn test_restored_twice_waits_for_both_events() {
    let guest = Guest::new();
    let mut restored = guest.restored().restored();
    let _client = restored.client(52);
    assert_eq!(restored.rig.used(EVENT).len(), 2);

    restored.offer(EVENT, 0);
    restored.rig.kick(EVENT);
    restored.expect_silence();
    restored.offer(EVENT, 1);
    restored.rig.kick(EVENT);

    restored.expect(op::REQUEST);
}

#[test]
fn test_request_on_its_way_at_a_snapshot_is_answered_after_the_reset() {
    let mut guest = Guest::new();
    guest.rig.transport().pause().expect("quiesced");
    guest.send_raw(&packet(7, 1024, op::REQUEST), &[]);
    assert_eq!(guest.rig.used(TX), [], "not taken");

    let mut restored = guest.restored();

    assert_eq!(restored.rig.used(TX), [(0, 0)]);
    restored.expect_silence();
    restored.offer(EVENT, 0);
    restored.rig.kick(EVENT);
    // Nobody listens at the copy's port.
    let (reset, _) = restored.expect(op::RST);
    assert_eq!(reset.dst_port, 7);
}

#[test]
fn test_source_goes_on_after_a_snapshot() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);
    let mut client = guest.client(52);
    let (request, _) = guest.expect(op::REQUEST);

    guest.rig.transport().pause().expect("quiesced");
    guest.rig.transport().save();
    guest.rig.transport().resume();
    guest.rig.run();

    guest.send(packet(7, 1024, op::RW), b"kept");
    guest.send(packet(52, request.src_port, op::RESPONSE), &[]);
    let mut heard = [0; 4];
    host.read_exact(&mut heard).expect("the guest's bytes");
    assert_eq!(&heard, b"kept");
    let mut line = [0; 2];
    client.read_exact(&mut line).expect("accepted");
    assert_eq!(&line, b"OK");
    assert_eq!(guest.rig.used(EVENT), [], "no reset event");
}

#[test]
fn test_paused_guest_loses_no_time_to_answer() {
    let mut guest = Guest::new();
    let mut client = guest.client(52);
    let (request, _) = guest.expect(op::REQUEST);
    sleep(Duration::from_secs(3));
    guest.rig.transport().pause().expect("quiesced");
    sleep(Duration::from_secs(3));

    guest.rig.transport().resume();
    guest.expect_silence();
    guest.send(packet(52, request.src_port, op::RESPONSE), &[]);

    let mut line = [0; 2];
    client.read_exact(&mut line).expect("accepted");
    assert_eq!(&line, b"OK");
}

#[test]
fn test_restart_after_restore_needs_no_event() {
    let mut restored = Guest::new().restored();
    let _client = restored.client(52);
    restored.restart();
    restored.expect(op::REQUEST);
    assert_eq!(restored.rig.used(EVENT), []);
}

#[test]
fn test_restore_impossible_state_is_refused() {
    let guest = Guest::new();
    assert!(restore_changed(&guest, |_| {}).is_ok());
    assert!(restore_changed(&guest, |state| state.reset_index = Some(9)).is_ok());
    for (name, result) in [
        (
            "context id",
            restore_changed(&guest, |state| state.guest_cid = 2),
        ),
        (
            "low port",
            restore_changed(&guest, |state| state.next_port = 1024),
        ),
        (
            "high port",
            restore_changed(&guest, |state| state.next_port = 1 << 31),
        ),
        (
            "index",
            restore_changed(&guest, |state| state.reset_index = Some(5000)),
        ),
    ] {
        assert!(result.is_err(), "{name}");
    }
}
