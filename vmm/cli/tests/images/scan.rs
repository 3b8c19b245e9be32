//! `scan`: what is found in one file, where, and what is said.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::place::{DB_VALUE, Place, VALUE};

const SECRET: [&str; 2] = ["--secret", "KEY=env:API_TOKEN"];

fn scan<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["scan"];
    all.extend(words);
    all.extend(SECRET);
    all
}

/// Where a file has hits: offsets and lengths.
fn places(place: &Place, name: &str) -> Vec<(u64, u64)> {
    let json = place.cachot(&scan(&[name, "--json"])).json(1);
    assert_eq!(json["hits"], json["found"][0]["hits"]);
    let shown = json["found"][0]["shown"].as_array().expect("hits").clone();
    let number = |hit: &serde_json::Value, key: &str| hit[key].as_u64().expect("a number");
    shown
        .iter()
        .map(|hit| (number(hit, "offset"), number(hit, "length")))
        .collect()
}

#[test]
fn test_scan_tells_where_a_value_is_and_in_which_form() {
    let place = Place::new();
    let base64 = "dGstZGVtby1YNGhRMnhWOWJMazdtWnI4MVRzWWM2M05kV2Y1alB1Rw";
    place.noise(
        "memory",
        1 << 20,
        &[
            (5000, VALUE.as_bytes()),
            (0x8_0001, base64.as_bytes()),
            (0x9_0000, DB_VALUE.as_bytes()),
        ],
    );
    let mut words = scan(&["memory"]);
    words.extend(["--secret", "DB=file:@db"]);
    let out = place.cachot(&words).ended(1);
    let expected = "\
memory offset=0x1388 length=40 secret=KEY encoding=raw
memory offset=0x80001 length=53 secret=KEY encoding=base64
memory offset=0x90000 length=28 secret=DB encoding=raw
searched 1 MiB in 1 file for 2 values in all encodings: 3 hits
";
    assert!(out.starts_with(expected), "{out}");
    assert!(out.contains("  KEY as base64: 1 hit\n"), "{out}");
}

#[test]
fn test_scan_of_a_file_without_a_value_finds_nothing() {
    let place = Place::new();
    place.noise("memory", 1 << 20, &[]);
    place.file("empty", b"");
    let ran = place.cachot(&scan(&["memory", "empty"]));
    assert_eq!(ran.err, "");
    assert_eq!(
        ran.ended(0),
        "searched 1 MiB in 2 files for 1 value in all encodings: nothing found\n"
    );
    let json = place.cachot(&scan(&["memory", "--json"])).json(0);
    assert_eq!(json["clean"], true);
    assert_eq!(json["bytes"], 1 << 20);
}

#[test]
fn test_scan_finds_a_value_once_wherever_it_lies_over_a_border() {
    // Windows end at multiples of 512 KiB from the beginnings of sections of 32 MiB, or near them.
    let section = 32 << 20;
    let place = Place::new();
    for back in [1, 7, 8, 20, 32, 39] {
        let (first, second) = ((512 << 10) - back, section - back);
        let third = section + (512 << 10) - back;
        let plants = [first, second, third].map(|at| (at, VALUE.as_bytes()));
        place.noise("memory", section + (1 << 20), &plants);
        let expected = [first, second, third].map(|at| (at as u64, 40));
        assert_eq!(places(&place, "memory"), expected, "{back}");
    }
}

#[test]
fn test_scan_finds_eight_bytes_at_the_edge_of_a_page_and_not_elsewhere() {
    let place = Place::new();
    let piece = &VALUE.as_bytes()[2..10];
    place.noise(
        "memory",
        1 << 20,
        &[
            (2 * 4096 - 8, piece),
            (9 * 4096, piece),
            (20 * 4096 + 100, piece),
            (30 * 4096 - 7, &piece[..7]),
            ((1 << 20) - 8, piece),
        ],
    );
    assert_eq!(
        places(&place, "memory"),
        [(2 * 4096 - 8, 8), (9 * 4096, 8), ((1 << 20) - 8, 8)]
    );
}

#[test]
fn test_scan_passes_over_holes_but_not_over_what_is_between_them() {
    let place = Place::new();
    let file = File::create_new(place.path("memory")).expect("a file");
    let len = 1 << 42;
    file.set_len(len).expect("a length");
    let at = [3, (1 << 40) + 4090, len - VALUE.len() as u64];
    for at in at {
        file.write_all_at(VALUE.as_bytes(), at).expect("written");
    }
    let expected = at.map(|at| (at, VALUE.len() as u64));
    assert_eq!(places(&place, "memory"), expected);
    let json = place.cachot(&scan(&["memory", "--json"])).json(1);
    assert!(json["bytes"].as_u64() < Some(10 << 20), "{json}");
}

#[test]
fn test_scan_shows_the_first_hundred_hits_and_counts_the_others() {
    let place = Place::new();
    let plants: Vec<_> = (0..250).map(|n| (n * 100, VALUE.as_bytes())).collect();
    place.noise("memory", 1 << 16, &plants);
    let out = place.cachot(&scan(&["memory"])).ended(1);
    let hits = out.lines().filter(|line| line.contains(" offset=")).count();
    assert_eq!(hits, 100);
    assert!(out.contains("memory offset=0x26ac length=40"), "{out}");
    assert!(
        out.contains("memory has 150 hits more than these 100\n"),
        "{out}"
    );
    assert!(out.contains(": 250 hits\n"), "{out}");
    assert_eq!(places(&place, "memory").len(), 100);
}

#[test]
fn test_scan_reads_files_that_do_not_tell_their_length() {
    let place = Place::new();
    let words = ["scan", "/proc/version", "--secret", "V=file:/proc/version"];
    let out = place.cachot(&words).ended(1);
    assert!(out.starts_with("/proc/version offset=0x0 "), "{out}");
}

#[test]
fn test_scan_takes_values_from_an_env_file_and_names_equal_ones_once() {
    let place = Place::new();
    place.file("dot.env", format!("A={VALUE}\nPIN=1234\n").as_bytes());
    place.noise("memory", 10_000, &[(77, VALUE.as_bytes())]);
    let mut words = scan(&["memory"]);
    words.extend(["--secrets-env-file", "dot.env"]);
    let out = place.cachot(&words).ended(1);
    assert!(
        out.starts_with("memory offset=0x4d length=40 secret=KEY encoding=raw\nsearched"),
        "{out}"
    );
    for expected in [
        "for 1 value ",
        "A has the same value as KEY",
        "not searched for: PIN, whose value is too short or in every program",
    ] {
        assert!(out.contains(expected), "{out}");
    }
}

#[test]
fn test_scan_does_not_find_values_in_its_own_environment() {
    let place = Place::new();
    let ran = place.cachot(&scan(&["/proc/self/environ"]));
    assert!(ran.out.contains("nothing found"), "{}{}", ran.out, ran.err);
}

#[test]
fn test_scan_used_wrongly_says_how_to_use_it() {
    let place = Place::new();
    place.file("memory", b"x");
    place.file("pin", b"1234");
    let cases: &[(&[&str], &str)] = &[
        (&["scan", "memory"], "--secret"),
        (&["scan", "--secret", "A=env:API_TOKEN"], "PATH"),
        (&["scan", "memory", "--secret", "A=nope:x"], "use one of"),
        (&["scan", "memory", "--secret", "A=env:NONE"], "export"),
        (
            &["scan", "memory", "--secret", "A=file:pin"],
            "none of the values can be searched for",
        ),
        (
            &["scan", "memory", "--secrets-env-file", "missing"],
            "missing",
        ),
    ];
    for (words, expected) in cases {
        let error = place.cachot(words).refused(125);
        assert!(error.contains(expected), "{words:?}: {error}");
    }
    let ran = place.cachot(&[
        "scan",
        "memory",
        "--secret",
        "A=env:NONE",
        "--secret",
        "B=env:API_TOKEN",
        "--secret",
        "C=nope:x",
    ]);
    assert_eq!(ran.code, Some(125));
    let named: Vec<_> = ran.err.lines().map(|line| &line[..17]).collect();
    assert_eq!(named, ["cachot: secret A:", "cachot: secret C:"]);
}
