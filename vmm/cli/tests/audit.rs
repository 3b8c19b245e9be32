//! Audit logs as a user meets them, as far as that needs no VM.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const VALUE: &str = "tk-demo-0123456789abcdef0123456789abcdef";

/// A state folder.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn cachot(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cachot"))
            .args(words)
            .current_dir(self.0.path())
            .env_clear()
            .env("CACHOT_STATE", self.path("state"))
            .env("API_TOKEN", VALUE)
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    }

    fn lines(&self, words: &[&str], code: i32) -> Vec<String> {
        let output = self.cachot(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        text(&output.stdout).lines().map(str::to_owned).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Whether a file in this folder, or in one below, has this text.
fn holds(folder: &Path, wanted: &str) -> bool {
    let entries = fs::read_dir(folder).expect("listed");
    entries
        .map(|entry| entry.expect("an entry").path())
        .any(|path| match path.is_dir() {
            true => holds(&path, wanted),
            false => String::from_utf8_lossy(&fs::read(&path).expect("read")).contains(wanted),
        })
}

/// The log without its times.
fn log(place: &Place) -> Vec<String> {
    let shown = place.lines(&["secret", "audit"], 0);
    let without_time = |line: &String| line.split_once(' ').expect("a time").1.to_owned();
    shown.iter().map(without_time).collect()
}

#[test]
fn test_uses_of_the_store_are_recorded_with_scope_and_version_and_those_of_others_denied() {
    let place = Place::new();
    let set = ["secret", "set", "KEY", "--from", "env:API_TOKEN"];
    place.lines(&set, 0);
    place.lines(&set, 0);
    let alice = ["--secrets-user", "alice", "--scope", "user:alice"];
    place.lines(&[&set[..], &alice].concat(), 0);

    for (words, code) in [
        (&["secret", "check", "A=store:KEY", "B=store:KEY@1"][..], 0),
        (
            &["secret", "check", "A=store:KEY", "--secrets-user=alice"],
            0,
        ),
        (&["secret", "check", "A=store:user:alice/KEY"], 1),
        (
            &["run", "--secret=A=store:user:alice/KEY", "--", "true"],
            125,
        ),
        (&["secret", "export", "KEY@1", "--yes"], 0),
        (&["secret", "export", "user:alice/KEY", "--yes"], 125),
        (&["secret", "export", "NONE", "--yes"], 1),
    ] {
        place.lines(words, code);
    }

    let user = rustix::process::getuid().as_raw();
    assert_eq!(
        log(&place),
        [
            format!("A check allow user={user} source=store scope=workspace version=2"),
            format!("B check allow user={user} source=store scope=workspace version=1"),
            "A check allow user=alice source=store scope=user:alice version=1".to_owned(),
            format!("A check deny user={user} source=store: not open to this user"),
            format!("A materialize deny user={user} source=store: not open to this user"),
            format!("KEY export allow user={user} source=store scope=workspace version=1"),
            format!("KEY export deny user={user} source=store: not open to this user"),
            format!("NONE export error user={user} source=store: no such secret"),
        ]
    );
    assert!(!holds(&place.path("state"), "tk-demo"));
}

#[test]
fn test_uses_are_recorded_shown_and_verified_without_a_value() {
    let place = Place::new();
    let typed = format!("WRONG=env:{VALUE}");
    let scheme = "SCHEME=tk-demo-short:x";
    place.lines(
        &["secret", "check", "A=env:API_TOKEN", &typed, scheme, VALUE],
        1,
    );
    place.lines(
        &["run", "--name", "lost", "--secret", &typed, "--", "true"],
        125,
    );
    fs::write(place.path("file"), "nothing").expect("written");
    place.lines(
        &["snapshot", "scan", "file", "--secret", "B=env:API_TOKEN"],
        0,
    );

    let user = rustix::process::getuid().as_raw();
    assert_eq!(
        log(&place),
        [
            format!("A check allow user={user} source=env"),
            format!("WRONG check error user={user} source=env: no such variable"),
            format!("SCHEME check error user={user}: unknown scheme"),
            format!("- check error user={user}: malformed declaration"),
            format!("WRONG materialize error vm=lost user={user} source=env: no such variable"),
            format!("B check allow user={user} source=env"),
        ]
    );
    let json = place.lines(&["secret", "audit", "--json"], 0);
    let first: serde_json::Value = serde_json::from_str(&json[0]).expect("JSON");
    assert_eq!(
        (&first["name"], &first["access"]),
        (&"A".into(), &"check".into())
    );
    assert!(place.lines(&["secret", "audit", "verify"], 0)[0].contains("as it was written"));
    assert!(!holds(&place.path("state"), "tk-demo"));
    assert!(holds(&place.path("state"), "WRONG"), "control");

    let log = place.path("state/audit/log.jsonl");
    let changed = fs::read_to_string(&log)
        .expect("text")
        .replace("lost", "last");
    fs::write(&log, changed).expect("written");
    let wrong = place.lines(&["secret", "audit", "verify"], 1);
    assert!(
        wrong[0].starts_with("wrong: ") && wrong[0].contains("log.jsonl:9: "),
        "{wrong:?}"
    );
    assert!(
        wrong
            .last()
            .expect("a line")
            .contains("NOT as it was written")
    );
    let json = place
        .lines(&["secret", "audit", "verify", "--json"], 1)
        .join("\n");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json[0]["ok"], &json[0]["wrong"][0]["line"]),
        (&false.into(), &9.into())
    );
    let copy = place.lines(&["secret", "audit", "verify", "./state/audit"], 1);
    assert_eq!(copy.len(), wrong.len());
}

#[test]
fn test_use_that_cannot_be_recorded_gives_nothing_out() {
    let place = Place::new();
    let audit = place.path("state/audit");
    let check = ["secret", "check", "A=env:API_TOKEN"];
    place.lines(&check, 0);
    let refused = |what: &str| {
        for words in [
            &check[..],
            &["snapshot", "scan", "state", "--secret", "A=env:API_TOKEN"],
        ] {
            let output = place.cachot(words);
            assert_eq!(output.status.code(), Some(125), "{what}: {output:?}");
            assert!(output.stdout.is_empty(), "{what}: {output:?}");
            let error = text(&output.stderr);
            let expected = "cachot: no secret is given out, as that cannot be recorded: ";
            assert!(error.starts_with(expected), "{what}: {error}");
            assert_eq!(error.lines().count(), 1, "{what}: {error}");
        }
    };
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };

    mode(&audit.join("log.jsonl"), 0o644);
    refused("a log that others read");
    mode(&audit.join("log.jsonl"), 0o600);
    mode(&audit, 0o777);
    refused("a folder that others write to");
    mode(&audit, 0o700);
    mode(&place.path("state/host-key"), 0o644);
    refused("a key that others read");
    mode(&place.path("state/host-key"), 0o600);
    fs::rename(&audit, place.path("elsewhere")).expect("moved");
    symlink(place.path("elsewhere"), &audit).expect("linked");
    refused("a link");
    fs::remove_file(&audit).expect("removed");
    fs::write(&audit, "x").expect("written");
    refused("a file");
    fs::remove_file(&audit).expect("removed");
    fs::rename(place.path("elsewhere"), &audit).expect("moved");
    fs::write(audit.join("log.jsonl"), "").expect("written");
    refused("a log that was emptied");
    fs::remove_file(audit.join("log.jsonl")).expect("removed");
    refused("a log that was removed");
    fs::remove_dir_all(&audit).expect("removed");
    place.lines(&check, 0);
}

#[test]
fn test_log_that_a_trusted_key_has_signed_is_noted_by_verify_and_not_gone_on_with() {
    let place = Place::new();
    let check = ["secret", "check", "A=env:API_TOKEN"];
    place.lines(&check, 0);
    assert_eq!(place.lines(&["secret", "audit", "verify"], 0).len(), 1);
    let first = fs::read_to_string(place.path("state/audit/log.jsonl")).expect("text");
    let (_, rest) = first.split_once(r#""key":""#).expect("a checkpoint");
    let key = &rest[..64];

    // The host gets another key, and trusts the old one.
    fs::remove_file(place.path("state/host-key")).expect("removed");
    let trusted = place.path("state/trusted-keys");
    fs::create_dir(&trusted).expect("made");
    fs::set_permissions(&trusted, fs::Permissions::from_mode(0o700)).expect("its mode");
    fs::write(trusted.join("old"), format!("{key}\n")).expect("written");
    fs::set_permissions(trusted.join("old"), fs::Permissions::from_mode(0o600)).expect("its mode");

    let refused = place.cachot(&check);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let error = text(&refused.stderr);
    assert!(
        error.contains(key) && error.contains("move the log's folder away"),
        "{error}"
    );
    let lines = place.lines(&["secret", "audit", "verify"], 0);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with("note: ") && lines[0].contains(key),
        "{lines:?}"
    );
    // Controls: as the error says.
    fs::rename(place.path("state/audit"), place.path("old")).expect("moved");
    place.lines(&check, 0);
    assert_eq!(place.lines(&["secret", "audit", "verify"], 0).len(), 1);
}

#[test]
fn test_logs_that_there_are_not_are_told_apart() {
    let place = Place::new();
    let cases: [(&[&str], &str); 5] = [
        (&["secret", "audit"], "there is no audit log"),
        (&["secret", "audit", "verify"], "there is no audit log"),
        (
            &["secret", "audit", "verify", "./nowhere"],
            "there is no audit log",
        ),
        (&["secret", "audit", "nobody"], "no VM of the name"),
        (
            &["secret", "audit", "verify", "no name"],
            "neither a VM's name",
        ),
    ];
    for (words, expected) in cases {
        let output = place.cachot(words);
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
    for words in [
        &["secret", "audit", "--help"][..],
        &["secret", "audit", "verify", "--help"],
    ] {
        assert!(place.lines(words, 0).join("\n").contains("Exit codes"));
    }
}
