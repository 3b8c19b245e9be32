//! The state machine of one connection, without queues.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vm_memory::VolatileSlice;

use super::guest::packet;
use crate::virtio::vsock::backlog::CAPACITY;
use crate::virtio::vsock::connection::{Connection, End};
use crate::virtio::vsock::packet::{
    Header, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op,
};

const PORTS: Ports = Ports { guest: 7, host: 9 };

/// More than the socket's own buffer takes.
const MUCH: usize = 1 << 20;

fn header(op: u16) -> Header {
    packet(PORTS.guest, PORTS.host, op)
}

fn shutdown(flags: u32) -> Header {
    Header {
        flags,
        ..header(op::SHUTDOWN)
    }
}

/// A connection that the guest has asked for with this credit and that is established.
fn established(buf_alloc: u32) -> (Connection, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a pair");
    near.set_nonblocking(true).expect("settable");
    let request = Header {
        buf_alloc,
        ..header(op::REQUEST)
    };
    let mut connection = Connection::from_guest(PORTS, near, &request);
    assert_eq!(next(&mut connection).expect("a reply").op, op::RESPONSE);
    (connection, far)
}

fn next(connection: &mut Connection) -> Option<Header> {
    let mut space = vec![0; 4052];
    let space = [VolatileSlice::from(space.as_mut_slice())];
    connection.next_packet(&space).expect("it goes on")
}

fn send(connection: &mut Connection, len: usize) -> Result<(), End> {
    let mut bytes = vec![b'x'; len];
    let header = Header {
        len: u32::try_from(len).expect("short"),
        ..header(op::RW)
    };
    connection.handle(&header, &[VolatileSlice::from(bytes.as_mut_slice())])
}

fn tell(connection: &mut Connection, header: &Header) -> Result<(), End> {
    connection.handle::<()>(header, &[])
}

/// Sends until the connection buffers something; answers how many bytes in total.
fn fill_socket(connection: &mut Connection) -> usize {
    let mut total = 0;
    while !connection.wants_to_write() {
        send(connection, 1000).expect("within credit");
        total += 1000;
        assert!(total < MUCH);
    }
    total
}

#[test]
fn test_guest_over_its_credit_is_reset() {
    let (mut connection, _far) = established(0);
    fill_socket(&mut connection);

    let result = (0..=CAPACITY / 1000).try_for_each(|_| send(&mut connection, 1000));

    assert_eq!(result, Err(End::Reset));
}

#[test]
fn test_guest_learns_of_credit_in_time() {
    let (mut connection, mut far) = established(1 << 20);
    assert_eq!(next(&mut connection), None);
    let mut taken = 0;
    let update = loop {
        send(&mut connection, 1000).expect("within credit");
        taken += 1000;
        far.read_exact(&mut [0; 1000]).expect("passed on at once");
        if let Some(header) = next(&mut connection) {
            break header;
        }
    };
    assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, taken));
    assert_eq!(update.buf_alloc, CAPACITY);
    assert!(taken <= CAPACITY / 2);
}

#[test]
fn test_credit_request_is_answered() {
    let (mut connection, _far) = established(100);
    assert_eq!(next(&mut connection), None);
    tell(&mut connection, &header(op::CREDIT_REQUEST)).expect("it goes on");
    let update = next(&mut connection).expect("an answer");
    assert_eq!((update.op, update.buf_alloc), (op::CREDIT_UPDATE, CAPACITY));
    assert_eq!(next(&mut connection), None);
}

#[test]
fn test_no_guest_credit_is_asked_for_once() {
    let (mut connection, mut far) = established(0);
    far.write_all(b"data").expect("written");

    assert_eq!(
        next(&mut connection).expect("a request").op,
        op::CREDIT_REQUEST
    );
    assert!(!connection.has_packet());
    let none = Header {
        buf_alloc: 0,
        ..header(op::CREDIT_UPDATE)
    };
    tell(&mut connection, &none).expect("it goes on");
    assert!(
        !connection.has_packet(),
        "no credit yet, and the guest knows"
    );
    let some = Header {
        buf_alloc: 3,
        ..none
    };
    tell(&mut connection, &some).expect("it goes on");

    let data = next(&mut connection).expect("data");
    assert_eq!((data.op, data.len), (op::RW, 3));
}

#[test]
fn test_impossible_guest_counters_give_no_credit() {
    let (mut connection, mut far) = established(4);
    far.write_all(b"datadata").expect("written");
    assert_eq!(next(&mut connection).expect("data").len, 4);

    for (fwd_cnt, buf_alloc) in [(u32::MAX, 4), (5, 4), (0x8000_0000, 4), (0, 3), (0, 0)] {
        let update = Header {
            buf_alloc,
            fwd_cnt,
            ..header(op::CREDIT_UPDATE)
        };
        tell(&mut connection, &update).expect("it goes on");
        let packet = next(&mut connection);
        assert!(
            packet.is_none_or(|packet| packet.op == op::CREDIT_REQUEST),
            "{fwd_cnt}"
        );
    }
    let update = Header {
        buf_alloc: 4,
        fwd_cnt: 3,
        ..header(op::CREDIT_UPDATE)
    };
    tell(&mut connection, &update).expect("it goes on");
    assert_eq!(next(&mut connection).expect("data").len, 3);
}

#[test]
fn test_older_guest_counter_takes_no_credit_back() {
    let (mut connection, mut far) = established(4);
    far.write_all(b"datadata").expect("written");
    assert_eq!(next(&mut connection).expect("data").len, 4);
    for fwd_cnt in [4, 0] {
        let update = Header {
            buf_alloc: 4,
            fwd_cnt,
            ..header(op::CREDIT_UPDATE)
        };
        tell(&mut connection, &update).expect("it goes on");
    }
    assert_eq!(next(&mut connection).expect("data").len, 4);
}

#[test]
fn test_guest_breaks_the_protocol_is_reset() {
    for (name, packets) in [
        (
            "data after the end",
            vec![shutdown(SHUTDOWN_SEND), header(op::RW)],
        ),
        ("second request", vec![header(op::REQUEST)]),
        ("response to nothing", vec![header(op::RESPONSE)]),
        ("operation 0", vec![header(0)]),
        ("unknown operation", vec![header(8)]),
    ] {
        let (mut connection, _far) = established(0);
        let result = packets
            .iter()
            .try_for_each(|packet| tell(&mut connection, packet));
        assert_eq!(result, Err(End::Reset), "{name}");
    }
}

#[test]
fn test_requested_connection_takes_only_an_answer() {
    for (sent_request, packet, result) in [
        (true, header(op::RESPONSE), Ok(())),
        (true, header(op::RST), Err(End::Known)),
        (true, header(op::RW), Err(End::Reset)),
        (true, shutdown(SHUTDOWN_SEND), Err(End::Reset)),
        (false, header(op::RESPONSE), Err(End::Reset)),
    ] {
        let (near, _far) = UnixStream::pair().expect("a pair");
        let mut connection = Connection::from_host(PORTS, near, Instant::now());
        if sent_request {
            assert_eq!(next(&mut connection).expect("a request").op, op::REQUEST);
        }
        assert_eq!(tell(&mut connection, &packet), result, "{packet:?}");
    }
}

#[test]
fn test_guest_done_sending_waits_for_the_backlog() {
    let (mut connection, mut far) = established(0);
    let total = fill_socket(&mut connection);
    tell(&mut connection, &shutdown(SHUTDOWN_SEND)).expect("it goes on");
    let mut heard = 0;
    let mut part = vec![0; 8192];
    while connection.wants_to_write() {
        heard += far.read(&mut part).expect("data, not the end");
        connection.host_event(false, true, false);
    }
    far.set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .expect("settable");
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).expect("the end of file comes");
    assert_eq!(heard + rest.len(), total);
}

#[test]
fn test_guest_gone_keeps_backlog_only_if_it_was_done() {
    let (mut connection, mut far) = established(0);
    let total = fill_socket(&mut connection);
    tell(&mut connection, &shutdown(SHUTDOWN_SEND)).expect("it goes on");
    assert_eq!(tell(&mut connection, &header(op::RST)), Err(End::Known));
    let mut drain = connection.into_drain().expect("bytes to deliver");
    let mut heard = vec![0; total];
    far.set_nonblocking(true).expect("settable");
    let mut count = far.read(&mut heard).expect("data");
    while !drain.flush() {
        count += far.read(&mut heard[count..]).expect("data");
    }
    drop(drain);
    count += far.read_to_end(&mut Vec::new()).map_or(0, |rest| rest);
    assert_eq!(count, total);

    let (mut connection, _far) = established(0);
    fill_socket(&mut connection);
    assert_eq!(tell(&mut connection, &header(op::RST)), Err(End::Known));
    assert!(connection.into_drain().is_none());
}

#[test]
fn test_both_directions_over_ends_the_connection() {
    let (mut connection, far) = established(100);
    far.shutdown(Shutdown::Write).expect("half-closed");
    let told = next(&mut connection).expect("the end of file");
    assert_eq!((told.op, told.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    assert!(!connection.is_over());

    tell(&mut connection, &shutdown(SHUTDOWN_SEND)).expect("it goes on");

    let told = next(&mut connection).expect("the end of it all");
    assert_eq!((told.op, told.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    assert!(connection.is_over());
}

#[test]
fn test_both_directions_over_guest_first_ends_the_connection() {
    let (mut connection, far) = established(100);
    tell(&mut connection, &shutdown(SHUTDOWN_SEND)).expect("it goes on");
    assert_eq!(next(&mut connection), None);

    far.shutdown(Shutdown::Write).expect("half-closed");
    connection.host_event(true, false, false);

    let told = next(&mut connection).expect("the end of it all");
    assert_eq!((told.op, told.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    assert!(connection.is_over());
}

#[test]
fn test_guest_shutdown_flags_add_up() {
    let (mut connection, mut far) = established(100);
    tell(&mut connection, &shutdown(SHUTDOWN_RECEIVE)).expect("it goes on");
    assert!(far.write_all(b"refused").is_err());
    send(&mut connection, 3).expect("it still sends");
    let result = tell(&mut connection, &shutdown(SHUTDOWN_SEND));
    assert_eq!(result, Err(End::Reset), "the reply to a full shutdown");
    drop(connection);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).expect("no connection reset");
    assert_eq!(heard, b"xxx");
}

#[test]
fn test_host_stops_reading_tells_the_guest() {
    let (mut connection, far) = established(100);
    far.shutdown(Shutdown::Read).expect("half-closed");
    send(&mut connection, 3).expect("lost, but allowed");
    let told = next(&mut connection).expect("a shutdown");
    assert_eq!((told.op, told.flags), (op::SHUTDOWN, SHUTDOWN_RECEIVE));
    assert_eq!(told.fwd_cnt, 3);
}
