//! The guest's own life: orphans, orderly shutdown, a host that is not there.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::keeper::{DONE, Keeper, NO_HOST, drain, script};

#[test]
fn test_orphans_are_reaped() {
    let mut keeper = Keeper::boot();
    keeper.start(script(
        "(sleep 0.1 & sleep 0.1 &); sleep 0.5; echo ready; read x",
    ));
    let [stdio, _stderr] = keeper.streams();
    let mut line = [0; 6];
    std::io::Read::read_exact(&mut &stdio, &mut line).expect("read");

    let guest = keeper.guest().as_raw_pid();
    let children = fs::read_to_string(format!("/proc/{guest}/task/{guest}/children"));

    // The workload itself is the only one left.
    let children = children.expect("readable");
    assert_eq!(children.split_whitespace().count(), 1, "{children:?}");
}

#[test]
fn test_shutdown_lets_the_workload_end_by_itself() {
    let mut keeper = Keeper::boot();
    keeper.start(script(
        "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    let [stdio, _stderr] = keeper.streams();
    std::io::Read::read_exact(&mut &stdio, &mut [0; 6]).expect("read");

    kill_process(keeper.guest(), Signal::TERM).expect("sent");

    assert_eq!(drain(stdio), b"bye\n");
    assert_eq!(keeper.expect_exit(), 0);
}

#[test]
fn test_shutdown_kills_a_workload_that_stays() {
    let mut keeper = Keeper::boot();
    keeper.start(script(
        "trap '' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    let [stdio, _stderr] = keeper.streams();
    std::io::Read::read_exact(&mut &stdio, &mut [0; 6]).expect("read");
    let begun = Instant::now();

    kill_process(keeper.guest(), Signal::TERM).expect("sent");

    drain(stdio);
    assert!(begun.elapsed() >= Duration::from_secs(5));
    assert_eq!(keeper.expect_exit(), 137);
}

#[test]
fn test_shutdown_without_a_workload_is_immediate() {
    let mut keeper = Keeper::boot();
    kill_process(keeper.guest(), Signal::TERM).expect("sent");
    assert_eq!(keeper.wait(), DONE);
}

#[test]
fn test_host_that_never_answers_ends_the_guest() {
    let mut keeper = Keeper::boot_unheard();
    let begun = Instant::now();
    assert_eq!(keeper.wait(), NO_HOST);
    assert!(begun.elapsed() >= Duration::from_secs(10));
}
