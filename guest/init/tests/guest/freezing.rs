//! Control groups of sessions: joined, frozen, thawed and killed; in plain files and in the real hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cachot_control::{ToGuest, ToHost};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::keeper::{Keeper, drain, expect, further, script, until};

const TICKING: &str = "echo ready; while sleep 0.02; do echo tick; done";

/// A group of this machine's own hierarchy, for one guest.
struct Hierarchy {
    mounted: TempDir,
    group: PathBuf,
}

impl Hierarchy {
    fn new(name: &str) -> Self {
        let mounted = tempfile::tempdir().expect("a directory");
        mount(
            "cgroup2",
            mounted.path(),
            "cgroup2",
            MountFlags::empty(),
            c"",
        )
        .expect("mounted");
        let group = mounted
            .path()
            .join(format!("cachot-{name}-{}", std::process::id()));
        fs::create_dir(&group).expect("created");
        Self { mounted, group }
    }

    fn members(&self, session: u32) -> String {
        fs::read_to_string(self.group.join(format!("sessions/{session}/cgroup.procs")))
            .expect("read")
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        let sessions = self.group.join("sessions");
        for entry in fs::read_dir(&sessions).into_iter().flatten().flatten() {
            fs::write(entry.path().join("cgroup.kill"), "1").ok();
            for _ in 0..100 {
                if !entry.path().is_dir() || fs::remove_dir(entry.path()).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        fs::remove_dir(&sessions).ok();
        fs::remove_dir(&self.group).ok();
        unmount(self.mounted.path(), UnmountFlags::DETACH).ok();
    }
}

fn frozen(keeper: &mut Keeper) -> Option<String> {
    keeper.tell(&ToGuest::Freeze);
    match keeper.hear() {
        ToHost::Frozen { failure } => failure,
        other => panic!("{other:?} is no answer"),
    }
}

/// Lets through what is on its way, and says whether there is more then.
fn ticks(stream: &mut std::os::unix::net::UnixStream) -> bool {
    let mut read = |wait| {
        stream
            .set_read_timeout(Some(Duration::from_millis(wait)))
            .expect("set");
        std::io::Read::read(stream, &mut [0; 4096]).is_ok_and(|read| read > 0)
    };
    read(100);
    read(400)
}

fn plain() -> TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    fs::write(folder.path().join("cgroup.procs"), "").expect("written");
    folder
}

fn wish(folder: &Path) -> String {
    fs::read_to_string(folder.join("sessions/cgroup.freeze")).unwrap_or_default()
}

#[test]
fn test_freeze_without_control_groups_is_a_failure_and_sessions_run() {
    let mut keeper = Keeper::boot();
    keeper.start(script(TICKING));
    let [mut stdio, _stderr] = keeper.streams();
    expect(&mut stdio, "ready");

    let failure = frozen(&mut keeper).expect("it fails");

    assert!(failure.contains("no cgroup2"), "{failure}");
    assert!(ticks(&mut stdio));
}

#[test]
fn test_freeze_answers_when_the_kernel_says_so_and_sessions_have_groups() {
    let folder = plain();
    let mut keeper = Keeper::boot_in(folder.path());
    let events = folder.path().join("sessions/cgroup.events");
    fs::write(&events, "frozen 0\n").expect("written");
    keeper.start(script("echo $$; read x"));
    let [mut stdio, _stderr] = keeper.streams();
    let mut pid = [0; 16];
    let read = std::io::Read::read(&mut stdio, &mut pid).expect("read");
    let members = fs::read(folder.path().join("sessions/1/cgroup.procs")).expect("read");
    assert_eq!([&members[..], b"\n"].concat(), &pid[..read]);

    keeper.tell(&ToGuest::Freeze);
    until("it is to be frozen", || wish(folder.path()) == "1");
    // The loop is not blocked: it takes other messages meanwhile.
    let (code, _) = keeper.refusal(further(1, "true"));
    assert_eq!(code, 125);
    fs::write(&events, "frozen 1\n").expect("written");

    assert_eq!(keeper.hear(), ToHost::Frozen { failure: None });
    keeper.tell(&ToGuest::Thaw);
    until("it is to go on", || wish(folder.path()) == "0");
}

#[test]
fn test_freeze_that_takes_too_long_is_undone_and_reported() {
    let folder = plain();
    let mut keeper = Keeper::boot_in(folder.path());
    fs::write(folder.path().join("sessions/cgroup.events"), "frozen 0\n").expect("written");

    let failure = frozen(&mut keeper).expect("it fails");

    assert!(failure.contains("not frozen after 5 s"), "{failure}");
    assert_eq!(wish(folder.path()), "0");
}

#[test]
fn test_freeze_stops_workload_and_commands_with_their_children_until_thawed() {
    let hierarchy = Hierarchy::new("freeze");
    let mut keeper = Keeper::boot_in(&hierarchy.group);
    keeper.start(script(&format!("({TICKING}) | cat")));
    let [mut workload, _stderr] = keeper.streams();
    expect(&mut workload, "tick");
    keeper.start(further(2, TICKING));
    let [mut command, _err] = keeper.streams_of(2);
    expect(&mut command, "tick");
    assert!(hierarchy.members(1).lines().count() >= 3);

    assert_eq!(frozen(&mut keeper), None);
    assert!(!ticks(&mut workload) && !ticks(&mut command));
    // One that is started now waits.
    keeper.tell(&ToGuest::Start(further(3, "exit 5")));
    let [third, _err] = keeper.streams_of(3);
    keeper.tell(&ToGuest::Thaw);

    assert_eq!(keeper.hear(), ToHost::Started { session: 3 });
    drain(third);
    assert_eq!(
        keeper.hear(),
        ToHost::Exited {
            session: 3,
            code: 5
        }
    );
    assert!(ticks(&mut workload) && ticks(&mut command));
    until("the group of the third is gone", || {
        !hierarchy.group.join("sessions/3").exists()
    });
}

#[test]
fn test_frozen_workload_dies_of_sigkill() {
    let hierarchy = Hierarchy::new("kill");
    let mut keeper = Keeper::boot_in(&hierarchy.group);
    keeper.start(script("echo ready; read x"));
    let [mut stdio, _stderr] = keeper.streams();
    expect(&mut stdio, "ready");
    assert_eq!(frozen(&mut keeper), None);

    keeper.signal(Signal::KILL);

    drain(stdio);
    assert_eq!(keeper.expect_exit(), 137);
}

#[test]
fn test_shutdown_thaws_so_that_the_workload_ends_by_itself() {
    let hierarchy = Hierarchy::new("stop");
    let mut keeper = Keeper::boot_in(&hierarchy.group);
    keeper.start(script(
        "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    let [mut stdio, _stderr] = keeper.streams();
    expect(&mut stdio, "ready");
    assert_eq!(frozen(&mut keeper), None);

    kill_process(keeper.guest(), Signal::TERM).expect("sent");

    drain(stdio);
    assert_eq!(keeper.expect_exit(), 3);
}

#[test]
fn test_renewal_kills_a_command_with_what_has_left_its_process_group() {
    let hierarchy = Hierarchy::new("renew");
    let mut keeper = Keeper::boot_in(&hierarchy.group);
    keeper.start(script(TICKING));
    let [mut workload, _stderr] = keeper.streams();
    expect(&mut workload, "ready");
    keeper.start(further(2, "setsid sleep 1000 & echo ready; sleep 1000"));
    let [mut command, _err] = keeper.streams_of(2);
    expect(&mut command, "ready");
    until("both run", || hierarchy.members(2).lines().count() == 3);
    assert_eq!(frozen(&mut keeper), None);

    assert_eq!(keeper.renew(), Vec::<String>::new());

    drain(command);
    assert!(ticks(&mut workload), "the workload goes on");
    until("nothing of it is left", || {
        let group = hierarchy.group.join("sessions/2/cgroup.procs");
        fs::read_to_string(group).is_ok_and(|members| members.is_empty())
            || !hierarchy.group.join("sessions/2").exists()
    });
    keeper.start(further(2, "true"));
}

#[test]
fn test_renewal_that_fails_leaves_the_workload_frozen() {
    let hierarchy = Hierarchy::new("fail");
    let mut keeper = Keeper::boot_in(&hierarchy.group);
    keeper.start(script(TICKING));
    let [mut workload, _stderr] = keeper.streams();
    expect(&mut workload, "ready");
    assert_eq!(frozen(&mut keeper), None);
    fs::remove_file(keeper.path("boot_id")).expect("removed");

    let failures = keeper.renew();

    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains("boot_id"), "{failures:?}");
    assert!(!ticks(&mut workload));
    keeper.tell(&ToGuest::Thaw);
    assert!(ticks(&mut workload));
}
