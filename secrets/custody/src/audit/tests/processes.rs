//! Logs of several processes: at the same time, killed, and without room. The test program starts itself once a process.

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;

const FOLDER: &str = "CACHOT_TEST_AUDIT_FOLDER";
const PREFIX: &str = "CACHOT_TEST_AUDIT_PREFIX";
const COUNT: &str = "CACHOT_TEST_AUDIT_COUNT";

/// Some twenty batches.
const ROTATE_AT: u64 = 20_000;

/// What the others start in a process of its own; by itself, the least that they count on.
#[test]
fn test_appender_records_what_it_says() {
    if let Some(folder) = env::var_os(FOLDER) {
        let count = env::var(COUNT).expect("a count").parse().expect("a number");
        return append(
            Path::new(&folder),
            &env::var(PREFIX).expect("a prefix"),
            count,
        );
    }
    let place = Place::new();
    append(&place.folder(), "P", 2);
    assert_eq!(place.names(), ["P_0_x", "P_0_y", "P_1_x", "P_1_y"]);
}

/// Appends batches of two, and says which are recorded.
fn append(folder: &Path, prefix: &str, count: u32) {
    let key = Key::new(1);
    let log = Log::new(folder, None, &key).rotating_at(ROTATE_AT);
    for number in 0..count {
        let names = ["x", "y"].map(|end| format!("{prefix}_{number}_{end}"));
        let head = match log.append(&names.each_ref().map(|name| record(name))) {
            Ok(head) => head,
            Err(error) => {
                println!("failed {error}: {:?}", std::error::Error::source(&error));
                return;
            }
        };
        println!("recorded {} {}", names[0], names[1]);
        if number % 5 == 0
            && let Err(error) = log.close(&head)
        {
            println!("failed {error}");
        }
    }
}

fn command(program: Command, place: &Place, prefix: &str, count: u32) -> Command {
    let mut command = program;
    command
        .args([
            "--exact",
            "audit::tests::processes::test_appender_records_what_it_says",
        ])
        .arg("--nocapture")
        .env(FOLDER, place.folder())
        .env(PREFIX, prefix)
        .env(COUNT, count.to_string())
        .stdout(Stdio::piped());
    command
}

fn start(place: &Place, prefix: &str, count: u32) -> Child {
    let program = Command::new(env::current_exe().expect("this program"));
    command(program, place, prefix, count)
        .spawn()
        .expect("started")
}

/// The names that a process said are recorded.
fn recorded(output: impl std::io::Read) -> Vec<String> {
    let lines = BufReader::new(output).lines();
    let lines = lines.map_while(Result::ok);
    lines
        .filter_map(|line| {
            // The harness writes in front of the first one.
            let names = line.split_once("recorded ")?.1.to_owned();
            let mut names = names.split(' ').map(str::to_owned);
            Some([names.next()?, names.next()?])
        })
        .flatten()
        .collect()
}

/// The names in the log, each of which must be there once.
fn in_log(place: &Place) -> BTreeSet<String> {
    let names = place.names();
    let distinct: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(distinct.len(), names.len(), "each once");
    distinct
}

#[test]
fn test_processes_that_append_at_the_same_time_make_one_chain() {
    let place = Place::new();
    let children: Vec<_> = (0..4)
        .map(|number| start(&place, &format!("P{number}"), 40))
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("ended");
        assert_eq!(recorded(&output.stdout[..]).len(), 80);
    }

    let report = place.verify();
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    assert!(report.files > 2, "{report:?}");
    assert_eq!(in_log(&place).len(), 4 * 80);
}

#[test]
fn test_no_recorded_use_is_missing_when_writers_are_killed_again_and_again() {
    let place = Place::new();
    let mut all = Vec::new();
    for round in 0..40 {
        let mut children =
            [0, 1].map(|number| start(&place, &format!("R{round}_{number}"), 10_000));
        std::thread::sleep(Duration::from_millis(20 + 7 * (round % 10)));
        for child in &mut children {
            child.kill().expect("killed");
        }
        for mut child in children {
            all.extend(recorded(child.stdout.take().expect("piped")));
            child.wait().expect("ended");
        }
    }
    place.write(&["LAST"]);

    let report = place.verify();
    assert!(report.is_good(), "{report:?}");
    let found = in_log(&place);
    assert!(all.len() > 100, "{}", all.len());
    let missing: Vec<_> = all.iter().filter(|name| !found.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn test_full_disk_is_an_error_and_what_was_recorded_stays_good() {
    let place = Place::new();
    place.write(&["FIRST"]);
    // Every length of the room that is left, in steps of 512 bytes: the unit of `ulimit -f`.
    for blocks in 3..12 {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "trap '' XFSZ; ulimit -f $0; exec \"$@\""])
            .arg(blocks.to_string())
            .arg(env::current_exe().expect("this program"));
        let output = command(shell, &place, &format!("B{blocks}"), 100)
            .output()
            .expect("ran");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("failed cannot write"), "{text}");
        assert!(text.contains("File too large"), "{text}");

        let report = place.verify();
        assert!(report.is_good(), "{blocks}: {report:?}");
        let found = in_log(&place);
        for name in recorded(&output.stdout[..]) {
            assert!(found.contains(&name), "{name}");
        }
    }
    place.write(&["LAST"]);
    assert!(place.verify().is_good());
}
