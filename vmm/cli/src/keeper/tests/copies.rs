//! A copy of a guest: it becomes one of its own before its workload counts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use cachot_control::{Renewal, Stream, ToGuest, ToHost};

use super::{Guest, Played, Session, exited, start, started, tell, told};
use crate::keeper::life::{Life, SessionError};

const STARTED: ToHost = ToHost::Started { session: 1 };

fn renewal() -> Renewal {
    Renewal {
        entropy: vec![7; Renewal::ENTROPY_LEN],
        realtime_ns: 1,
        hostname: "copy".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
    }
}

fn renewed(workload: bool) -> ToHost {
    ToHost::Renewed {
        failures: Vec::new(),
        workload,
    }
}

/// The guest is told what makes it one of its own, with the time that it is by then.
fn is_renewed(control: &mut UnixStream) {
    match told(control) {
        ToGuest::Renew(told) => {
            assert!(told.realtime_ns > renewal().realtime_ns);
            let realtime_ns = renewal().realtime_ns;
            assert_eq!(
                Renewal {
                    realtime_ns,
                    ..told
                },
                renewal()
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Plays a copy; `complete` says that the command to start is known.
fn play_copy(complete: bool, guest: impl FnOnce(Guest) + Send + 'static) -> Played {
    let now = Instant::now();
    let session = Session {
        life: Life::restored(start(), complete, renewal(), None, now),
        ..Session::new(start(), None)
    };
    session.play(b"", guest)
}

#[test]
fn test_copy_of_a_running_workload_is_renewed_and_goes_on() {
    let played = play_copy(true, |guest| {
        let mut control = guest.control();
        tell(&mut control, &STARTED);
        is_renewed(&mut control);
        tell(&mut control, &renewed(true));
        let mut stdio = guest.stream(Stream::Stdio);
        stdio.write_all(b"still here").expect("sent");
        drop((stdio, guest.stream(Stream::Stderr)));
        exited(&mut control, 3);
    });
    assert_eq!(
        (played.code(), played.output.as_slice()),
        (3, &b"still here"[..])
    );
    assert!(played.ending.orderly);
}

#[test]
fn test_copy_of_a_workload_that_had_ended_or_had_not_started_has_its_end() {
    for (news, expected) in [
        (
            vec![
                STARTED,
                ToHost::Exited {
                    session: 1,
                    code: 4,
                },
            ],
            Ok(4),
        ),
        (
            vec![ToHost::Failed {
                session: 1,
                code: 127,
                message: "no such command".into(),
            }],
            Err("no such command".to_owned()),
        ),
    ] {
        let played = play_copy(true, move |guest| {
            let mut control = guest.control();
            for news in &news {
                tell(&mut control, news);
            }
            is_renewed(&mut control);
            tell(&mut control, &renewed(true));
            drop((guest.stream(Stream::Stdio), guest.stream(Stream::Stderr)));
        });
        let result = played.ending.result.map_err(|error| error.to_string());
        assert_eq!(result, expected);
    }
}

#[test]
fn test_copy_without_a_workload_starts_it() {
    let played = play_copy(true, |guest| {
        let mut control = guest.control();
        is_renewed(&mut control);
        tell(&mut control, &renewed(false));
        started(&mut control);
        guest.end(&mut control, 6);
    });
    assert_eq!(played.code(), 6);
}

#[test]
fn test_copy_without_a_workload_that_is_known_is_ended() {
    let played = play_copy(false, |guest| {
        let mut control = guest.control();
        is_renewed(&mut control);
        tell(&mut control, &renewed(false));
        control.read_to_end(&mut Vec::new()).expect("closed");
    });
    let error = played.ending.result.expect_err("no command");
    assert!(matches!(error, SessionError::Withheld), "{error}");
    assert!(!error.to_string().contains("  "), "{error}");
}

#[test]
fn test_copy_that_cannot_be_renewed_is_ended() {
    let played = play_copy(true, |guest| {
        let mut control = guest.control();
        tell(&mut control, &STARTED);
        is_renewed(&mut control);
        let failed = ToHost::Renewed {
            failures: vec!["no\nclock".into(), "no entropy".into()],
            workload: true,
        };
        tell(&mut control, &failed);
        control.read_to_end(&mut Vec::new()).expect("closed");
    });
    let error = played.ending.result.expect_err("not renewed").to_string();
    assert!(error.contains("no clock; no entropy"), "{error}");
    assert!(!played.ending.orderly);
}

#[test]
fn test_copy_whose_connection_breaks_is_renewed_on_the_next_one() {
    let played = play_copy(true, |guest| {
        let mut first = guest.control();
        tell(&mut first, &STARTED);
        is_renewed(&mut first);
        drop(first);
        let mut second = guest.control();
        tell(&mut second, &STARTED);
        is_renewed(&mut second);
        tell(&mut second, &renewed(true));
        guest.end(&mut second, 8);
    });
    assert_eq!(played.code(), 8);
}
