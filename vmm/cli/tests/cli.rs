//! The command as a user meets it, as far as that needs no VM.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const VALUE: &str = "tk-demo-0123456789abcdef0123456789abcdef";

/// A folder with files to name on command lines, and a state folder that must stay empty.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        let mut kernel = b"\x7fELF\x02\x01\x01".to_vec();
        kernel.resize(18, 0);
        kernel.extend([62, 0]);
        place.file("kernel", &kernel);
        place.file("initrd", b"070701");
        place.file("noise", &[7; 5000]);
        place.file("empty", b"");
        place.file("dot.env", format!("KEY={VALUE}\nother=x\n").as_bytes());
        place.file("bad.env", b"1BAD=x\n");
        fs::create_dir(place.path("folder")).expect("made");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).expect("written");
    }

    /// Replaces `@` in front of a name by the folder.
    fn word(&self, word: &str) -> String {
        word.replace('@', &format!("{}/", self.0.path().display()))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachot"));
        command
            .args(words.iter().map(|word| self.word(word)))
            .env_clear()
            .env("CACHOT_STATE", self.path("state"))
            .env("API_TOKEN", VALUE)
            .env("EMPTY", "")
            .stdin(Stdio::null());
        command
    }

    fn cachot(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("it runs")
    }

    fn nothing_left(&self) -> bool {
        match fs::read_dir(self.path("state/vms")) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => true,
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// `run` with a kernel and an initrd that look right, and these words before the command.
fn run_words<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["run"];
    for (option, default) in [("--kernel", "@kernel"), ("--initrd", "@initrd")] {
        if !words.contains(&option) {
            all.extend([option, default]);
        }
    }
    all.extend(words);
    all.extend(["--", "true"]);
    all
}

#[test]
fn test_run_bad_input_is_one_line_with_a_hint_and_leaves_nothing() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--secret", "A=nope:x"], &["A", "nope", "use one of"]),
        (&["--secret", "A=plain"], &["A", "no scheme", "write"]),
        (&["--secret", "A=env:NO_SUCH"], &["A", "NO_SUCH", "export"]),
        (&["--secret", "A=env:EMPTY"], &["A", "EMPTY", "empty"]),
        (&["--secret", "A=file:@missing"], &["A", "missing", "check"]),
        (
            &["--secret", "A=file:@folder"],
            &["A", "folder", "directory"],
        ),
        (
            &["--secret", "A=dotenv:@dot.env#NO"],
            &["A", "dot.env", "NO", "add"],
        ),
        (
            &["--secret", "1A=env:API_TOKEN"],
            &["name", "no digit first"],
        ),
        (
            &["--secret", "A=env:API_TOKEN,mode=0777"],
            &["A", "mode", "0400"],
        ),
        (
            &["--secret", "A=env:API_TOKEN", "--secret", "A=env:API_TOKEN"],
            &["A", "more than once"],
        ),
        (&["--secrets-env-file", "@missing"], &["missing", "check"]),
        (&["--secrets-env-file", "@bad.env"], &["bad.env", "line 1"]),
        (&["--kernel", "@missing"], &["kernel", "missing", "check"]),
        (&["--kernel", "@noise"], &["noise", "ELF", "name another"]),
        (&["--kernel", "@empty"], &["empty", "ELF"]),
        (&["--kernel", "@folder"], &["folder", "regular file"]),
        (&["--initrd", "@missing"], &["initrd", "missing"]),
        (&["--initrd", "@noise"], &["noise", "cpio"]),
        (&["--rootfs", "@missing"], &["rootfs", "missing"]),
        (&["--rootfs", "@noise,ro"], &["noise", "ext4", "mkfs.ext4"]),
        (&["--rootfs", ""], &["--rootfs", "ext4 image"]),
        (&["--memory", "1M"], &["--memory", "at least 16M"]),
        (&["--memory", "129M"], &["--memory", "128M or 130M"]),
        (&["--memory", "-5M"], &["--memory", "256M"]),
        (&["--memory", "3x"], &["--memory", "256M"]),
        (&["--memory", "100000G"], &["--memory", "at most 512G"]),
        (&["--cpus", "0"], &["--cpus", "at least 1"]),
        (&["--cpus", "-1"], &["--cpus", "at least 1"]),
        (&["--cpus", "1000"], &["--cpus", "at most 254"]),
        (&["--env", "NOVALUE"], &["--env", "KEY=VALUE"]),
        (&["--timeout", "0s"], &["--timeout", "longer"]),
        (&["--timeout", "soon"], &["--timeout", "30s"]),
        (&["-t"], &["-t", "leave -t out"]),
        (&["--frobnicate"], &["--frobnicate", "--help"]),
    ];
    let place = Place::new();
    for (words, expected) in cases {
        let output = place.cachot(&run_words(words));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {error}");
        assert!(output.stdout.is_empty(), "{words:?}");
        assert_eq!(error.lines().count(), 1, "{words:?}: {error}");
        assert!(error.starts_with("cachot: "), "{words:?}: {error}");
        for part in *expected {
            assert!(error.contains(part), "{words:?}: no {part:?} in {error}");
        }
        assert!(!error.contains(VALUE), "{words:?}");
        assert!(place.nothing_left(), "{words:?}");
    }
}

#[test]
fn test_run_all_failing_secrets_are_reported_together_and_no_good_one() {
    let place = Place::new();
    let output = place.cachot(&run_words(&[
        "--secret",
        "A=env:NONE",
        "--secret",
        "B=env:API_TOKEN",
        "--secret",
        "C=nope:x",
        "--secret",
        "D=env:EMPTY",
    ]));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125));
    let named: Vec<_> = error
        .lines()
        .filter_map(|line| line.strip_prefix("cachot: secret ")?.split(':').next())
        .collect();
    assert_eq!(named, ["A", "C", "D"], "{error}");
}

#[test]
fn test_run_detached_that_fails_says_why_in_the_foreground_and_leaves_nothing() {
    let place = Place::new();
    let output = place.cachot(&run_words(&[
        "-d",
        "--name",
        "web",
        "--secret",
        "A=env:NO_SUCH",
    ]));
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(text(&output.stdout), "");
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("NO_SUCH"), "{error}");
    assert!(place.nothing_left());
}

#[test]
fn test_run_without_a_built_guest_says_how_to_build_it() {
    let place = Place::new();
    let output = place
        .command(&["run", "--", "true"])
        .env("CACHOT_GUEST", place.path("folder"))
        .output()
        .expect("it runs");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125));
    assert!(error.contains("make guest"), "{error}");
}

#[test]
fn test_run_monitor_that_cannot_start_leaves_nothing() {
    let place = Place::new();
    for (monitor, expected) in [("missing", "No such file"), ("noise", "Permission denied")] {
        let output = place
            .command(&run_words(&[]))
            .env("CACHOT_VMM", place.path(monitor))
            .output()
            .expect("it runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{error}");
        assert!(
            error.contains(expected) && error.contains("CACHOT_VMM"),
            "{error}"
        );
        assert!(place.nothing_left());
    }
}

#[test]
fn test_run_monitor_that_dies_is_reported_and_leaves_nothing() {
    let place = Place::new();
    for (script, expected) in [
        (
            "#!/bin/sh\necho 'out of luck' >&2\nexit 3\n",
            "exit code 3; it said last: out of luck",
        ),
        ("#!/bin/sh\nkill -9 $$\n", "was killed by signal 9"),
    ] {
        place.file("monitor", script.as_bytes());
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(place.path("monitor"), executable).expect("set");
        let output = place
            .command(&run_words(&["--secret", "A=env:API_TOKEN"]))
            .env("CACHOT_VMM", place.path("monitor"))
            .output()
            .expect("it runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(place.nothing_left());
    }
}

#[test]
fn test_run_monitor_finds_no_value_anywhere_before_it_is_handed_over() {
    let place = Place::new();
    // What the keeper shows of itself while the VM exists, to root at that. The script's working
    // directory is there from the beginning, config.json a little later.
    place.file(
        "monitor",
        b"#!/bin/sh\nsleep 0.3\nexec >../../seen\ncat config.json\n\
          cat /proc/$PPID/environ /proc/$PPID/cmdline /proc/$$/environ | tr '\\0' '\\n'\n",
    );
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.path("monitor"), executable).expect("set");
    place
        .command(&run_words(&[
            "--secret",
            "A=env:API_TOKEN",
            "--env",
            "B=control",
        ]))
        .env("CACHOT_VMM", place.path("monitor"))
        .env("UNRELATED", "positive-control")
        .output()
        .expect("it runs");

    let seen = text(&fs::read(place.path("state/seen")).expect("the script wrote it"));
    assert!(seen.contains("\"env:API_TOKEN\""), "{seen}");
    assert!(seen.contains("UNRELATED=positive-control"), "{seen}");
    assert!(seen.contains("--secret"), "{seen}");
    assert!(!seen.contains(VALUE), "{seen}");
}

#[test]
fn test_run_sweeps_what_killed_processes_left() {
    let place = Place::new();
    let left = place.path("state/vms/vm-left");
    fs::create_dir_all(&left).expect("made");
    let executable = fs::Permissions::from_mode(0o755);
    place.file("monitor", b"#!/bin/sh\n");
    fs::set_permissions(place.path("monitor"), executable).expect("set");
    place
        .command(&run_words(&[]))
        .env("CACHOT_VMM", place.path("monitor"))
        .output()
        .expect("it runs");
    assert!(place.nothing_left());
}

#[test]
fn test_secret_check_lines_and_exit_codes() {
    let place = Place::new();
    let output = place.cachot(&["secret", "check", "API_KEY=env:API_TOKEN"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        "API_KEY ok source=env bytes=40 warning: secret scheme \"env\" is plaintext: \
         not encrypted at rest, not for production\n"
    );
    assert!(output.stderr.is_empty());

    let output = place.cachot(&[
        "secret",
        "check",
        "A=env:NO_SUCH",
        "B=dotenv:@dot.env#KEY",
        "A=env:API_TOKEN",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    let lines: Vec<_> = lines.lines().collect();
    assert!(lines[0].starts_with("A error source=env: "), "{lines:?}");
    assert!(
        lines[1].starts_with("B ok source=dotenv bytes=40 "),
        "{lines:?}"
    );
    assert!(lines[2].starts_with("A error "), "{lines:?}");
    assert_eq!(lines.len(), 3);
    assert!(!text(&output.stdout).contains(VALUE));

    let output = place.cachot(&["secret", "check"]);
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn test_secret_check_of_programs_and_servers() {
    let place = Place::new();
    let output = place
        .command(&[
            "secret",
            "check",
            "PRINTED=exec:/bin/echo printed-by-echo",
            "HELPED=helper:helped-by-echo",
            "STORED=vault:secret/data/app/db#password",
            "PASSED=systemd:token",
        ])
        .env("CACHOT_SECRET_HELPER", "/bin/echo")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines[0], "PRINTED ok source=exec bytes=15");
    assert_eq!(lines[1], "HELPED ok source=helper bytes=14");
    assert!(lines[2].starts_with("STORED error source=vault: vault: no server is named"));
    assert!(lines[3].starts_with("PASSED error source=systemd: systemd: this process has no"));
}

#[test]
fn test_secret_check_json() {
    let place = Place::new();
    let output = place.cachot(&["secret", "check", "--json", "A=env:API_TOKEN", "B=x:y"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json[0]["name"], "A");
    assert_eq!(json[0]["ok"], true);
    assert_eq!(json[0]["bytes"], 40);
    assert_eq!(json[1]["ok"], false);
    assert!(
        json[1]["error"]
            .as_str()
            .is_some_and(|error| error.contains('x'))
    );
    assert!(!text(&output.stdout).contains(VALUE));
}

#[test]
fn test_doctor_both_forms_agree_with_the_exit_code() {
    let place = Place::new();
    let output = place.cachot(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let code = if json["ok"] == true { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code));
    let checks = json["checks"].as_array().expect("a list");
    for name in [
        "kvm",
        "huge-pages",
        "memory-lock",
        "swap",
        "ksm",
        "kernel",
        "monitor",
        "guest",
        "packages",
    ] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
    }
    if Path::new("/dev/kvm").exists() {
        let speed = checks.iter().find(|check| check["name"] == "speed");
        let values = &speed.expect("measured where there is KVM")["values"];
        assert!(values["hardware"].is_boolean(), "{values}");
    }
    assert_eq!(place.cachot(&["doctor"]).status.code(), Some(code));
}

#[test]
fn test_help_and_version_are_no_errors() {
    let place = Place::new();
    for words in [
        &["--help"][..],
        &["run", "--help"],
        &["secret", "check", "--help"],
        &["doctor", "--help"],
    ] {
        let output = place.cachot(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        let help = text(&output.stdout);
        assert!(help.contains("Exit codes"), "{words:?}: {help}");
    }
    let output = place.cachot(&["--version"]);
    assert!(text(&output.stdout).starts_with("cachot "));
    assert_eq!(place.cachot(&[]).status.code(), Some(125));
    assert_eq!(place.cachot(&["fly"]).status.code(), Some(125));
}

#[test]
fn test_check_whose_reader_is_gone_ends_without_a_word() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = place
        .command(&["secret", "check", "A=env:API_TOKEN"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{output:?}");
}
