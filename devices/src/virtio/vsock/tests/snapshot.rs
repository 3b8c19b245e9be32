//! What becomes of connections in a snapshot's source, and in what is restored from it.

use std::io::Read;

use vm_memory::{Bytes, GuestAddress};

use super::guest::{EVENT, Guest, buffer, guest_connection, packet};
use crate::virtio::VirtioDevice;
use crate::virtio::vsock::packet::op;

#[test]
fn test_restored_guest_is_told_before_new_connections() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);
    let mut client = guest.client(52);
    let (request, _) = guest.expect(op::REQUEST);

    let mut restored = guest.restored();

    // The guest is told; packets wait until it offers the event's buffer again.
    assert_eq!(restored.returned(EVENT), [(0, 4)]);
    let event: u32 = restored
        .mem
        .read_obj(GuestAddress(buffer(EVENT, 0)))
        .expect("in memory");
    assert_eq!(event, 0);
    let _new_client = restored.client(52);
    restored.notify(EVENT);
    restored.expect_silence();
    restored.offer(EVENT, 0);
    restored.notify(EVENT);
    let (new_request, _) = restored.expect(op::REQUEST);
    assert_ne!(new_request.src_port, request.src_port);
    // What the guest believed to be connected is not.
    restored.send(packet(7, 1024, op::RW), b"lost");
    restored.expect(op::RST);

    // The source goes on.
    guest.work(|device, io| device.resume(io));
    guest.send(packet(7, 1024, op::RW), b"kept");
    guest.send(packet(52, request.src_port, op::RESPONSE), &[]);
    let mut heard = [0; 4];
    host.read_exact(&mut heard).expect("the guest's bytes");
    assert_eq!(&heard, b"kept");
    let mut line = [0; 2];
    client.read_exact(&mut line).expect("accepted");
    assert_eq!(&line, b"OK");
    assert_eq!(guest.returned(EVENT), []);
}

#[test]
fn test_restored_twice_waits_for_both_events() {
    let guest = Guest::new();
    let mut restored = guest.restored().restored();
    let _client = restored.client(52);
    assert_eq!(restored.returned(EVENT).len(), 2);

    restored.offer(EVENT, 0);
    restored.notify(EVENT);
    restored.expect_silence();
    restored.offer(EVENT, 1);
    restored.notify(EVENT);

    restored.expect(op::REQUEST);
}
