//! `cachot secret` and `cachot key` as a user meets them, and what they leave behind.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const VALUE: &str = "tk-stored-0123456789abcdef0123456789abcdef";
const SECOND: &str = "tk-second-fedcba9876543210fedcba9876543210";
const THIRD: &str = "tk-third-00112233445566778899aabbccddeeff";

/// A folder of state.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachot"));
        self.prepare(&mut command).args(words);
        command
    }

    fn prepare<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CACHOT_STATE", self.path("state"))
            .env("API_TOKEN", SECOND)
            .stdin(Stdio::null())
    }

    fn cachot(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("it runs")
    }

    /// Runs the command with this on standard input.
    fn given(&self, words: &[&str], input: &str) -> Output {
        let mut child = self.start(words);
        feed(&mut child, input);
        child.wait_with_output().expect("it ends")
    }

    fn start(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("it starts")
    }

    fn export(&self, secret: &str) -> String {
        let output = self.cachot(&["secret", "export", secret, "--yes"]);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command on a terminal of its own, and types an answer to each of these questions; what it shows.
    fn on_a_terminal(&self, line: &str, answers: &[(&str, &str)]) -> Output {
        let mut command = Command::new("script");
        self.prepare(&mut command)
            .args(["--quiet", "--return", "--command"])
            .arg(format!("{} {line}", env!("CARGO_BIN_EXE_cachot")))
            .arg(self.path("typescript"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("`script` is there");
        let mut input = child.stdin.take().expect("a pipe");
        let mut output = child.stdout.take().expect("a pipe");
        let mut shown = Vec::new();
        for (question, answer) in answers {
            while !String::from_utf8_lossy(&shown).contains(question) {
                let mut byte = [0];
                output.read_exact(&mut byte).expect("the question");
                shown.extend(byte);
            }
            // The echo is turned off right after the question.
            std::thread::sleep(std::time::Duration::from_millis(500));
            writeln!(input, "{answer}").expect("typed");
        }
        output.read_to_end(&mut shown).expect("read");
        drop(input);
        let status = child.wait().expect("it ends");
        Output {
            status,
            stdout: shown,
            stderr: Vec::new(),
        }
    }
}

fn feed(child: &mut Child, input: &str) {
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input.as_bytes()).expect("written");
}

/// All that a command has said.
fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

#[track_caller]
fn fails(output: &Output, code: i32, expected: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(expected), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
}

#[test]
fn test_secret_from_its_first_version_to_its_end() {
    let place = Place::new();
    assert_eq!(ok(&place.cachot(&["secret", "list"])).lines().count(), 1);

    ok(&place.given(&["secret", "set", "KEY"], VALUE));
    ok(&place.cachot(&["secret", "set", "KEY", "--from", "env:API_TOKEN"]));
    ok(&place.given(&["secret", "rotate", "KEY"], THIRD));
    assert_eq!(place.export("KEY"), THIRD);
    assert_eq!(place.export("workspace/KEY@2"), SECOND);
    ok(&place.cachot(&["secret", "rollback", "KEY", "1"]));
    assert_eq!(place.export("KEY"), VALUE);

    let json = ok(&place.cachot(&["secret", "history", "KEY", "--json"]));
    let history: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(history.as_array().map(Vec::len), Some(4));
    assert_eq!(history[0]["version"], 4);
    assert_eq!(history[0]["current"], true);
    let list = ok(&place.cachot(&["secret", "list"]));
    assert!(list.contains("KEY") && list.contains("workspace"), "{list}");

    ok(&place.cachot(&["secret", "delete", "KEY"]));
    fails(
        &place.cachot(&["secret", "export", "KEY", "--yes"]),
        1,
        "there is no secret KEY",
    );
    fails(
        &place.given(&["secret", "rotate", "KEY"], VALUE),
        1,
        "there is no secret KEY",
    );
    assert!(!ok(&place.cachot(&["secret", "list"])).contains("KEY"));
    assert!(ok(&place.cachot(&["secret", "list", "--all"])).contains("deleted"));
}

#[test]
fn test_check_resolves_references_to_the_store() {
    let place = Place::new();
    let check = |more: &[&str]| {
        place.cachot(&[&["secret", "check", "A=store:KEY", "B=store:KEY@1"], more].concat())
    };
    let none = check(&[]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none).contains("there is no store"), "{}", text(&none));
    let alice = ["--secrets-user", "alice"];
    let set = ["secret", "set", "KEY", "--scope", "user:alice"];
    ok(&place.given(&[&set[..], &alice].concat(), VALUE));
    let other = check(&[]);
    assert_eq!(other.status.code(), Some(1));
    assert!(
        text(&other).contains("there is no secret KEY"),
        "{}",
        text(&other)
    );
    let own = ok(&check(&alice));
    assert_eq!(
        own.lines().next(),
        Some("A ok source=store scope=user:alice version=1 bytes=42")
    );
}

#[test]
fn test_users_do_not_see_each_other() {
    let place = Place::new();
    let set = |user: &str, scope: &str, value: &str| {
        place.given(
            &[
                "secret",
                "set",
                "KEY",
                "--secrets-user",
                user,
                "--scope",
                scope,
            ],
            value,
        )
    };
    ok(&set("alice", "user:alice", VALUE));
    ok(&set("bob", "user:bob", SECOND));
    ok(&set("alice", "instance:web", THIRD));
    let of = |user: &str, selector: &str| {
        place.cachot(&[
            "secret",
            "export",
            selector,
            "--yes",
            "--secrets-user",
            user,
        ])
    };
    assert_eq!(ok(&of("alice", "KEY")), VALUE);
    assert_eq!(ok(&of("bob", "KEY")), SECOND);
    assert_eq!(ok(&of("alice", "instance:web/KEY")), THIRD);
    fails(&of("bob", "user:alice/KEY"), 125, "is not open to who asks");
    fails(
        &of("bob", "user:alice/NONE"),
        125,
        "is not open to who asks",
    );
    fails(&of("bob", "instance:web/KEY"), 1, "there is no secret KEY");
    fails(
        &set("bob", "user:alice", "x"),
        125,
        "is not open to who asks",
    );
    let list = ok(&place.cachot(&["secret", "list", "--secrets-user", "bob"]));
    assert!(
        list.contains("user:bob") && !list.contains("alice"),
        "{list}"
    );
}

#[test]
fn test_value_on_the_command_line_is_stored_with_a_warning_and_not_repeated() {
    let place = Place::new();
    let set = place.cachot(&["secret", "set", "KEY", VALUE]);
    let said = ok(&set);
    assert!(said.contains("WARNING") && !said.contains(VALUE), "{said}");
    assert_eq!(place.export("KEY"), VALUE);

    let (option, from) = (format!("--{VALUE}"), format!("--from={VALUE}"));
    for words in [
        ["KEY", VALUE, SECOND],
        ["KEY", "--from=env:API_TOKEN", VALUE],
        ["KEY", &option, "x"],
        [VALUE, SECOND, "x"],
        ["KEY", &from, "--scope=workspace"],
    ] {
        let refused = place.cachot(&[&["secret", "set"], &words[..]].concat());
        let said = text(&refused);
        assert_eq!(refused.status.code(), Some(125), "{said}");
        assert!(!said.contains(VALUE) && !said.contains(SECOND), "{said}");
    }
    assert_eq!(place.export("KEY@1"), VALUE);
    fails(
        &place.cachot(&["secret", "export", "KEY@2", "--yes"]),
        1,
        "has no version 2",
    );
}

#[test]
fn test_input_is_stored_as_it_is_and_empty_or_long_input_not_at_all() {
    let place = Place::new();
    let newline = place.given(&["secret", "set", "KEY"], "line\n");
    assert!(ok(&newline).contains("ends with a newline"));
    assert_eq!(place.export("KEY"), "line\n");
    fails(
        &place.given(&["secret", "set", "KEY"], ""),
        125,
        "the value is empty",
    );
    let long = "x".repeat((1 << 20) + 1);
    fails(
        &place.given(&["secret", "set", "KEY"], &long),
        125,
        "over the limit",
    );
    let bad = place.cachot(&["secret", "set", "KEY", "--from", "env:NOT_SET"]);
    fails(&bad, 125, "NOT_SET");
    let generated = ok(&place.cachot(&["secret", "rotate", "KEY", "--generate"]));
    let value = place.export("KEY");
    assert!(value.len() == 43 && !generated.contains(&value));
}

#[test]
fn test_value_is_asked_for_twice_and_not_shown() {
    let place = Place::new();
    let (first, second) = ("Value:", "The same value again:");
    let set = place.on_a_terminal("secret set KEY", &[(first, VALUE), (second, VALUE)]);
    let said = ok(&set);
    assert!(
        said.contains("version 1") && !said.contains(VALUE),
        "{said}"
    );
    assert_eq!(place.export("KEY"), VALUE);

    let differs = place.on_a_terminal("secret set KEY", &[(first, SECOND), (second, THIRD)]);
    assert!(
        text(&differs).contains("not the same"),
        "{}",
        text(&differs)
    );
    assert_eq!(place.export("KEY"), VALUE);
}

#[test]
fn test_export_asks() {
    let place = Place::new();
    ok(&place.given(&["secret", "set", "KEY"], VALUE));
    let (yes, no) = (
        place.on_a_terminal("secret export KEY", &[("[y/N]", "yes")]),
        place.on_a_terminal("secret export KEY", &[("[y/N]", "no")]),
    );
    assert!(text(&yes).contains(VALUE));
    assert!(!text(&no).contains(VALUE));
    assert_eq!(no.status.code(), Some(1), "{}", text(&no));

    let mut nobody = Command::new("setsid");
    place
        .prepare(&mut nobody)
        .arg("--wait")
        .arg(env!("CARGO_BIN_EXE_cachot"));
    let nobody = nobody
        .args(["secret", "export", "KEY"])
        .output()
        .expect("`setsid` is there");
    fails(&nobody, 125, "--yes");
}

#[test]
fn test_values_are_nowhere_but_where_they_were_exported_to() {
    let place = Place::new();
    let mut said = String::new();
    for output in [
        place.given(&["secret", "set", "KEY"], VALUE),
        place.cachot(&["secret", "set", "KEY", "--from", "env:API_TOKEN"]),
        place.given(&["secret", "rotate", "KEY"], THIRD),
        place.cachot(&["secret", "rollback", "KEY", "1"]),
        place.cachot(&["key", "rotate"]),
        place.cachot(&["secret", "list", "--json"]),
        place.cachot(&["secret", "history", "KEY"]),
        place.cachot(&["secret", "check", "A=store:KEY"]),
    ] {
        said += &ok(&output);
    }
    // This one has the database open, so its log stays, until it gets its value.
    let mut waiting = place.start(&["secret", "rotate", "KEY"]);
    let log = place.path("state/secrets/store.db-wal");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !log.exists() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    ok(&place.given(&["secret", "set", "KEY"], SECOND));
    let process = format!("/proc/{}", waiting.id());
    let seen = [
        fs::read(format!("{process}/cmdline")).expect("read"),
        said.into_bytes(),
    ];
    let found = |value: &str| -> Vec<PathBuf> {
        let holds = |bytes: &[u8]| {
            bytes
                .windows(8)
                .any(|part| value.as_bytes().windows(8).any(|piece| piece == part))
        };
        let mut found = files(&place.path("state"));
        assert!(found.len() >= 4, "{found:?}");
        found.retain(|path| holds(&fs::read(path).expect("read")));
        found.extend(
            seen.iter()
                .filter(|bytes| holds(bytes))
                .map(|_| "what was said".into()),
        );
        found
    };

    for value in [VALUE, SECOND, THIRD] {
        assert!(found(value).is_empty(), "{:?}", found(value));
    }
    // The search finds what is there: a piece in a file beside the database.
    let control = place.path("state/secrets/control");
    fs::write(&control, [b"....", &VALUE.as_bytes()[5..25]].concat()).expect("written");
    assert_eq!(found(VALUE), [control]);

    feed(&mut waiting, VALUE);
    ok(&waiting.wait_with_output().expect("it ends"));
    assert_eq!(place.export("KEY"), VALUE);
}

/// All files in a folder and below.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("listed");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

#[test]
fn test_many_commands_at_once_lose_nothing() {
    const COMMANDS: u64 = 12;
    let place = Place::new();
    let children: Vec<Child> = (0..COMMANDS)
        .map(|number| {
            let mut child = place.start(&["secret", "set", "KEY"]);
            feed(&mut child, &format!("value {number}"));
            child
        })
        .collect();
    for child in children {
        ok(&child.wait_with_output().expect("it ends"));
    }
    let mut values: Vec<String> = (1..=COMMANDS)
        .map(|version| place.export(&format!("KEY@{version}")))
        .collect();
    values.sort();
    let mut wanted: Vec<String> = (0..COMMANDS)
        .map(|number| format!("value {number}"))
        .collect();
    wanted.sort();
    assert_eq!(values, wanted);
}

#[test]
fn test_key_from_file_to_age_and_a_credential() {
    use age::secrecy::ExposeSecret;
    let place = Place::new();
    let identity = |name: &str| {
        let key = age::x25519::Identity::generate();
        let path = place.path(name);
        fs::write(&path, key.to_string().expose_secret()).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("private");
        (
            path.to_str().expect("plain").to_owned(),
            key.to_public().to_string(),
        )
    };
    let (one, two) = (identity("one"), identity("two"));
    fails(&place.cachot(&["key", "status"]), 125, "there is no store");
    ok(&place.cachot(&["key", "init"]));
    fails(&place.cachot(&["key", "init"]), 125, "already");
    ok(&place.given(&["secret", "set", "KEY"], VALUE));

    ok(&place.cachot(&["key", "rotate"]));
    ok(&place.cachot(&["key", "rotate", "--age-identity", &one.0]));
    ok(&place.cachot(&["key", "add-recipient", &two.1]));
    let status = ok(&place.cachot(&["key", "status"]));
    assert!(
        status.contains(&one.1) && status.contains(&two.1),
        "{status}"
    );
    fails(
        &place.cachot(&["key", "remove-recipient", &one.1]),
        125,
        "could not be opened here",
    );
    ok(&place.cachot(&["key", "remove-recipient", &two.1]));
    fails(
        &place.cachot(&["key", "remove-recipient", &two.1]),
        125,
        "is not encrypted to",
    );
    let private = fs::read_to_string(&one.0).expect("read");
    let mistaken = place.cachot(&["key", "add-recipient", &private]);
    fails(&mistaken, 125, "not a public key of age");
    assert!(!text(&mistaken).contains("SECRET"), "{}", text(&mistaken));
    assert_eq!(place.export("KEY"), VALUE);

    fs::create_dir(place.path("credentials")).expect("made");
    fs::write(place.path("credentials/store"), [3; 32]).expect("written");
    let with = |words: &[&str]| {
        let mut command = place.command(words);
        command.env("CREDENTIALS_DIRECTORY", place.path("credentials"));
        command.output().expect("it runs")
    };
    fails(
        &place.cachot(&["key", "rotate", "--credential", "store"]),
        125,
        "CREDENTIALS_DIRECTORY",
    );
    ok(&with(&["key", "rotate", "--credential", "store"]));
    assert_eq!(ok(&with(&["secret", "export", "KEY", "--yes"])), VALUE);
    fails(
        &place.cachot(&["secret", "export", "KEY", "--yes"]),
        125,
        "CREDENTIALS_DIRECTORY",
    );
    fails(&with(&["key", "rotate"]), 125, "--credential");
    ok(&with(&["key", "rotate", "--file"]));
    assert_eq!(place.export("KEY"), VALUE);
}
