//! Connections of commands: limits, nonsense, and the end of the VM by order.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cachot_control::ToGuest;
use cachot_vmm::protocol::{self, MAX_PACKET};

use super::{TestClient, play, told};
use crate::keeper::request::{Answer, Request, Stop};

/// Connections that are kept at a time.
const MAX_CLIENTS: usize = 64;

#[test]
fn test_clients_beyond_the_limit_are_closed_and_room_is_made_by_those_that_go() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| guest.client()).collect();
        guest.client().closed();

        clients.pop();
        // The keeper may see a new one before it sees the old one's end.
        let is_kept = |client: &TestClient| {
            let signal = Request::Signal {
                signal: libc::SIGTERM,
            };
            protocol::send(client.0.as_fd(), &signal, &[]).is_ok()
                && protocol::receive::<Answer>(client.0.as_fd()).is_ok()
        };
        assert!((0..100).any(|_| is_kept(&guest.client())), "there is room");
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_clients_that_talk_nonsense_are_closed_and_others_are_served() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let too_long = vec![b' '; MAX_PACKET + 1];
        let nonsense: [&[u8]; 4] = [
            b"{",
            b"\"stop\"",
            br#"{"type":"stop","kill":1}"#,
            too_long.as_slice(),
        ];
        for packet in nonsense {
            let client = guest.client();
            rustix::io::write(&client.0, packet).expect("sent");
            client.closed();
        }
        let client = guest.client();
        let signal = libc::SIGTERM;
        client.ask(&Request::Signal { signal }, &[]);
        let (code, message) = client.refusal();
        assert_eq!(code, 125);
        assert!(message.contains("no command"), "{message}");
        // One connection, one request.
        client.ask(&Request::Stop(Stop::Kill), &[]);
        client.closed();
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_stop_lets_the_workload_end_by_itself() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        guest.client().ask(&Request::Stop(Stop::Terminate(60)), &[]);
        let sigterm = ToGuest::Signal {
            session: 1,
            signal: libc::SIGTERM,
        };
        assert_eq!(told(&mut control), sigterm);
        guest.end(&mut control, 5);
    });
    assert_eq!(played.code(), 5);
    assert!(played.ending.orderly);
}

#[test]
fn test_stop_kills_a_workload_that_stays() {
    let begun = Instant::now();
    let played = play(b"", |guest| {
        let mut control = guest.running();
        guest.client().ask(&Request::Stop(Stop::Terminate(1)), &[]);
        assert!(matches!(told(&mut control), ToGuest::Signal { .. }));
        // Until the keeper has ended.
        control.read_to_end(&mut Vec::new()).expect("closed");
    });
    assert_eq!(played.code(), 137);
    assert!(!played.ending.orderly);
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn test_stop_at_once_and_stop_of_a_guest_that_boots_wait_for_nothing() {
    for (boots, how, expected) in [
        (false, Stop::Kill, 137),
        (true, Stop::Kill, 137),
        (true, Stop::Terminate(60), 143),
    ] {
        let played = play(b"", move |guest| {
            let control = match boots {
                true => guest.control(),
                false => guest.running(),
            };
            guest.client().ask(&Request::Stop(how), &[]);
            let mut control = control;
            control.read_to_end(&mut Vec::new()).expect("closed");
        });
        assert_eq!(played.code(), expected, "{how:?}");
        assert!(!played.ending.orderly);
    }
}
