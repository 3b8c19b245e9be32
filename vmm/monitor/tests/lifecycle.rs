//! A machine's states, and what ends it: control socket, signals, the keeper's end.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use cachot_vmm::protocol::{StopReason, ToKeeper};
use common::{Monitor, config, elf, eventually, print, print_forever, spin};
use serde_json::{Value, json};

fn killed() -> ToKeeper {
    ToKeeper::Stopped {
        reason: StopReason::Killed,
    }
}

fn state(monitor: &Monitor) -> Value {
    monitor.request("GET", "/v1/state", "").1["state"].clone()
}

#[test]
fn test_api_pause_stops_the_guest_and_resume_lets_it_go_on() {
    let monitor = Monitor::boot_with_api(&elf(&print_forever(b'x')));
    eventually(|| monitor.console().len() > 10);
    assert_eq!(state(&monitor), "running");

    assert_eq!(monitor.request("PUT", "/v1/pause", ""), (204, Value::Null));
    let printed = monitor.console().len();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(monitor.console().len(), printed);
    assert_eq!(state(&monitor), "paused");
    assert_eq!(monitor.request("PUT", "/v1/pause", "").0, 409);

    assert_eq!(monitor.request("PUT", "/v1/resume", ""), (204, Value::Null));
    eventually(|| monitor.console().len() > printed);
    assert_eq!(monitor.request("PUT", "/v1/resume", "").0, 409);
}

#[test]
fn test_api_pause_reaches_a_guest_that_never_exits() {
    let monitor = Monitor::boot_with_api(&elf(&spin()));
    let start = Instant::now();

    for _ in 0..20 {
        assert_eq!(monitor.request("PUT", "/v1/pause", "").0, 204);
        assert_eq!(monitor.request("PUT", "/v1/resume", "").0, 204);
    }

    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn test_api_stop_kill_ends_running_and_paused_machines() {
    for pause in [false, true] {
        let mut monitor = Monitor::boot_with_api(&elf(&spin()));
        if pause {
            assert_eq!(monitor.request("PUT", "/v1/pause", "").0, 204);
            let button = monitor.request("PUT", "/v1/stop", r#"{"mode":"power-button"}"#);
            assert_eq!(button.0, 409);
        }
        assert_eq!(
            monitor.request("PUT", "/v1/stop", r#"{"mode":"kill"}"#),
            (204, Value::Null)
        );
        assert_eq!(monitor.message(), killed());
        assert_eq!(monitor.wait().code(), Some(0));
    }
}

#[test]
fn test_api_unacceptable_requests_leave_the_machine_running() {
    let monitor = Monitor::boot_with_api(&elf(&spin()));
    for (method, path, body, expected) in [
        ("GET", "/", "", 404),
        ("GET", "/v2/state", "", 404),
        ("PUT", "/v1/state", "", 405),
        ("GET", "/v1/stop", "", 405),
        ("PUT", "/v1/pause", "{}", 400),
        ("PUT", "/v1/stop", "", 400),
        ("PUT", "/v1/stop", r#"{"mode":"gently"}"#, 400),
        ("PUT", "/v1/stop", r#"{"mode":"kill","now":1}"#, 400),
    ] {
        let (status, body) = monitor.request(method, path, body);
        assert_eq!(status, expected, "{method} {path}");
        assert!(body["error"].is_string(), "{body}");
    }
    assert_eq!(state(&monitor), "running");
}

#[test]
fn test_api_connection_is_kept_for_further_requests_and_given_up_when_idle() {
    let monitor = Monitor::boot_with_api(&elf(&spin()));
    let mut stream = monitor.api();
    let mut half = monitor.api();
    half.write_all(b"GET /v1/state HT").unwrap();

    stream
        .write_all(b"PUT /v1/pause HTTP/1.1\r\n\r\nPUT /v1/resume HTTP/1.1\r\n\r\n")
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(
        answers.matches("HTTP/1.1 204 No Content\r\n").count(),
        2,
        "{answers}"
    );

    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn test_api_connections_over_the_limit_are_refused() {
    let monitor = Monitor::boot_with_api(&elf(&spin()));
    let open: Vec<_> = (0..16).map(|_| monitor.api()).collect();

    let mut answer = String::new();
    monitor.api().read_to_string(&mut answer).unwrap();

    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(open);
    eventually(|| {
        let mut stream = monitor.api();
        // The monitor may have refused and closed it already.
        drop(stream.write_all(b"GET /v1/state HTTP/1.1\r\nConnection: close\r\n\r\n"));
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200 ")
    });
}

#[test]
fn test_api_metrics_count_exits_and_milestones() {
    let monitor = Monitor::boot_with_api(&elf(&[print("hello\n"), spin()].concat()));
    eventually(|| monitor.console() == "hello\n");

    let (status, metrics) = monitor.request("GET", "/v1/metrics", "");

    assert_eq!(status, 200);
    assert_eq!(metrics["exits"]["io"], 6);
    assert_eq!(metrics["exits"], metrics["exits_by_vcpu"][0]);
    assert_eq!(metrics["guest_memory_bytes"], json!(config().memory));
    let times: Vec<_> = ["configured", "built", "running", "first_output"]
        .map(|name| metrics["timeline_us"][name].as_u64().unwrap())
        .into();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn test_signal_presses_the_power_button_and_a_second_one_kills() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut monitor = Monitor::boot_with_api(&elf(&spin()));
        monitor.signal(signal);
        eventually(|| state(&monitor) == "stopping");
        assert_eq!(monitor.request("PUT", "/v1/pause", "").0, 409);

        monitor.signal(signal);

        assert_eq!(monitor.message(), killed());
        assert_eq!(monitor.wait().code(), Some(0));
    }
}

#[test]
fn test_signal_guest_that_does_not_power_off_is_ended() {
    let mut monitor = Monitor::boot_with_api(&elf(&spin()));
    let start = Instant::now();

    monitor.signal(libc::SIGTERM);

    assert_eq!(monitor.message(), killed());
    let waited = start.elapsed();
    assert!((9..15).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(monitor.wait().code(), Some(0));
}

#[test]
fn test_keeper_gone_monitor_removes_the_state_folder_and_ends() {
    let mut monitor = Monitor::boot_with_api(&elf(&spin()));
    let folder = monitor.dir.path().to_owned();
    fs::write(folder.join("console.log"), "x").unwrap();
    let (theirs, _) = std::os::unix::net::UnixStream::pair().unwrap();

    drop(std::mem::replace(&mut monitor.socket, theirs.into()));

    assert_eq!(monitor.wait().code(), Some(0));
    assert!(!folder.exists());
}

#[test]
fn test_keeper_gone_foreign_files_stay() {
    let mut monitor = Monitor::boot_with_api(&elf(&spin()));
    let folder = monitor.dir.path().to_owned();
    fs::write(folder.join("mine"), "x").unwrap();
    let (theirs, _) = std::os::unix::net::UnixStream::pair().unwrap();

    drop(std::mem::replace(&mut monitor.socket, theirs.into()));

    assert_eq!(monitor.wait().code(), Some(0));
    let left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["mine"]);
}

#[test]
fn test_every_thread_is_filtered_and_the_process_is_not_dumpable() {
    let monitor = Monitor::boot_with_api(&elf(&spin()));
    assert_eq!(state(&monitor), "running");
    let process = format!("/proc/{}", monitor.child.id());
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_matches([':', '\t']).to_owned()
    };
    let threads = || {
        fs::read_dir(format!("{process}/task"))
            .unwrap()
            .map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap())
            // KVM's own worker is listed as a thread; it never leaves the kernel.
            .filter(|status| !field(status, "Name").starts_with("kvm-"))
            .collect::<Vec<_>>()
    };
    // A vCPU's thread gets its filter before it enters the guest; the answer may have been faster.
    // 2 is SECCOMP_MODE_FILTER.
    eventually(|| {
        threads()
            .iter()
            .all(|status| field(status, "Seccomp") == "2")
    });

    let mut names = Vec::new();
    for status in threads() {
        names.push(field(&status, "Name"));
        assert_eq!(field(&status, "NoNewPrivs"), "1");
    }
    names.sort();
    assert_eq!(names, ["cachot-vmm", "snapshot", "vcpu0"]);
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    assert!(limits.lines().any(|line| {
        line.starts_with("Max core file size") && line.split_whitespace().nth(4) == Some("0")
    }));
}
