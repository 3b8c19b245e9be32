//! Console output into a pipe that is full, or that nobody reads any more: it stops no vCPU.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{PipeReader, Read};
use std::os::unix::net::UnixListener;

use cachot_vmm::protocol::{API_SOCKET, FileRole, ToKeeper, ToMonitor};
use common::{Monitor, config, elf, eventually, file, kvm, print_forever};
use rustix::fs::OFlags;
use rustix::pipe::fcntl_setpipe_size;

const PAGE: usize = 4096;

/// A guest that prints for ever into a pipe of one page.
fn boot() -> (Monitor, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl_setpipe_size(&writer, PAGE).unwrap();
    rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    let monitor = Monitor::start();
    let api = UnixListener::bind(monitor.dir.path().join(API_SOCKET)).unwrap();
    let files = vec![
        (FileRole::Kvm, kvm()),
        (FileRole::Console, writer.into()),
        (FileRole::Kernel, file(&elf(&print_forever(b'x')))),
        (FileRole::ApiListener, api.into()),
    ];
    monitor.configure(config(), files);
    monitor.send(&ToMonitor::Boot);
    assert_eq!(monitor.message(), ToKeeper::Running);
    (monitor, reader)
}

/// Port accesses of the guest so far: a byte of output each.
fn printed(monitor: &Monitor) -> usize {
    let metrics = monitor.request("GET", "/v1/metrics", "").1;
    usize::try_from(metrics["exits"]["io"].as_u64().unwrap()).unwrap()
}

#[test]
fn test_full_pipe_drops_output_and_lets_the_guest_run_and_pause() {
    let (monitor, mut reader) = boot();

    eventually(|| printed(&monitor) > 2 * PAGE);

    assert_eq!(monitor.request("PUT", "/v1/pause", "").0, 204);
    let mut output = [0; PAGE];
    reader.read_exact(&mut output).unwrap();
    assert_eq!(output, [b'x'; PAGE]);
    // There is room again.
    assert_eq!(monitor.request("PUT", "/v1/resume", "").0, 204);
    reader.read_exact(&mut output).unwrap();
}

#[test]
fn test_broken_pipe_drops_output_and_lets_the_guest_run() {
    let (mut monitor, reader) = boot();
    drop(reader);
    let before = printed(&monitor);

    eventually(|| printed(&monitor) > before + PAGE);

    assert!(monitor.child.try_wait().unwrap().is_none());
}
