//! Megabytes both ways, byte for byte, against a side that does not keep up.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use super::guest::{Guest, guest_connection, packet};
use crate::virtio::vsock::packet::{Header, SHUTDOWN_SEND, op};

const TOTAL: usize = 8 << 20;

/// Largest packet Linux sends, in bytes.
const LARGEST: u32 = 64 << 10;

/// Buffer of the guest's socket, in bytes.
const GUEST_BUFFER: u32 = 256 << 10;

/// A pattern in which no shift goes unnoticed.
fn pattern(seed: u32) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(TOTAL)
    .collect()
}

/// A guest socket that keeps to its credit, and sees to it that the device does.
#[derive(Default)]
struct Socket {
    sent: u32,
    device_credit: u32,
    received: Vec<u8>,
    /// Bytes consumed, and those the device knows of.
    consumed: u32,
    told: u32,
    end: bool,
}

impl Socket {
    fn header(&mut self, op: u16) -> Header {
        self.told = self.consumed;
        Header {
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: self.consumed,
            ..packet(7, 1024, op)
        }
    }

    fn take(&mut self, header: &Header, payload: &[u8]) {
        self.device_credit = header.fwd_cnt + header.buf_alloc;
        self.received.extend_from_slice(payload);
        let received = u32::try_from(self.received.len()).expect("a few megabytes");
        assert!(
            received - self.told <= GUEST_BUFFER,
            "over the guest's credit"
        );
        match header.op {
            op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST => {}
            op::SHUTDOWN => self.end = header.flags & SHUTDOWN_SEND != 0,
            other => panic!("operation {other}"),
        }
    }
}

#[test]
fn test_bulk_both_ways_slow_readers_is_byte_exact() {
    let mut guest = Guest::new();
    let host = guest_connection(&mut guest);
    let (up, down) = (pattern(1), pattern(2));
    let host_sends = {
        let (mut host, down) = (host.try_clone().expect("cloned"), down.clone());
        thread::spawn(move || {
            host.write_all(&down).expect("written");
            host.shutdown(Shutdown::Write).expect("half-closed");
        })
    };
    let host_reads = {
        let mut host = host;
        thread::spawn(move || {
            let mut heard = Vec::new();
            let mut part = vec![0; 100_000];
            loop {
                let count = host.read(&mut part).expect("readable");
                if count == 0 {
                    return heard;
                }
                heard.extend_from_slice(&part[..count]);
                thread::sleep(Duration::from_millis(1));
            }
        })
    };

    let mut socket = Socket {
        device_credit: 128 << 10,
        ..Socket::default()
    };
    let mut rest = up.as_slice();
    let mut stalls = 0;
    let mut shut = false;
    while !(shut && socket.end) {
        let credit = (socket.device_credit - socket.sent).min(LARGEST);
        if !rest.is_empty() && credit > 0 {
            let (now, later) = rest.split_at(rest.len().min(credit as usize));
            let header = socket.header(op::RW);
            guest.send(header, now);
            socket.sent += u32::try_from(now.len()).expect("a packet");
            rest = later;
        } else if rest.is_empty() && !shut {
            shut = true;
            let header = socket.header(op::SHUTDOWN);
            guest.send(
                Header {
                    flags: SHUTDOWN_SEND,
                    ..header
                },
                &[],
            );
        } else {
            stalls += 1;
            thread::sleep(Duration::from_millis(1));
            guest.rig.run();
        }
        while let Some((header, payload)) = guest.receive() {
            socket.take(&header, &payload);
            // A reader that takes its time: it lets the buffer run full.
            let received = u32::try_from(socket.received.len()).expect("a few megabytes");
            if received - socket.told == GUEST_BUFFER || header.op == op::CREDIT_REQUEST {
                socket.consumed = received;
                let header = socket.header(op::CREDIT_UPDATE);
                guest.send(header, &[]);
            }
        }
    }
    while !host_reads.is_finished() {
        guest.settle();
    }

    host_sends.join().expect("all was written");
    assert!(host_reads.join().expect("readable") == up, "guest to host");
    assert!(socket.received == down, "host to guest");
    assert!(stalls > 0, "the guest had to wait for credit");
}

#[test]
fn test_connections_take_turns() {
    let mut guest = Guest::new();
    let listener = guest.listen(9);
    let mut hosts = Vec::new();
    for port in 0..4 {
        guest.send(packet(port, 9, op::REQUEST), &[]);
        guest.expect(op::RESPONSE);
        hosts.push(listener.accept().expect("connected").0);
    }
    for host in &mut hosts {
        host.write_all(&[b'x'; 40_000]).expect("room in the socket");
    }
    guest.settle();

    let ports: Vec<u32> = (0..8)
        .map(|_| guest.receive().expect("data").0.dst_port)
        .collect();

    assert_eq!(ports[..4], ports[4..]);
    let mut sorted = ports[..4].to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 2, 3]);
}
