//! Guests that do not keep to the rules, and clients that come in numbers.

use std::io::Read;

use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::guest::{Guest, RX, TX, buffer, guest_connection, packet};
use crate::virtio::testing::{LIVE, QUEUE_SIZE, WRITE};
use crate::virtio::vsock::muxer::MAX_CONNECTIONS;
use crate::virtio::vsock::packet::{Header, SHUTDOWN_SEND, op};

#[test]
fn test_malformed_packet_is_reset_or_dropped() {
    let good = packet(7, 5, op::RW);
    for (name, header, payload, reset) in [
        ("no such connection", good, &[][..], true),
        ("reset of nothing", packet(7, 5, op::RST), &[], false),
        (
            "longer than the chain",
            Header { len: 5, ..good },
            b"four",
            true,
        ),
        (
            "huge",
            Header {
                len: u32::MAX,
                ..good
            },
            b"four",
            true,
        ),
        ("not a stream", Header { kind: 2, ..good }, &[], true),
        (
            "source is not the guest",
            Header { src_cid: 4, ..good },
            &[],
            false,
        ),
        (
            "source is the host",
            Header { src_cid: 2, ..good },
            &[],
            false,
        ),
        (
            "source has high bits",
            Header {
                src_cid: 1 << 32 | 3,
                ..good
            },
            &[],
            false,
        ),
        (
            "destination is not the host",
            Header { dst_cid: 9, ..good },
            &[],
            false,
        ),
    ] {
        let mut guest = Guest::new();
        guest.send_raw(&header, payload);
        assert_eq!(guest.rig.used(TX), [(0, 0)], "{name}");
        let reply = guest.receive().map(|(reply, _)| (reply.op, reply.kind));
        assert_eq!(reply, reset.then_some((op::RST, header.kind)), "{name}");
        // And the device still works.
        guest_connection(&mut guest);
    }
}

#[test]
fn test_truncated_packet_resets_its_connection_only() {
    let mut guest = Guest::new();
    let mut host = guest_connection(&mut guest);
    let _client = guest.client(52);
    guest.expect(op::REQUEST);

    guest.send_raw(
        &Header {
            len: 9,
            ..packet(7, 1024, op::RW)
        },
        b"eight...",
    );

    let (reset, _) = guest.expect(op::RST);
    assert_eq!(reset.dst_port, 7);
    assert_eq!(host.read_to_end(&mut Vec::new()).expect("the end"), 0);
    guest.expect_silence();
}

#[test]
fn test_header_shorter_than_44_bytes_is_dropped() {
    let mut guest = Guest::new();
    guest.offer_chain(TX, 0, &[(buffer(TX, 0), 43, 0)]);
    guest.rig.kick(TX);
    assert_eq!(guest.rig.used(TX), [(0, 0)]);
    assert_eq!(guest.receive(), None);
}

#[test]
fn test_writable_tx_chain_is_dropped() {
    let mut guest = Guest::new();
    guest.offer_chain(TX, 0, &[(buffer(TX, 0), 4096, WRITE)]);
    guest.rig.kick(TX);
    assert_eq!(guest.rig.used(TX), [(0, 0)]);
    assert_eq!(guest.receive(), None);
}

#[test]
fn test_useless_rx_buffers_go_back_empty() {
    let mut guest = Guest::without_buffers();
    guest.offer_chain(RX, 0, &[(buffer(RX, 0), 44, WRITE)]);
    guest.offer_chain(RX, 1, &[(buffer(RX, 1), 7, WRITE)]);
    guest.offer_chain(RX, 2, &[(buffer(RX, 2), 4096, 0)]);
    let small = [(buffer(RX, 3), 40, WRITE), (buffer(RX, 4), 6, WRITE)];
    guest.offer_chain(RX, 3, &small);
    guest.send_raw(&packet(7, 5, op::RW), &[]);
    assert_eq!(guest.rig.used(RX), [(0, 0), (1, 0), (2, 0), (3, 44)]);
}

#[test]
fn test_replies_without_buffers_hold_up_the_guest_only() {
    let mut guest = Guest::without_buffers();
    let mut taken = 0;
    for _ in 0..300 {
        guest.send_raw(&packet(7, 5, op::RW), &[]);
        let count = guest.rig.used(TX).len();
        taken += count;
        if count == 0 {
            break;
        }
    }
    assert_eq!(taken, 256);

    guest.offer(RX, 0);
    guest.rig.kick(RX);

    assert_eq!(guest.rig.used(TX).len(), 1);
    assert_eq!(guest.rig.used(RX), [(0, 44)]);
}

#[test]
fn test_connections_are_limited_and_freed() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(8192, |maximum| maximum.min(8192));
    let raised = Rlimit {
        current: Some(current),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("within the hard limit");
    let mut guest = Guest::new();
    let listener = guest.listen(9);
    let mut hosts = Vec::new();

    for port in 0..u32::try_from(MAX_CONNECTIONS).expect("small") {
        guest.send(packet(port, 9, op::REQUEST), &[]);
        guest.expect(op::RESPONSE);
        hosts.push(listener.accept().expect("connected"));
    }
    guest.send(packet(5000, 9, op::REQUEST), &[]);
    guest.expect(op::RST);
    let mut client = guest.client(52);
    guest.expect_silence();
    assert!(
        matches!(client.read(&mut [0]), Ok(0) | Err(_)),
        "turned away"
    );

    guest.send(packet(0, 9, op::RST), &[]);
    guest.send(packet(5000, 9, op::REQUEST), &[]);
    guest.expect(op::RESPONSE);
}

#[test]
fn test_busy_guest_leaves_others_a_turn() {
    let mut guest = Guest::new();
    guest
        .rig
        .write(buffer(TX, 0), &packet(7, 5, op::RW).to_bytes());
    for index in 0..QUEUE_SIZE {
        guest.offer_chain(TX, index, &[(buffer(TX, 0), 44, 0)]);
    }
    // The work of more than one turn, of which the guest asks for the first only.
    guest.rig.kick(TX);
    assert_eq!(guest.rig.used(TX).len(), usize::from(QUEUE_SIZE));
    let replies = std::iter::from_fn(|| guest.receive()).count();
    assert_eq!(replies, usize::from(QUEUE_SIZE));
}

/// What a guest, or the host, does next.
#[derive(Debug, Clone)]
enum Action {
    Packet { header: Header, payload: usize },
    Chain { queue: usize, len: u32, flags: u16 },
    Buffer { index: u16 },
    Client { port: u32 },
    HostWrites { len: usize },
    HostShutdown,
    HostCloses,
    Backend,
}

fn header() -> impl Strategy<Value = Header> {
    let counter = || prop_oneof![0..10_u32, Just(1 << 17), any::<u32>()];
    (
        (
            prop_oneof![9 => Just(3), 1 => any::<u64>()],
            prop_oneof![9 => Just(2), 1 => any::<u64>()],
        ),
        (
            prop_oneof![Just(7), Just(52)],
            prop_oneof![Just(9), Just(1 << 30), Just((1 << 30) + 1)],
        ),
        (counter(), prop_oneof![9 => Just(1), 1 => any::<u16>()]),
        (0..9_u16, 0..8_u32),
        (counter(), counter()),
    )
        .prop_map(
            |(cid, port, (len, kind), (op, flags), (buf_alloc, fwd_cnt))| Header {
                src_cid: cid.0,
                dst_cid: cid.1,
                src_port: port.0,
                dst_port: port.1,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            },
        )
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (header(), 0..60_000_usize, any::<bool>()).prop_map(|(header, payload, honest)| {
            let len = if honest { u32::try_from(payload).expect("short") } else { header.len };
            Action::Packet { header: Header { len, ..header }, payload }
        }),
        1 => (0..3_usize, 0..5000_u32, 0..8_u16)
            .prop_map(|(queue, len, flags)| Action::Chain { queue, len, flags }),
        4 => (0..32_u16).prop_map(|index| Action::Buffer { index }),
        2 => prop_oneof![Just(7), Just(52)].prop_map(|port| Action::Client { port }),
        2 => (0..100_000_usize).prop_map(|len| Action::HostWrites { len }),
        1 => Just(Action::HostShutdown),
        1 => Just(Action::HostCloses),
        4 => Just(Action::Backend),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The bounds themselves are debug assertions of the muxer and the backlog.
    #[test]
    fn test_any_guest_and_host_never_panic(actions in prop::collection::vec(action(), 1..80)) {
        let mut guest = Guest::without_buffers();
        let listener = guest.listen(9);
        listener.set_nonblocking(true).expect("settable");
        let mut hosts = Vec::new();
        for action in actions {
            // The rings are the driver's: one that overruns them only stops the device.
            match action {
                Action::Packet { header, payload } if guest.has_room(TX) => {
                    guest.send_raw(&header, &vec![b'x'; payload]);
                }
                Action::Chain { queue, len, flags } if guest.has_room(queue) => {
                    guest.offer_chain(queue, 0, &[(buffer(queue, 0), len, flags)]);
                    guest.rig.kick(queue);
                }
                Action::Buffer { index } if guest.has_room(RX) => {
                    guest.offer(RX, index);
                    guest.rig.kick(RX);
                }
                Action::Client { port } => hosts.push(guest.client(port)),
                Action::HostWrites { len } => {
                    if let Some(host) = hosts.last_mut() {
                        host.set_nonblocking(true).expect("settable");
                        drop(std::io::Write::write(host, &vec![b'y'; len]));
                    }
                }
                Action::HostShutdown => {
                    if let Some(host) = hosts.last() {
                        drop(host.shutdown(std::net::Shutdown::Write));
                    }
                }
                Action::HostCloses => drop(hosts.pop()),
                _ => guest.rig.run(),
            }
            hosts.extend(listener.accept().map(|(host, _)| host));
        }
        guest.rig.run();
        prop_assert_eq!(guest.rig.status(), LIVE);
        // Afterwards it works as on the first day.
        guest.restart();
        guest_connection(&mut guest);
    }
}

#[test]
fn test_shutdown_of_unknown_connection_is_reset() {
    let mut guest = Guest::new();
    let header = Header {
        flags: SHUTDOWN_SEND,
        ..packet(7, 5, op::SHUTDOWN)
    };
    guest.send(header, &[]);
    guest.expect(op::RST);
}
