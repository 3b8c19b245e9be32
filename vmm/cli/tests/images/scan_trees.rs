//! `scan` of folders: what is in the way is told, and nothing is left out silently.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::place::{Place, Ran, VALUE};

const SECRET: [&str; 2] = ["--secret", "KEY=env:API_TOKEN"];

fn scan(place: &Place, words: &[&str]) -> Ran {
    let mut all = vec!["scan"];
    all.extend(words);
    all.extend(SECRET);
    place.cachot(&all)
}

#[test]
fn test_scan_goes_through_folders_sorted_by_name() {
    let place = Place::new();
    place.folder("tree/b/c");
    place.file("tree/b/c/file", VALUE.as_bytes());
    place.file("tree/a", VALUE.as_bytes());
    place.file("tree/z", b"nothing");
    let out = scan(&place, &["tree"]).ended(1);
    let paths: Vec<_> = out
        .lines()
        .filter_map(|line| line.split_once(" offset=").map(|(path, _)| path))
        .collect();
    assert_eq!(paths, ["tree/a", "tree/b/c/file"]);
    assert!(out.contains("in 3 files"), "{out}");
}

#[test]
fn test_scan_reports_special_files_and_goes_on() {
    let place = Place::new();
    place.folder("tree");
    mknodat(CWD, place.path("tree/pipe"), FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
    let _socket = UnixListener::bind(place.path("tree/socket")).expect("a socket");
    place.file("tree/z", b"nothing");
    let ran = scan(&place, &["tree", "/dev/zero"]);
    let lines: Vec<_> = ran.err.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ran.err);
    assert!(lines[0].starts_with("cachot: cannot search tree/pipe: it is a named pipe"));
    assert!(lines[1].contains("tree/socket: it is a socket"));
    assert!(lines[2].contains("/dev/zero: it is a character device"));
    let out = ran.ended(1);
    assert!(out.contains("in 1 file for"), "{out}");
    assert!(out.contains("not searched to the end: 3 paths"), "{out}");

    // Without them the same folder is fine.
    fs::remove_file(place.path("tree/pipe")).expect("removed");
    fs::remove_file(place.path("tree/socket")).expect("removed");
    scan(&place, &["tree"]).ended(0);
}

#[test]
fn test_scan_reports_what_cannot_be_read_and_goes_on() {
    let place = Place::new();
    place.file("good", VALUE.as_bytes());
    // The first page of no process is mapped.
    let ran = scan(&place, &["/proc/self/mem", "missing", "good", "--json"]);
    let json = ran.json(1);
    let errors = json["errors"].as_array().expect("a list");
    let paths: Vec<_> = errors.iter().map(|error| &error["path"]).collect();
    assert_eq!(paths, ["missing", "/proc/self/mem"]);
    assert_eq!(json["found"][0]["path"], "good");
    assert_eq!(json["clean"], false);

    place.file("empty", b"");
    let json = scan(&place, &["/proc/self/mem", "empty", "--json"]).json(1);
    assert_eq!((&json["hits"], &json["clean"]), (&0.into(), &false.into()));
}

#[test]
fn test_scan_reports_what_the_user_may_not_read() {
    let place = Place::new();
    place.folder("tree/closed");
    place.file("tree/secret", VALUE.as_bytes());
    let mode = |name: &str, mode| {
        fs::set_permissions(place.path(name), PermissionsExt::from_mode(mode)).expect("changed");
    };
    let program = place.path("cachot");
    fs::copy(env!("CARGO_BIN_EXE_cachot"), &program).expect("copied");
    mode("cachot", 0o755);
    mode("", 0o755);
    mode("tree/closed", 0);
    mode("tree/secret", 0);
    let mut command = Command::new(program);
    command
        .args(["snapshot", "scan", "tree"])
        .args(SECRET)
        .env_clear()
        .env("API_TOKEN", VALUE)
        .env("CACHOT_STATE", place.path("of-user"))
        .current_dir(place.path(""))
        .stdin(Stdio::null());
    place.folder("of-user");
    if rustix::process::geteuid().is_root() {
        chown(place.path("of-user"), Some(65_534), Some(65_534)).expect("given away");
        command.uid(65_534).gid(65_534);
    }

    let ran = Ran::of(&mut command);

    mode("tree/closed", 0o755);
    for name in ["tree/closed", "tree/secret"] {
        let expected = format!("cannot search {name}: Permission denied");
        assert!(ran.err.contains(&expected), "{}", ran.err);
    }
    assert!(ran.ended(1).contains("not searched to the end: 2 paths"));
}

#[test]
fn test_scan_follows_only_the_links_that_it_is_given() {
    let place = Place::new();
    place.folder("tree");
    place.file("outside", VALUE.as_bytes());
    symlink("../outside", place.path("tree/link")).expect("linked");
    symlink(".", place.path("tree/loop")).expect("linked");
    symlink("nowhere", place.path("tree/dangling")).expect("linked");
    symlink("tree", place.path("way")).expect("linked");

    let out = scan(&place, &["tree"]).ended(0);
    assert!(out.contains("not followed: 3 symbolic links"), "{out}");
    let out = scan(&place, &["way"]).ended(0);
    assert!(out.contains("not followed: 3 symbolic links"), "{out}");
    // The control: it is there.
    let out = scan(&place, &["tree/link"]).ended(1);
    assert!(out.starts_with("tree/link offset=0x0 "), "{out}");
    let ran = scan(&place, &["tree/dangling"]);
    assert!(
        ran.err.contains("tree/dangling: No such file"),
        "{}",
        ran.err
    );
    ran.ended(1);
}

#[test]
fn test_scan_writes_hostile_names_so_that_they_stay_one_word() {
    let place = Place::new();
    place.folder("tree");
    let names: [&[u8]; 3] = [
        b"\x1b[2Jclear\noffset=0x0 length=1",
        b"not utf-8 \xff",
        b"z secret=OTHER",
    ];
    for name in names {
        let path = place.path("tree").join(OsStr::from_bytes(name));
        fs::write(path, VALUE).expect("written");
    }
    let out = scan(&place, &["tree"]).ended(1);
    assert!(!out.contains('\x1b'));
    let hits: Vec<_> = out.lines().take(3).collect();
    assert!(
        hits[0].starts_with("\"tree/\\u{1b}[2Jclear\\noffset=0x0 length=1\" offset=0x0 length=40 "),
        "{out}"
    );
    assert!(
        hits[1].starts_with("\"tree/not utf-8 \u{fffd}\" offset=0x0 "),
        "{out}"
    );
    assert!(
        hits[2].starts_with("\"tree/z secret=OTHER\" offset=0x0 "),
        "{out}"
    );
    let json = scan(&place, &["tree", "--json"]).json(1);
    assert_eq!(json["hits"], 3);
}

#[test]
fn test_scan_of_a_deep_tree_reaches_its_bottom() {
    let place = Place::new();
    let deep = "d/".repeat(1200);
    place.folder(&deep);
    place.file(&format!("{deep}file"), VALUE.as_bytes());
    let out = scan(&place, &["d"]).ended(1);
    assert!(out.contains("in 1 file for"), "{out}");
}
