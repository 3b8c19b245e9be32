//! Further commands beside the workload: their own streams, numbers and ends.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use cachot_control::{Root, ToGuest, ToHost, WindowSize};
use cachot_init::sessions::MAX_COMMANDS;
use rustix::process::{Signal, kill_process};

use crate::keeper::{Keeper, drain, expect, further, script, until};

fn with_workload() -> Keeper {
    let mut keeper = Keeper::boot();
    keeper.start(script("echo ready; read x; exit 2"));
    keeper
}

#[test]
fn test_commands_have_their_own_streams_and_ends_and_the_workload_goes_on() {
    let mut keeper = with_workload();
    let [mut workload, _stderr] = keeper.streams();
    expect(&mut workload, "ready");
    keeper.start(further(7, "cat; exit 3"));
    let [seven, _err] = keeper.streams_of(7);
    keeper.start(further(8, "read x; echo got $x; exit 4"));
    let [mut eight, _err] = keeper.streams_of(8);

    std::io::Write::write_all(&mut eight, b"eight\n").expect("sent");
    assert_eq!(drain(eight), b"got eight\n");
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 8,
            code: 4
        }
    );
    std::io::Write::write_all(&mut &seven, b"seven").expect("sent");
    seven.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(drain(seven), b"seven");
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 7,
            code: 3
        }
    );

    workload.shutdown(Shutdown::Write).expect("half-closed");
    drain(workload);
    assert_eq!(keeper.expect_exit(), 2);
}

#[test]
fn test_command_signal_and_size_reach_only_it() {
    let mut keeper = with_workload();
    let [workload, _stderr] = keeper.streams();
    let mut terminal = further(
        5,
        "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done",
    );
    terminal.terminal = Some(WindowSize { rows: 1, cols: 2 });
    keeper.start(terminal);
    let [mut stdio] = keeper.streams_of(5);
    expect(&mut stdio, "ready");

    let size = WindowSize { rows: 30, cols: 70 };
    keeper.tell(&ToGuest::WindowSize { session: 5, size });
    expect(&mut stdio, "30 70");
    let signal = Signal::KILL.as_raw();
    keeper.tell(&ToGuest::Signal { session: 6, signal });
    keeper.tell(&ToGuest::Signal { session: 5, signal });

    drain(stdio);
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 5,
            code: 137
        }
    );
    drop(workload);
}

#[test]
fn test_command_that_fails_is_forgotten_and_its_number_is_free() {
    let mut keeper = with_workload();
    let [_workload, _stderr] = keeper.streams();
    let mut missing = further(9, "true");
    missing.argv = vec!["no-such-command".into()];

    assert_eq!(keeper.refusal(missing).0, 127);
    keeper.start(further(9, "exit 5"));
    let [stdio, _err] = keeper.streams_of(9);

    drain(stdio);
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 9,
            code: 5
        }
    );
}

#[test]
fn test_command_that_cannot_be_added_is_refused_and_says_why() {
    let mut keeper = with_workload();
    let [_workload, _stderr] = keeper.streams();
    keeper.start(further(2, "read x"));
    let [_stdio, _err] = keeper.streams_of(2);
    let mut root = further(3, "true");
    root.root = Some(Root::ReadOnly);
    let mut secret = further(3, "true");
    secret.secrets = vec!["GONE".into()];

    for (start, what) in [
        (further(1, "true"), "session 1 is there already"),
        (further(2, "true"), "session 2 is there already"),
        (root, "root file system"),
        (secret, "the secret GONE"),
    ] {
        let (code, message) = keeper.refusal(start);
        assert_eq!(code, 125);
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn test_commands_over_the_limit_are_refused_until_one_ends() {
    let mut keeper = with_workload();
    let [_workload, _stderr] = keeper.streams();
    let mut streams = Vec::new();
    for number in 100..100 + u32::try_from(MAX_COMMANDS).expect("few") {
        keeper.start(further(number, "read x"));
        streams.push(keeper.streams_of::<2>(number));
    }

    let (code, message) = keeper.refusal(further(7, "true"));
    assert_eq!(
        (code, message.contains("which is the limit")),
        (125, true),
        "{message}"
    );
    let [stdio, stderr] = streams.swap_remove(0);
    stdio.shutdown(Shutdown::Write).expect("half-closed");
    drain(stdio);
    drain(stderr);
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 100,
            code: 1
        }
    );

    keeper.start(further(7, "true"));
}

#[test]
fn test_next_keeper_is_told_of_every_session_but_the_forgotten() {
    let mut keeper = with_workload();
    let [workload, _stderr] = keeper.streams();
    keeper.start(further(2, "true"));
    drain(keeper.streams_of::<2>(2).into_iter().next().expect("two"));
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 2,
            code: 0
        }
    );
    keeper.start(further(4, "read x; exit 6"));
    let [four, _err] = keeper.streams_of(4);

    keeper.hang_up();
    four.shutdown(Shutdown::Write).expect("half-closed");
    drain(four);
    // It ends while nobody listens.
    std::thread::sleep(Duration::from_millis(300));
    keeper.meet();

    let mut news = vec![keeper.hear(), keeper.hear()];
    if news[1] == (ToHost::Started { session: 4 }) {
        news[1] = keeper.hear();
    }
    assert_eq!(
        news,
        [
            ToHost::Started { session: 1 },
            ToHost::Exited {
                session: 4,
                code: 6
            }
        ]
    );
    drop(workload);
}

#[test]
fn test_start_during_shutdown_is_refused() {
    let mut keeper = Keeper::boot();
    keeper.start(script(
        "trap 'sleep 0.5; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    let [mut workload, _stderr] = keeper.streams();
    expect(&mut workload, "ready");
    kill_process(keeper.guest(), Signal::TERM).expect("sent");
    std::thread::sleep(Duration::from_millis(100));

    let (code, message) = keeper.refusal(further(2, "true"));

    assert_eq!(
        (code, message.contains("shutting down")),
        (125, true),
        "{message}"
    );
    drain(workload);
    assert_eq!(keeper.expect_exit(), 3);
}

#[test]
fn test_shutdown_ends_commands_too() {
    let mut keeper = Keeper::boot();
    keeper.start(script(
        "trap 'sleep 0.5; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    let [mut workload, _stderr] = keeper.streams();
    expect(&mut workload, "ready");
    keeper.start(further(
        2,
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    let [mut stdio, _err] = keeper.streams_of(2);
    expect(&mut stdio, "ready");

    kill_process(keeper.guest(), Signal::TERM).expect("sent");

    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 2,
            code: 9
        }
    );
    drain(workload);
    assert_eq!(keeper.expect_exit(), 3);
}

#[test]
fn test_command_whose_streams_nobody_takes_is_hung_up() {
    let mut keeper = with_workload();
    let [_workload, _stderr] = keeper.streams();
    keeper.start(further(2, "while sleep 0.1; do echo more; done; exit 4"));
    let [mut stdio, stderr] = keeper.streams_of(2);
    expect(&mut stdio, "more");
    let begun = Instant::now();

    keeper.stop_taking_streams();
    drop((stdio, stderr));

    // The shell's echo fails with SIGPIPE.
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 2,
            code: 141
        }
    );
    assert!(
        begun.elapsed() >= Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn test_commands_without_a_keeper_are_killed_and_the_workload_is_not() {
    let mut keeper = with_workload();
    let [workload, _stderr] = keeper.streams();
    keeper.start(further(2, "echo $$; exec sleep 1000"));
    let [mut stdio, _err] = keeper.streams_of(2);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(&mut stdio), &mut line).expect("read");
    let process = format!("/proc/{}", line.trim());
    assert!(std::path::Path::new(&process).exists());

    keeper.hang_up_for_good();

    std::thread::sleep(Duration::from_secs(25));
    assert!(std::path::Path::new(&process).exists(), "too early");
    until("the command is gone", || {
        !std::path::Path::new(&process).exists()
    });
    keeper.listen_again();
    assert_eq!(keeper.hear(), ToHost::Started { session: 1 });
    workload.shutdown(Shutdown::Write).expect("half-closed");
    drain(workload);
    assert_eq!(keeper.expect_exit(), 2);
}
