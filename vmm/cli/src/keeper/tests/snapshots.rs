//! Snapshots: the workload brought to rest and let go on, the order to the monitor, what the command hears.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use cachot_control::{ToGuest, ToHost, VERSION};
use cachot_snapshot::image::{CpuBaseline, Digest, Machine, OnResidue as Policy, Receipt};
use cachot_vmm::protocol::{
    OnResidue, SNAPSHOT_FILES, SnapshotProgress, SnapshotReport, SnapshotRequest, SnapshotStep,
    ToKeeper, ToMonitor,
};

use super::{TestClient, console, listen_for_packets, play, start, tell, told};
use crate::keeper::frames::Incoming;
use crate::keeper::life::Life;
use crate::keeper::request::{Answer, Request, Stop};
use crate::keeper::streams::Stdio;
use crate::keeper::{Control, Ends, Keeper};
use crate::signals::Signals;

const FREEZE_LIMIT: Duration = Duration::from_secs(15);

fn request() -> SnapshotRequest {
    SnapshotRequest {
        on_residue: OnResidue::Redact,
        commitment_key: [7; 32],
        hold: false,
    }
}

/// Of a machine that is then to be ended.
fn holding() -> SnapshotRequest {
    SnapshotRequest {
        hold: true,
        ..request()
    }
}

fn report() -> Box<SnapshotReport> {
    Box::new(SnapshotReport {
        machine: Machine {
            cpus: 1,
            memory: Vec::new(),
            devices: Vec::new(),
            cpu: CpuBaseline {
                vendor: "AuthenticAMD".into(),
                features: BTreeSet::new(),
                fingerprint: Digest::of(b""),
            },
        },
        receipt: Receipt {
            scanner: "test".into(),
            policy: Policy::Redact,
            residue_kept: false,
            needles: 1,
            degenerate_windows: 0,
            short_values: Vec::new(),
            bytes_scanned: 1,
            hits: Vec::new(),
            redactions: Vec::new(),
            residue: Vec::new(),
            not_proved: Vec::new(),
        },
        paused_us: 1500,
    })
}

/// Asks for a snapshot into new files.
fn ask(client: &TestClient, quiesce: bool) {
    ask_for(client, request(), quiesce);
}

fn ask_for(client: &TestClient, request: SnapshotRequest, quiesce: bool) {
    let files = SNAPSHOT_FILES.map(|_| tempfile::tempfile().expect("a file"));
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    client.ask(&Request::Snapshot { request, quiesce }, &files);
}

fn ordered() -> (ToMonitor, usize) {
    (ToMonitor::Snapshot(request()), SNAPSHOT_FILES.len())
}

fn frozen(failure: Option<&str>) -> ToHost {
    ToHost::Frozen {
        failure: failure.map(str::to_owned),
    }
}

#[test]
fn test_snapshot_order_progress_and_report_are_passed_on() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask(&client, false);
        assert_eq!(guest.ordered(), ordered());
        let progress = SnapshotProgress {
            step: SnapshotStep::Copy,
            done: 5,
            total: 9,
            hits: 2,
            needles: 1,
        };
        guest.tell_keeper(&ToKeeper::SnapshotProgress(progress));
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        assert_eq!(client.answer(), Answer::Progress(progress));
        assert_eq!(client.answer(), Answer::Written(report()));
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_snapshot_at_rest_is_ordered_once_the_workload_rests_and_then_lets_it_go_on() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask(&client, true);
        assert_eq!(told(&mut control), ToGuest::Freeze);
        assert!(!guest.is_ordered());
        tell(&mut control, &frozen(None));
        assert_eq!(guest.ordered(), ordered());
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        assert_eq!(told(&mut control), ToGuest::Thaw);
        assert_eq!(client.answer(), Answer::Written(report()));
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_snapshot_of_a_workload_that_does_not_come_to_rest_is_refused() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask(&client, true);
        assert_eq!(told(&mut control), ToGuest::Freeze);
        tell(&mut control, &frozen(Some("it is\nbusy")));
        assert_eq!(told(&mut control), ToGuest::Thaw);
        let (code, message) = client.refusal();
        assert_eq!(code, 125);
        assert!(
            message.ends_with("brought to rest: it is busy"),
            "{message}"
        );
        assert!(!guest.is_ordered());
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_snapshot_before_the_workload_runs_is_taken_only_without_rest() {
    let played = play(b"", |guest| {
        let mut control = guest.control();
        let client = guest.client();
        ask(&client, true);
        let (_, message) = client.refusal();
        assert!(
            message.contains("leave out --quiesce-workload"),
            "{message}"
        );

        let client = guest.client();
        ask(&client, false);
        assert_eq!(guest.ordered(), ordered());
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        assert_eq!(client.answer(), Answer::Written(report()));
        super::started(&mut control);
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_snapshot_during_another_one_is_refused_and_can_be_taken_after_it() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let (first, second) = (guest.client(), guest.client());
        ask(&first, false);
        assert_eq!(guest.ordered(), ordered());
        ask(&second, true);
        let (_, message) = second.refusal();
        assert!(message.contains("another snapshot"), "{message}");
        assert!(!guest.is_ordered());

        let message = "no room".to_owned();
        guest.tell_keeper(&ToKeeper::SnapshotFailed { message });
        assert_eq!(first.refusal(), (125, "no room".to_owned()));
        let third = guest.client();
        ask(&third, false);
        assert_eq!(guest.ordered(), ordered());
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_snapshot_whose_command_goes_away_lets_the_workload_go_on() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask(&client, true);
        assert_eq!(told(&mut control), ToGuest::Freeze);
        drop(client);
        tell(&mut control, &frozen(None));
        assert_eq!(guest.ordered(), ordered());
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        assert_eq!(told(&mut control), ToGuest::Thaw);

        // And the next one is served.
        let client = guest.client();
        ask(&client, false);
        assert_eq!(guest.ordered(), ordered());
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        assert_eq!(client.answer(), Answer::Written(report()));
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_machine_that_is_held_is_ended_by_the_command_that_it_is_held_for() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask_for(&client, holding(), true);
        assert_eq!(told(&mut control), ToGuest::Freeze);
        tell(&mut control, &frozen(None));
        assert_eq!(guest.ordered().0, ToMonitor::Snapshot(holding()));
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        assert_eq!(client.answer(), Answer::Written(report()));
        let other = guest.client();
        ask(&other, false);
        let (_, message) = other.refusal();
        assert!(message.contains("another snapshot"), "{message}");
        assert!(!guest.is_ordered(), "it is still held");
        client.ask(&Request::Stop(Stop::Kill), &[]);
        // Neither released nor thawed: the connection ends.
        let mut rest = Vec::new();
        control.read_to_end(&mut rest).expect("closed");
        assert!(rest.is_empty(), "{rest:?}");
    });
    assert_eq!(played.code(), 137);
}

#[test]
fn test_machine_that_is_held_goes_on_when_its_command_goes_away() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        // While it is being saved, and afterwards.
        for early in [true, false] {
            let mut client = Some(guest.client());
            ask_for(client.as_ref().expect("it is there"), holding(), true);
            assert_eq!(told(&mut control), ToGuest::Freeze);
            tell(&mut control, &frozen(None));
            assert_eq!(guest.ordered().0, ToMonitor::Snapshot(holding()));
            if early {
                client = None;
            }
            guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
            if let Some(client) = client {
                assert_eq!(client.answer(), Answer::Written(report()));
                assert!(!guest.is_ordered(), "it is held");
            }
            assert_eq!(guest.ordered().0, ToMonitor::Release);
            assert_eq!(told(&mut control), ToGuest::Thaw);
        }
        // One that fails is let go by the monitor.
        let client = guest.client();
        ask_for(&client, holding(), false);
        assert_eq!(guest.ordered().0, ToMonitor::Snapshot(holding()));
        let message = "no room".to_owned();
        guest.tell_keeper(&ToKeeper::SnapshotFailed { message });
        client.refusal();
        drop(client);
        assert!(!guest.is_ordered());
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_command_may_end_the_machine_over_its_connection_only_while_it_is_held() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        let client = guest.client();
        ask(&client, false);
        assert_eq!(guest.ordered(), ordered());
        client.ask(&Request::Stop(Stop::Kill), &[]);
        client.closed();
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        guest.end(&mut control, 0);
    });
    assert_eq!(played.code(), 0);
}

#[test]
fn test_snapshot_that_nobody_asked_for_is_an_error_of_the_monitor() {
    let played = play(b"", |guest| {
        let mut control = guest.running();
        guest.tell_keeper(&ToKeeper::SnapshotWritten(report()));
        control.read_to_end(&mut Vec::new()).expect("closed");
    });
    let error = played.ending.result.expect_err("no code").to_string();
    assert!(error.contains("nobody asked for"), "{error}");
}

/// The workload of a paused machine rests late, when that snapshot has been given up: its answer is not that to the
/// next request.
#[test]
fn test_snapshot_is_not_ordered_by_the_answer_to_an_earlier_freeze() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = |name| UnixListener::bind(folder.path().join(name)).expect("listening");
    let (control, streams) = (listener("control"), listener("streams"));
    let commands = listen_for_packets(&folder.path().join("commands"));
    let (keeper_end, monitor) = UnixStream::pair().expect("a pair");
    monitor.set_nonblocking(true).expect("set");
    let signals = Signals::block().expect("blocked");
    let workload = start();
    let ends = Ends {
        monitor: keeper_end.as_fd(),
        control: &control,
        streams: &streams,
        commands: &commands,
        signals: &signals,
        window_size: &|| None,
        started: &|| Ok(()),
        written: &|| {},
        workload: &workload,
    };
    let output = || tempfile::tempfile().expect("a file").into();
    let stdio = Stdio {
        input: None,
        output: output(),
        error: Some(output()),
    };
    let now = Instant::now();
    let life = Life::new(workload.clone(), None, now);
    let mut keeper = Keeper::new(&ends, life, stdio, console()).expect("a keeper");
    let hello = ToHost::Hello {
        version: VERSION,
        uptime_us: 1,
    };
    for message in [hello, ToHost::Started { session: 1 }] {
        keeper.life.heard(message, now);
    }
    let (socket, _guest) = UnixStream::pair().expect("a pair");
    keeper.control = Some(Control {
        socket,
        incoming: Incoming::new(1024),
    });
    let ordered = || (&monitor).read(&mut [0; 4096]).is_ok();

    keeper.begin_snapshot(2, request(), true, Vec::new(), now);
    let later = now + FREEZE_LIMIT;
    keeper.expire_snapshot(later);
    keeper.begin_snapshot(3, request(), true, Vec::new(), later);
    keeper.frozen(None);
    assert!(!ordered(), "by the answer to the first one");
    keeper.frozen(None);
    assert!(ordered(), "by its own");
}
