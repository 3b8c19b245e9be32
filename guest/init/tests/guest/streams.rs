//! Pipes, terminals, back-pressure, and connections that break.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use cachot_control::{ToGuest, ToHost, WindowSize};
use rustix::process::Signal;

use crate::keeper::{Keeper, command, drain, expect, script};

fn terminal(mut start: cachot_control::Start) -> cachot_control::Start {
    start.terminal = Some(WindowSize { rows: 24, cols: 80 });
    start
}

#[test]
fn test_pipes_keep_output_and_error_apart() {
    let ran = Keeper::boot().run(script("echo out; echo err >&2"), b"");
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn test_pipes_end_of_input_reaches_the_workload() {
    let input = "line\n".repeat(300_000);
    let ran = Keeper::boot().run(command(&["cat"]), input.as_bytes());
    assert_eq!(ran.code, 0);
    assert!(ran.stdout == input, "{} bytes came back", ran.stdout.len());
}

#[test]
fn test_pipes_input_goes_on_after_the_output_has_ended() {
    let mut keeper = Keeper::boot();
    keeper.start(script("exec >&-; wc -c >&2"));
    let [mut stdio, stderr] = keeper.streams();

    assert_eq!(stdio.read(&mut [0]).expect("readable"), 0);
    stdio.write_all(b"12345").expect("sent");
    stdio
        .shutdown(std::net::Shutdown::Write)
        .expect("half-closed");

    assert_eq!(drain(stderr), b"5\n");
    assert_eq!(keeper.expect_exit(), 0);
}

#[test]
fn test_pipes_without_input_read_dev_null() {
    let mut start = script("readlink /proc/self/fd/0; cat");
    start.stdin = false;
    assert_eq!(Keeper::boot().run(start, b"").stdout, "/dev/null\n");
}

#[test]
fn test_pipes_workload_that_stops_reading_is_no_error() {
    let input = vec![b'x'; 100_000];
    let ran = Keeper::boot().run(script("head -c 1 >/dev/null; exec <&-; sleep 0.2"), &input);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn test_pipes_output_is_complete_before_the_exit_is_told() {
    let mut keeper = Keeper::boot();
    keeper.start(script("head -c 5000000 /dev/zero; exit 3"));
    let [stdio, _stderr] = keeper.streams();

    std::thread::sleep(Duration::from_millis(400));

    assert_eq!(drain(stdio).len(), 5_000_000);
    assert_eq!(keeper.expect_exit(), 3);
}

#[test]
fn test_pipes_held_by_a_descendant_do_not_delay_the_exit() {
    let begun = Instant::now();
    let ran = Keeper::boot().run(script("sleep 60 & echo $!"), b"");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let pid = ran.stdout.trim().parse().expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("not 0");
    rustix::process::kill_process(pid, Signal::KILL).expect("it still runs");
}

#[test]
fn test_pipes_signal_passes_a_full_input() {
    let mut keeper = Keeper::boot();
    keeper.start(script(
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    let [mut stdio, _stderr] = keeper.streams();
    expect(&mut stdio, "ready");
    stdio.set_nonblocking(true).expect("set");
    let mut stuck = 0;
    while stuck < 20 {
        if stdio.write_all(&[0; 4096]).is_ok() {
            stuck = 0;
        } else {
            stuck += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    keeper.signal(Signal::TERM);

    assert_eq!(keeper.expect_exit(), 9);
}

#[test]
fn test_terminal_has_its_size_and_is_the_controlling_one() {
    let ran = Keeper::boot().run(
        terminal(script(
            "tty && stty size </dev/tty && [ -t 2 ] && echo $TERM",
        )),
        b"",
    );
    assert!(ran.stdout.starts_with("/dev/pts/"), "{ran:?}");
    assert!(ran.stdout.ends_with("\r\n24 80\r\nxterm\r\n"), "{ran:?}");
}

#[test]
fn test_terminal_resize_and_interrupt_reach_the_workload() {
    let mut keeper = Keeper::boot();
    keeper.start(terminal(script(
        "trap 'stty size' WINCH; trap 'exit 5' INT; echo ready; while :; do sleep 0.1; done",
    )));
    let [mut stdio] = keeper.streams();
    expect(&mut stdio, "ready");

    let size = WindowSize {
        rows: 50,
        cols: 132,
    };
    keeper.tell(&ToGuest::WindowSize { session: 1, size });
    expect(&mut stdio, "50 132");
    stdio.write_all(b"\x03").expect("sent");

    drain(stdio);
    assert_eq!(keeper.expect_exit(), 5);
}

#[test]
fn test_terminal_end_of_input_is_its_end_of_file_character() {
    let ran = Keeper::boot().run(terminal(script("stty -echo; echo go; cat; echo end")), b"");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "go\r\nend\r\n"));
}

#[test]
fn test_broken_connections_are_opened_again_and_nothing_is_lost() {
    let mut keeper = Keeper::boot();
    keeper.start(script(
        "read a; echo got $a; read b; echo got $b >&2; cat; exit 4",
    ));
    let [mut stdio, stderr] = keeper.streams();
    stdio.write_all(b"one\n").expect("sent");
    expect(&mut stdio, "got one");

    keeper.hang_up();
    drop((stdio, stderr));
    keeper.meet();
    assert_eq!(keeper.hear(), ToHost::Started { session: 1 });
    // Nothing is to be written to standard error yet, so its loss shows only then.
    let [mut stdio] = keeper.streams();
    stdio.write_all(b"two\n").expect("sent");
    let [mut stderr] = keeper.streams();
    expect(&mut stderr, "got two");
    stdio.write_all(b"three").expect("sent");
    stdio
        .shutdown(std::net::Shutdown::Write)
        .expect("half-closed");

    assert_eq!(drain(stdio), b"three");
    assert_eq!(drain(stderr), b"\n");
    assert_eq!(keeper.expect_exit(), 4);
}

#[test]
fn test_broken_connection_outcome_is_told_to_the_next_keeper() {
    let mut keeper = Keeper::boot();
    keeper.start(script("sleep 0.3; echo late; exit 6"));
    let [stdio, _stderr] = keeper.streams();

    keeper.hang_up();
    assert_eq!(drain(stdio), b"late\n");
    std::thread::sleep(Duration::from_millis(300));
    keeper.meet();

    loop {
        match keeper.hear() {
            ToHost::Started { session: 1 } => {}
            ToHost::Exited { session: 1, code } => break assert_eq!(code, 6),
            other => panic!("{other:?}"),
        }
    }
}
