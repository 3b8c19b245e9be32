//! Further commands: streams, exit codes, refusals, clients that go away.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::AsFd;

use cachot_control::{Start, Stream, ToGuest, ToHost, WindowSize};

use super::{Session, TestClient, content, exec, play, start, tell, told};
use crate::keeper::request::{Answer, Exec, Request};

/// Number of the first client, and so of its session.
const FIRST: u32 = 2;

/// Asks for a command whose output nobody looks at.
fn ask(client: &TestClient, exec: Exec) {
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .expect("a sink");
    client.ask(
        &Request::Exec(Box::new(exec)),
        &[null.as_fd(), null.as_fd()],
    );
}

/// The session that the guest is told to start.
fn session(message: ToGuest) -> u32 {
    match message {
        ToGuest::Start(start) => start.session,
        other => panic!("nothing to start: {other:?}"),
    }
}

#[test]
fn test_exec_carries_all_three_streams_and_the_exit_code() {
    let workload = Start {
        env: vec![("A".into(), "of the workload".into())],
        secrets: vec!["KEY".into(), "OTHER".into()],
        secret_env: vec!["KEY".into()],
        ..start()
    };
    let played = Session::new(workload, None).play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        let (input, mut typed) = pipe().expect("a pipe");
        typed.write_all(b"typed").expect("fits the pipe");
        drop(typed);
        let files = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        let command = Exec {
            argv: vec!["cat".into(), "-".into()],
            env: vec![("A".into(), "of the command".into())],
            user: Some("app".into()),
            workdir: Some("/srv".into()),
            stdin: true,
            ..exec()
        };
        let descriptors = [input.as_fd(), files[0].as_fd(), files[1].as_fd()];
        client.ask(&Request::Exec(Box::new(command)), &descriptors);

        let expected = Start {
            session: FIRST,
            root: None,
            argv: vec!["cat".into(), "-".into()],
            // The last one counts.
            env: vec![
                ("A".into(), "of the workload".into()),
                ("A".into(), "of the command".into()),
            ],
            secrets: vec!["KEY".into(), "OTHER".into()],
            secret_env: vec!["KEY".into()],
            user: Some("app".into()),
            workdir: Some("/srv".into()),
            terminal: None,
            stdin: true,
        };
        assert_eq!(told(&mut control), ToGuest::Start(expected));
        tell(&mut control, &ToHost::Started { session: FIRST });
        assert_eq!(client.answer(), Answer::Started);
        let mut stdio = guest.stream_of(FIRST, Stream::Stdio);
        let mut stderr = guest.stream_of(FIRST, Stream::Stderr);
        let mut heard = String::new();
        stdio
            .read_to_string(&mut heard)
            .expect("input, and its end");
        write!(stdio, "heard: {heard}").expect("sent");
        stderr.write_all(b"complaint").expect("sent");
        drop((stdio, stderr));
        let exited = ToHost::Exited {
            session: FIRST,
            code: 7,
        };
        tell(&mut control, &exited);
        assert_eq!(client.answer(), Answer::Exited { code: 7 });
        client.closed();
        let [output, error] = files.map(content);
        assert_eq!(
            (output.as_slice(), error.as_slice()),
            (&b"heard: typed"[..], &b"complaint"[..])
        );
        guest.end(&mut control, 3);
    });
    assert_eq!(played.code(), 3);
    assert_eq!(played.output, b"");
}

#[test]
fn test_exec_large_output_is_complete_when_the_exit_code_is_told() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        let (mut reader, writer) = pipe().expect("a pipe");
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .expect("a sink");
        let descriptors = [writer.as_fd(), null.as_fd()];
        client.ask(&Request::Exec(Box::new(exec())), &descriptors);
        drop(writer);
        assert_eq!(session(told(&mut control)), FIRST);
        tell(&mut control, &ToHost::Started { session: FIRST });
        let read = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).expect("readable");
            bytes.len()
        });
        let mut stdio = guest.stream_of(FIRST, Stream::Stdio);
        drop(guest.stream_of(FIRST, Stream::Stderr));
        stdio.write_all(&vec![b'x'; 1 << 20]).expect("sent");
        // The guest says so while much of it is on its way.
        let exited = ToHost::Exited {
            session: FIRST,
            code: 0,
        };
        tell(&mut control, &exited);
        drop(stdio);
        assert_eq!(client.answer(), Answer::Started);
        assert_eq!(client.answer(), Answer::Exited { code: 0 });
        assert_eq!(read.join().expect("read"), 1 << 20);
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_exec_before_the_workload_runs_is_refused() {
    let played = play(b"", |guest| {
        let mut control = guest.control();
        let client = guest.client();
        ask(&client, exec());
        let (code, message) = client.refusal();
        assert_eq!(code, 125);
        assert!(message.contains("wait until it is"), "{message}");
        super::started(&mut control);
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_exec_that_does_not_start_has_the_guests_code_and_message_on_one_line() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        for (number, (code, expected)) in (FIRST..).zip([(127, 127), (126, 126), (3, 125)]) {
            let client = guest.client();
            ask(&client, exec());
            assert_eq!(session(told(&mut control)), number);
            let failed = ToHost::Failed {
                session: number,
                code,
                message: "no\nsuch \x1b[1m".into(),
            };
            tell(&mut control, &failed);
            assert_eq!(client.refusal(), (expected, "no such  [1m".to_owned()));
            client.closed();
        }
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_exec_signals_and_window_sizes_reach_the_command_of_their_client() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let (one, other) = (guest.client(), guest.client());
        for (client, number) in [(&one, FIRST), (&other, FIRST + 1)] {
            ask(client, exec());
            assert_eq!(session(told(&mut control)), number);
            tell(&mut control, &ToHost::Started { session: number });
            assert_eq!(client.answer(), Answer::Started);
        }
        let signal = libc::SIGTERM;
        other.ask(&Request::Signal { signal }, &[]);
        let expected = ToGuest::Signal {
            session: FIRST + 1,
            signal,
        };
        assert_eq!(told(&mut control), expected);
        let size = WindowSize { rows: 3, cols: 4 };
        one.ask(&Request::WindowSize { size }, &[]);
        let session = FIRST;
        assert_eq!(told(&mut control), ToGuest::WindowSize { session, size });
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_exec_client_that_goes_away_hangs_its_command_up() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask(&client, exec());
        assert_eq!(session(told(&mut control)), FIRST);
        tell(&mut control, &ToHost::Started { session: FIRST });
        assert_eq!(client.answer(), Answer::Started);
        let mut stdio = guest.stream_of(FIRST, Stream::Stdio);
        drop(client);
        let hangup = ToGuest::Signal {
            session: FIRST,
            signal: libc::SIGHUP,
        };
        assert_eq!(told(&mut control), hangup);
        // What it still prints is taken, and goes nowhere.
        stdio.write_all(&vec![b'x'; 1 << 20]).expect("taken");
        drop((stdio, guest.stream_of(FIRST, Stream::Stderr)));
        let exited = ToHost::Exited {
            session: FIRST,
            code: 129,
        };
        tell(&mut control, &exited);
        guest.end(&mut control, 0);
    });
    assert_eq!((played.code(), played.output), (0, Vec::new()));
}

#[test]
fn test_exec_with_other_descriptors_than_it_needs_is_refused() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let null = File::open("/dev/null").expect("a file");
        let terminal = Exec {
            terminal: Some(WindowSize { rows: 1, cols: 1 }),
            ..exec()
        };
        for (command, given) in [(exec(), 0), (exec(), 1), (exec(), 3), (terminal, 2)] {
            let client = guest.client();
            let files = vec![null.as_fd(); given];
            client.ask(&Request::Exec(Box::new(command)), &files);
            let (code, message) = client.refusal();
            assert_eq!(code, 125);
            assert!(message.contains("standard streams"), "{message}");
        }
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_exec_more_commands_than_there_may_be_are_refused_until_one_has_ended() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let clients: Vec<_> = (0..32)
            .map(|_| {
                let client = guest.client();
                ask(&client, exec());
                assert!(matches!(told(&mut control), ToGuest::Start(_)));
                client
            })
            .collect();
        let late = guest.client();
        ask(&late, exec());
        let (_, message) = late.refusal();
        assert!(message.contains("too many commands"), "{message}");

        let failed = ToHost::Failed {
            session: FIRST,
            code: 127,
            message: "gone".into(),
        };
        tell(&mut control, &failed);
        clients[0].refusal();
        let next = guest.client();
        ask(&next, exec());
        assert!(matches!(told(&mut control), ToGuest::Start(_)));
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_exec_clients_hear_when_the_guest_is_lost() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask(&client, exec());
        assert_eq!(session(told(&mut control)), FIRST);
        drop(control);
        let (code, message) = client.refusal();
        assert_eq!(code, 125);
        assert!(message.contains("guest ended before"), "{message}");
    });
    assert!(played.ending.result.is_err());
}

#[test]
fn test_values_are_masked_in_what_workload_and_commands_print() {
    let value = "value-of-a-secret-0123456789";
    let played = Session::masking(&[value]).play(b"", move |guest| {
        let mut control = guest.running();
        let client = guest.client();
        let file = tempfile::tempfile().expect("a file");
        let descriptors = [file.as_fd(), file.as_fd()];
        client.ask(&Request::Exec(Box::new(exec())), &descriptors);
        assert_eq!(session(told(&mut control)), FIRST);
        tell(&mut control, &ToHost::Started { session: FIRST });
        assert_eq!(client.answer(), Answer::Started);
        for number in [FIRST, 1] {
            let mut stdio = guest.stream_of(number, Stream::Stdio);
            write!(stdio, "the key is {}", &value[..9]).expect("sent");
            write!(stdio, "{}, plainly", &value[9..]).expect("sent");
            drop((stdio, guest.stream_of(number, Stream::Stderr)));
            let exited = ToHost::Exited {
                session: number,
                code: 0,
            };
            tell(&mut control, &exited);
            if number == FIRST {
                assert_eq!(client.answer(), Answer::Exited { code: 0 });
            }
        }
        assert_eq!(content(file), b"the key is ***, plainly");
    });
    assert_eq!(played.output, b"the key is ***, plainly");
}
