//! The device from its rings to real Unix sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use vm_memory::{Bytes, GuestAddress};

use super::test_guest::{EVENT, Guest, buffer, packet, patient};
use crate::virtio::VirtioDevice;

/// A connection that the guest opened to host port 1024, and its far end.
fn guest_connection(guest: &mut Guest) -> UnixStream {
    let listener = guest.listen(1024);
    guest.send(packet(7, 1024, op::REQUEST), &[]);
    guest.expect(op::RESPONSE);
    let (stream, _) = listener.accept().expect("connected");
    patient(&stream);
    stream
}

#[test]
fn test_guest_connects_to_host_socket_and_both_talk() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);

    guest.send(packet(7, 1024, op::RW), b"hello");
    let mut heard = [0; 5];
    host.read_exact(&mut heard).expect("the guest's bytes");
    host.write_all(b"good day").expect("written");
    let (header, payload) = guest.expect(op::RW);

    assert_eq!(&heard, b"hello");
    assert_eq!(payload, b"good day");
    assert_eq!((header.src_port, header.dst_port), (1024, 7));
    assert_eq!(header.fwd_cnt, 5);
}

#[test]
fn test_host_client_connects_and_both_talk() {
    let mut guest = Guest::new();
    let mut client = guest.client(52);
    client.write_all(b"early").expect("written");

    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 52);
    let port = request.src_port;
    guest.expect_silence();
    guest.send(packet(52, port, op::RESPONSE), &[]);
    let (_, payload) = guest.expect(op::RW);
    guest.send(packet(52, port, op::RW), b"answer");

    assert_eq!(payload, b"early");
    let expected = format!("OK {port}\nanswer");
    let mut heard = vec![0; expected.len()];
    client
        .read_exact(&mut heard)
        .expect("the line and the bytes");
    assert_eq!(heard, expected.as_bytes());
}

#[test]
fn test_guest_request_nobody_listens_is_reset() {
    let mut guest = Guest::new();
    guest.send(packet(7, 1025, op::REQUEST), &[]);
    let (header, _) = guest.expect(op::RST);
    assert_eq!((header.src_port, header.dst_port), (1025, 7));
}

#[test]
fn test_client_request_refused_closes_client() {
    let mut guest = Guest::new();
    let mut client = guest.client(52);
    let (request, _) = guest.expect(op::REQUEST);

    guest.send(packet(52, request.src_port, op::RST), &[]);

    let mut heard = Vec::new();
    client.read_to_end(&mut heard).expect("an end of file");
    assert_eq!(heard, b"");
    guest.expect_silence();
}

#[test]
fn test_host_half_close_guest_goes_on() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);

    host.write_all(b"all of it").expect("written");
    host.shutdown(Shutdown::Write).expect("half-closed");
    let (_, payload) = guest.expect(op::RW);
    let (shutdown, _) = guest.expect(op::SHUTDOWN);
    guest.send(packet(7, 1024, op::RW), b"still here");
    let mut heard = [0; 10];
    host.read_exact(&mut heard).expect("the guest's bytes");

    assert_eq!(payload, b"all of it");
    assert_eq!(shutdown.flags, SHUTDOWN_SEND);
    assert_eq!(&heard, b"still here");

    let done = Header {
        flags: SHUTDOWN_SEND,
        ..packet(7, 1024, op::SHUTDOWN)
    };
    guest.send(done, &[]);
    let (shutdown, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
    assert_eq!(host.read(&mut heard).expect("an end of file"), 0);
}

#[test]
fn test_guest_half_close_host_goes_on() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);

    guest.send(packet(7, 1024, op::RW), b"all of it");
    let done = Header {
        flags: SHUTDOWN_SEND,
        ..packet(7, 1024, op::SHUTDOWN)
    };
    guest.send(done, &[]);
    let mut heard = Vec::new();
    host.read_to_end(&mut heard).expect("bytes, then the end");
    host.write_all(b"still here").expect("written");
    let (_, payload) = guest.expect(op::RW);
    drop(host);
    let (shutdown, _) = guest.expect(op::SHUTDOWN);

    assert_eq!(heard, b"all of it");
    assert_eq!(payload, b"still here");
    assert_eq!(shutdown.flags & SHUTDOWN_SEND, SHUTDOWN_SEND);
}

#[test]
fn test_guest_closes_host_reads_to_the_end() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);
    host.write_all(b"never read").expect("written");
    guest.send(packet(7, 1024, op::RW), b"last words");

    let close = Header {
        flags: SHUTDOWN_BOTH,
        ..packet(7, 1024, op::SHUTDOWN)
    };
    guest.send(close, &[]);

    // The host's bytes may or may not have come before the reset.
    while guest.receive().expect("a reset").0.op != op::RST {}
    let mut heard = Vec::new();
    host.read_to_end(&mut heard).expect("no connection reset");
    assert_eq!(heard, b"last words");
}

#[test]
fn test_host_closes_guest_hears_everything_first() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);
    host.write_all(b"last words").expect("written");
    drop(host);

    let mut heard = Vec::new();
    let mut flags = 0;
    while flags != SHUTDOWN_BOTH {
        guest.settle();
        let (header, payload) = guest.receive().expect("data and shutdowns");
        heard.extend(payload);
        flags |= header.flags;
        assert!(header.flags & SHUTDOWN_SEND == 0 || heard == b"last words");
    }
    guest.send(packet(7, 1024, op::RW), b"to nobody");
    guest.expect(op::RST);
    assert_eq!(heard, b"last words");
    assert_eq!(flags & SHUTDOWN_RECEIVE, SHUTDOWN_RECEIVE);
}

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
