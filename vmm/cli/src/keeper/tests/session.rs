//! The workload's session: streams, exit code, signals, time limits, guests and monitors that die.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use cachot_control::{Start, Stream, ToGuest, ToHost, WindowSize, read_frame, write_frame};
use cachot_vmm::protocol::{StopReason, ToKeeper};

use super::{exited, play, play_to, start, started};
use crate::keeper::life::SessionError;

#[test]
fn test_session_carries_all_three_streams_and_the_exit_code() {
    let played = play(b"typed by the user", |guest| {
        let mut control = guest.control();
        started(&mut control);
        let mut stdio = guest.stream(Stream::Stdio);
        let mut stderr = guest.stream(Stream::Stderr);
        let mut typed = String::new();
        stdio
            .read_to_string(&mut typed)
            .expect("input, and its end");
        write!(stdio, "heard: {typed}").expect("sent");
        stderr.write_all(b"complaint").expect("sent");
        drop((stdio, stderr));
        exited(&mut control, 42);
        guest.tell_keeper(&ToKeeper::Running);
    });
    assert_eq!(played.code(), 42);
    assert!(played.ending.orderly);
    assert_eq!(played.output, b"heard: typed by the user");
    assert_eq!(played.error, b"complaint");
}

#[test]
fn test_session_messages_that_arrive_together_are_all_heard() {
    let played = play(b"", |guest| {
        let mut control = guest.control();
        drop((guest.stream(Stream::Stdio), guest.stream(Stream::Stderr)));
        let mut frames = Vec::new();
        for message in [
            ToHost::Started { session: 1 },
            ToHost::Exited {
                session: 1,
                code: 5,
            },
        ] {
            write_frame(&mut frames, &message).expect("written");
        }
        let start: ToGuest = read_frame(&mut control).expect("a message");
        assert!(matches!(start, ToGuest::Start(_)), "{start:?}");
        control.write_all(&frames).expect("sent");
        control.shutdown(Shutdown::Write).expect("half-closed");
        // Until the keeper has closed its half.
        control.read_to_end(&mut Vec::new()).expect("closed");
    });
    assert_eq!(played.code(), 5);
    assert!(played.ending.orderly);
}

#[test]
fn test_session_command_that_does_not_start_is_reported_after_the_guests_goodbye() {
    let played = play(b"", |guest| {
        let mut control = guest.control();
        let start: ToGuest = read_frame(&mut control).expect("a message");
        assert!(matches!(start, ToGuest::Start(_)), "{start:?}");
        let failed = ToHost::Failed {
            session: 1,
            code: 127,
            message: "no such command".into(),
        };
        write_frame(&mut control, &failed).expect("sent");
        control
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("set");
        // The keeper waits, so that the guest's goodbye does not meet a closed connection.
        let still_open = control.read(&mut [0]);
        assert!(still_open.is_err(), "{still_open:?}");
        control.shutdown(Shutdown::Write).expect("half-closed");
        control.set_read_timeout(None).expect("set");
        control.read_to_end(&mut Vec::new()).expect("closed");
    });
    let result = played.ending.result;
    assert!(
        matches!(result, Err(SessionError::NotStarted { code: 127, .. })),
        "{result:?}"
    );
    assert!(played.ending.orderly);
}

#[test]
fn test_session_large_output_is_complete_although_the_guest_is_gone() {
    let sent: Vec<u8> = (0..=250).cycle().take(3 << 20).collect();
    let expected = sent.clone();
    let played = play(b"", move |guest| {
        let mut control = guest.control();
        started(&mut control);
        let mut stdio = guest.stream(Stream::Stdio);
        drop(guest.stream(Stream::Stderr));
        stdio.write_all(&sent).expect("sent");
        exited(&mut control, 0);
        guest.tell_keeper(&ToKeeper::Stopped {
            reason: StopReason::PowerOff,
        });
    });
    assert_eq!(played.code(), 0);
    assert!(played.output == expected, "{} bytes", played.output.len());
}

#[test]
fn test_session_back_pressure_stops_the_guest() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let slow = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let mut bytes = Vec::new();
        (&reader).read_to_end(&mut bytes).expect("readable");
        bytes.len()
    });
    let (ending, _) = play_to(&start(), None, b"", writer.as_fd(), |guest| {
        let mut control = guest.control();
        started(&mut control);
        let mut stdio = guest.stream(Stream::Stdio);
        drop(guest.stream(Stream::Stderr));
        stdio.set_nonblocking(true).expect("set");
        let chunk = [b'x'; 4096];
        let mut sent = 0_usize;
        while let Ok(len) = stdio.write(&chunk) {
            sent += len;
            thread::sleep(Duration::from_micros(100));
            assert!(sent < 4 << 20, "nobody reads, so it must have stopped");
        }
        stdio.set_nonblocking(false).expect("set");
        stdio
            .write_all(&vec![b'x'; (4 << 20) - sent])
            .expect("sent");
        exited(&mut control, 0);
    });
    drop(writer);
    assert_eq!(ending.result.expect("a code"), 0);
    assert_eq!(slow.join().expect("read"), 4 << 20);
}

#[test]
fn test_session_closed_output_sends_sigpipe_once_and_discards() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let (ending, _) = play_to(&start(), None, b"", writer, |guest| {
        let mut control = guest.control();
        started(&mut control);
        let mut stdio = guest.stream(Stream::Stdio);
        drop(guest.stream(Stream::Stderr));
        stdio.write_all(b"nobody reads this").expect("sent");
        let signal: ToGuest = read_frame(&mut control).expect("a message");
        let sigpipe = ToGuest::Signal {
            session: 1,
            signal: libc::SIGPIPE,
        };
        assert_eq!(signal, sigpipe);
        stdio.write_all(&vec![b'x'; 1 << 20]).expect("taken");
        exited(&mut control, 141);
    });
    assert_eq!(ending.result.expect("a code"), 141);
}

#[test]
fn test_session_full_disk_as_output_is_an_error() {
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("a full device");
    let (ending, _) = play_to(&start(), None, b"", full, |guest| {
        let mut control = guest.control();
        started(&mut control);
        let mut stdio = guest.stream(Stream::Stdio);
        stdio.write_all(b"x").expect("sent");
        // Until the keeper gives up.
        control.read_to_end(&mut Vec::new()).expect("closed");
    });
    let error = ending.result.expect_err("no room");
    assert!(
        error.to_string().contains("standard output") && !ending.orderly,
        "{error}"
    );
}

#[test]
fn test_session_timeout_terminates_the_command() {
    let output = tempfile::tempfile().expect("a file");
    let timeout = Some(Duration::from_millis(50));
    let (ending, _) = play_to(&start(), timeout, b"", output, |guest| {
        let mut control = guest.control();
        started(&mut control);
        let streams = [guest.stream(Stream::Stdio), guest.stream(Stream::Stderr)];
        let signal: ToGuest = read_frame(&mut control).expect("a message");
        let sigterm = ToGuest::Signal {
            session: 1,
            signal: libc::SIGTERM,
        };
        assert_eq!(signal, sigterm);
        drop(streams);
        exited(&mut control, 0);
    });
    assert_eq!(ending.result.expect("a code"), 124);
}

#[test]
fn test_session_signals_and_window_size_reach_the_guest() {
    let output = tempfile::tempfile().expect("a file");
    // This thread runs the session, and its signals are read by it.
    let session_thread = rustix::thread::gettid();
    let terminal = Start {
        terminal: Some(WindowSize { rows: 1, cols: 1 }),
        ..start()
    };
    let (ending, _) = play_to(&terminal, None, b"", output, move |guest| {
        let mut control = guest.control();
        started(&mut control);
        let stdio = guest.stream(Stream::Stdio);
        let resized = ToGuest::WindowSize {
            session: 1,
            size: WindowSize { rows: 9, cols: 9 },
        };
        // The size may have changed during the boot.
        let first: ToGuest = read_frame(&mut control).expect("a message");
        assert_eq!(first, resized);
        for (signal, expected) in [
            (libc::SIGWINCH, resized),
            (
                // One that nohup does not have ignored.
                libc::SIGUSR1,
                ToGuest::Signal {
                    session: 1,
                    signal: libc::SIGUSR1,
                },
            ),
        ] {
            // SAFETY: the thread exists, as it waits for this session, and the signal is blocked in it.
            let sent = unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    libc::getpid(),
                    session_thread.as_raw_pid(),
                    signal,
                )
            };
            assert_eq!(sent, 0);
            let message: ToGuest = read_frame(&mut control).expect("a message");
            assert_eq!(message, expected);
        }
        drop(stdio);
        exited(&mut control, 138);
    });
    assert_eq!(ending.result.expect("a code"), 138);
}

#[test]
fn test_session_guest_dies_is_reported_with_the_reason() {
    for (last_words, expected) in [
        (
            Some(ToKeeper::Stopped {
                reason: StopReason::Reset,
            }),
            "stopped before",
        ),
        (
            Some(ToKeeper::Failed {
                message: "no room for the kernel".into(),
            }),
            "no room for the kernel",
        ),
        (None, "the monitor died"),
    ] {
        for boots in [false, true] {
            let last_words = last_words.clone();
            let played = play(b"", move |guest| {
                if boots {
                    started(&mut guest.control());
                }
                if let Some(message) = last_words {
                    guest.tell_keeper(&message);
                }
            });
            let error = played.ending.result.expect_err("no code");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!played.ending.orderly);
        }
    }
}

#[test]
fn test_session_exit_code_is_heard_although_the_monitor_is_gone_already() {
    let played = play(b"", |guest| {
        let mut control = guest.control();
        started(&mut control);
        guest
            .stream(Stream::Stdio)
            .write_all(b"late")
            .expect("sent");
        drop(guest.stream(Stream::Stderr));
        exited(&mut control, 7);
    });
    assert_eq!((played.code(), played.output.as_slice()), (7, &b"late"[..]));
}

#[test]
fn test_session_strangers_on_the_stream_port_are_ignored() {
    let played = play(b"", |guest| {
        let mut control = guest.control();
        started(&mut control);
        let noise = |bytes: &[u8]| {
            let mut socket = UnixStream::connect(guest.folder.join("streams")).expect("connected");
            // The keeper may have closed it already.
            socket.write_all(bytes).ok();
            socket
        };
        let kept = [
            noise(b""),
            noise(b"\xff\xff\xff\xff"),
            noise(b"\x02\0\0\0{}"),
        ];
        guest
            .stream_of(2, Stream::Stdio)
            .write_all(b"another session's")
            .expect("sent");
        let mut stdio = guest.stream(Stream::Stdio);
        stdio.write_all(b"ours").expect("sent");
        let mut second = guest.stream(Stream::Stdio);
        second.write_all(b"not ours").ok();
        drop((stdio, second, guest.stream(Stream::Stderr)));
        exited(&mut control, 0);
        drop(kept);
    });
    assert_eq!(played.code(), 0);
    assert_eq!(played.output, b"ours");
}

#[test]
fn test_session_guest_that_talks_nonsense_is_refused() {
    let played = play(b"", |guest| {
        let mut control = UnixStream::connect(guest.folder.join("control")).expect("connected");
        control.write_all(&u32::MAX.to_le_bytes()).expect("sent");
        control.read_to_end(&mut Vec::new()).ok();
    });
    let result = played.ending.result;
    assert!(
        matches!(result, Err(SessionError::Protocol(_))),
        "{result:?}"
    );
}
