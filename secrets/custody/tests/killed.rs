//! A thousand random operations by processes that are killed with SIGKILL, one after the other: whenever that
//! happens, the store has what was reported as done, and of the operation under way all or nothing.

#[path = "model/mod.rs"]
mod model;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use model::{Kind, Model, Operation, apply, open};

const OPERATIONS: u64 = 1000;

/// Most operations that a process reports before it is killed.
const MAX_REPORTED: u64 = 40;

/// Most microseconds that it then has for the next one: more than a commit takes.
const MAX_DELAY_US: u64 = 4000;

/// Tells the child that it is one: the number of its first operation.
const FIRST_VARIABLE: &str = "CACHOT_TEST_FIRST_OPERATION";

/// A number that looks random for each number (splitmix64, Steele, Lea and Flood 2014).
fn scramble(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn operation(number: u64) -> Operation {
    let [a, b, c, d, ..] = scramble(number).to_le_bytes();
    Operation::new([a, b, c, d], scramble(number + OPERATIONS))
}

/// What is killed: does operations, and says of each that it is done.
fn child(first: u64) {
    let place = std::env::args_os().nth(1).expect("a folder");
    let mut stores = open(Path::new(&place));
    let mut output = std::io::stdout();
    for number in first..OPERATIONS {
        apply(&mut stores, &operation(number));
        writeln!(output, "{number}").expect("reported");
        output.flush().expect("reported");
    }
}

/// Runs a child and kills it; how many operations are reported as done by then.
fn run_and_kill(place: &Path, first: u64, round: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .arg(place)
        .env(FIRST_VARIABLE, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut done = first;
    let mut take = |line: Option<std::io::Result<String>>| -> bool {
        let Some(line) = line else { return false };
        assert_eq!(line.expect("read"), done.to_string());
        done += 1;
        true
    };
    for _ in 0..scramble(round) % MAX_REPORTED {
        if !take(lines.next()) {
            break;
        }
    }
    let until = Instant::now() + Duration::from_micros(scramble(round + 7) % MAX_DELAY_US);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    child.kill().expect("killed");
    while take(lines.next()) {}
    child.wait().expect("ended");
    done
}

fn main() {
    if let Some(first) = std::env::var_os(FIRST_VARIABLE) {
        return child(
            first
                .to_str()
                .and_then(|text| text.parse().ok())
                .expect("a number"),
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("secrets");
    let mut model = Model::default();
    let (mut done, mut rounds, mut half_way) = (0, 0, 0);
    while done < OPERATIONS {
        let reported = run_and_kill(&place, done, rounds);
        rounds += 1;
        for number in done..reported {
            model.apply(&operation(number));
        }
        done = reported;
        let mut stores = open(&place);
        let Some(difference) = model.difference(&mut stores) else {
            continue;
        };
        // The one under way was committed, and not reported any more.
        assert!(done < OPERATIONS, "{difference}");
        let under_way = operation(done);
        assert!(under_way.kind != Kind::RotateKey, "{difference}");
        model.apply(&under_way);
        let difference = model.difference(&mut stores);
        assert_eq!(difference, None, "after operation {done}: {under_way:?}");
        done += 1;
        half_way += 1;
    }
    println!("{done} operations, {rounds} kills, {half_way} of them between commit and report");
    // A test that kills nothing, or only between operations, shows nothing.
    assert!(rounds >= 20);
}
