//! Connections from their beginning to their end.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::guest::{Guest, RX, guest_connection, packet};
use crate::virtio::vsock::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

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
fn test_guest_closes_slow_host_still_reads_everything() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);
    let sent: Vec<u8> = (0..280_u32 << 10).map(|n| (n % 251) as u8).collect();
    for part in sent.chunks(40 << 10) {
        guest.send(packet(7, 1024, op::RW), part);
    }
    let close = Header {
        flags: SHUTDOWN_BOTH,
        ..packet(7, 1024, op::SHUTDOWN)
    };
    guest.send(close, &[]);
    let mut replies = std::iter::from_fn(|| guest.receive());
    assert!(replies.any(|(header, _)| header.op == op::RST));

    // The ports are free again while the host has yet to read.
    std::fs::remove_file(guest.folder.path().join("vsock.sock_1024")).expect("there");
    let mut second = guest_connection(&mut guest);
    guest.send(packet(7, 1024, op::RW), b"second");
    let reader = std::thread::spawn(move || {
        let mut heard = Vec::new();
        host.read_to_end(&mut heard).map(|_| heard)
    });
    while !reader.is_finished() {
        guest.settle();
    }

    let heard = reader
        .join()
        .expect("no panic")
        .expect("no connection reset");
    assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
    let mut heard = [0; 6];
    second.read_exact(&mut heard).expect("the guest's bytes");
    assert_eq!(&heard, b"second");
}

#[test]
fn test_driver_restart_closes_everything() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);
    let mut client = guest.client(52);
    guest.expect(op::REQUEST);

    guest.restart();

    let mut heard = Vec::new();
    assert_eq!(host.read_to_end(&mut heard).expect("an end of file"), 0);
    assert_eq!(client.read_to_end(&mut heard).expect("an end of file"), 0);
    guest.expect_silence();
    // New ones work.
    let _client = guest.client(52);
    guest.expect(op::REQUEST);
}

#[test]
fn test_setup_that_takes_too_long_is_given_up() {
    let mut guest = Guest::new();
    let mut unanswered = guest.client(52);
    guest.expect(op::REQUEST);
    std::thread::sleep(Duration::from_millis(100));
    let mut silent = guest.stream();
    silent.write_all(b"CONN").expect("written");
    let mut established = guest_connection(&mut guest);
    guest.settle();

    let given_up = Instant::now();
    guest.expect(op::RST);

    assert!(given_up.elapsed() > Duration::from_secs(4));
    // The other client came a little later.
    std::thread::sleep(Duration::from_millis(300));
    guest.rig.run();
    let mut heard = Vec::new();
    unanswered.read_to_end(&mut heard).expect("an end of file");
    assert_eq!(heard, b"");
    let error = silent
        .read_to_end(&mut heard)
        .expect_err("its bytes were not read");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    established.write_all(b"still here").expect("written");
    guest.expect(op::RW);
}

#[test]
fn test_client_that_the_guest_never_heard_of_is_given_up_in_silence() {
    let mut guest = Guest::without_buffers();
    let mut unheard = guest.client(52);
    guest.settle();

    // Longer than a client's time.
    std::thread::sleep(Duration::from_millis(5200));
    guest.rig.run();

    let mut heard = Vec::new();
    assert_eq!(unheard.read_to_end(&mut heard).expect("an end of file"), 0);
    guest.offer(RX, 0);
    guest.rig.kick(RX);
    guest.expect_silence();
    // The buffer is for those who come now.
    let _client = guest.client(53);
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 53);
}
