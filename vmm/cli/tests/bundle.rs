//! `cachot bundle` as a user meets it, with files of another implementation: the `age` command.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// In every value here, so that one search finds any.
const MARK: &str = "7c1d";

const KEY: &str =
    "-----BEGIN OPENSSH PRIVATE KEY-----\nkey-7c1d\n-----END OPENSSH PRIVATE KEY-----\n";

/// A user with settings, a key and a folder of bundles.
struct User(tempfile::TempDir);

impl User {
    fn new() -> Self {
        let user = Self(tempfile::tempdir().expect("a folder"));
        let root = user.0.path().display();
        let settings =
            format!("secrets_dir: {root}/bundles\nsecrets_age_key_path: {root}/age.key\n");
        user.file("config.yaml", 0o644, settings.as_bytes());
        fs::copy(fixture("mine.key"), user.path("age.key")).expect("a key");
        user.set_mode("age.key", 0o600);
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn set_mode(&self, name: &str, mode: u32) {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(self.path(name), mode).expect("its mode");
    }

    fn file(&self, name: &str, mode: u32, content: &[u8]) {
        fs::write(self.path(name), content).expect("written");
        self.set_mode(name, mode);
    }

    fn cachot(&self, words: &[&str], input: &[u8]) -> Output {
        let folder = format!("{}/", self.0.path().display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachot"));
        command.args(words.iter().map(|word| word.replace('@', &folder)));
        self.run(&mut command, input)
    }

    fn run(&self, command: &mut Command, input: &[u8]) -> Output {
        let mut child = command
            .env_clear()
            .env("CACHOT_CONFIG", self.path("config.yaml"))
            .env("CACHOT_STATE", self.path("state"))
            .env("TOKEN", "token-7c1d")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        // Many commands end without reading it.
        child.stdin.take().expect("a pipe").write_all(input).ok();
        child.wait_with_output().expect("it ends")
    }

    /// What a command that succeeds prints.
    fn ok(&self, words: &[&str], input: &str) -> String {
        let output = self.cachot(words, input.as_bytes());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {errors}");
        text(&output.stdout)
    }

    /// With a bundle `default`.
    fn with_bundle() -> Self {
        let user = Self::new();
        fs::copy(fixture("default.yaml"), user.path("plain.yaml")).expect("copied");
        user.ok(&["bundle", "encrypt", "default", "@plain.yaml"], "");
        user
    }

    fn stored(&self) -> Vec<u8> {
        fs::read(self.path("bundles/default.age")).expect("a bundle")
    }
}

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("secrets/custody/tests/bundles/fixtures")
        .join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn test_bundle_is_made_shown_and_never_revealed_unasked() {
    let user = User::with_bundle();

    let shown = user.ok(&["bundle", "show", "default"], "");
    let revealed = user.ok(&["bundle", "show", "default", "--reveal", "--yes"], "");

    assert!(
        shown.contains("git.token") && shown.contains("(secret)"),
        "{shown}"
    );
    assert!(!shown.contains(MARK), "{shown}");
    assert!(revealed.contains("git-token-7c1d0001"), "{revealed}");
    // With no terminal there is nobody to ask, and standard input is none.
    let mut unasked = Command::new("setsid");
    unasked.args(["--wait", env!("CARGO_BIN_EXE_cachot")]);
    unasked.args(["bundle", "show", "default", "--reveal"]);
    let unasked = user.run(&mut unasked, b"y\n");
    assert_eq!(unasked.status.code(), Some(125));
    assert!(unasked.stdout.is_empty() && text(&unasked.stderr).contains("--yes"));
    let said = user.ok(&["bundle", "encrypt", "piped", "-"], "env: {A: v-7c1d}");
    assert!(!said.contains("plaintext"), "{said}");
    assert!(user.ok(&["bundle", "show", "piped"], "").contains("env.A"));
    let mode = fs::metadata(user.path("bundles/default.age"))
        .expect("there")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn test_values_are_shown_only_once_that_is_recorded() {
    let user = User::new();
    let text_of_bundle =
        "env: {A: a-7c1d}\ngit: {username: me, token: t-7c1d}\nssh: {keys: {my-ci: {key: k-7c1d}}}";
    user.ok(&["bundle", "encrypt", "some", "-"], text_of_bundle);
    user.ok(&["bundle", "show", "some"], "");
    assert!(!user.path("state").exists(), "nothing was shown");

    let show = ["bundle", "show", "some", "--reveal", "--yes"];
    assert_eq!(user.ok(&show, "").matches(MARK).count(), 3);

    let log = user.ok(&["secret", "audit"], "");
    let id = rustix::process::getuid().as_raw();
    let mut names: Vec<_> = log
        .lines()
        .map(|line| {
            let (_, rest) = line.split_once(' ').expect("a time");
            let (name, rest) = rest.split_once(' ').expect("a name");
            assert_eq!(rest, format!("export allow user={id} source=bundle"));
            name
        })
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "GIT_TOKEN", "SSH_KEY_MY_CI"]);
    assert!(!log.contains(MARK));

    user.set_mode("state/audit/log.jsonl", 0o644);
    let refused = user.cachot(&show, b"");
    assert_eq!(refused.status.code(), Some(125));
    assert!(refused.stdout.is_empty(), "{}", text(&refused.stdout));
    let error = text(&refused.stderr);
    assert!(error.contains("cannot be recorded"), "{error}");
}

#[test]
fn test_bundle_is_changed_by_what_standard_input_and_references_give() {
    let user = User::with_bundle();
    user.ok(&["bundle", "set-env", "default", "NEW"], "new-7c1d\n");
    user.ok(
        &[
            "bundle",
            "set-git",
            "default",
            "token",
            "--from",
            "env:TOKEN",
        ],
        "",
    );
    user.ok(
        &["bundle", "set-git", "default", "known-hosts"],
        "a b\nc d\n",
    );
    user.ok(
        &[
            "bundle",
            "add-ssh-key",
            "default",
            "ci",
            "--comment",
            "ci@host",
        ],
        KEY,
    );
    user.ok(&["bundle", "remove-ssh-key", "default", "deploy"], "");

    let shown = user.ok(&["bundle", "show", "default", "--reveal", "--yes"], "");

    for (field, value) in [
        ("env.NEW", "new-7c1d"),
        ("git.token", "token-7c1d"),
        ("git.known_hosts", "\"a b\\nc d\\n\""),
        ("ssh.ci", "key-7c1d"),
        ("env.ANTHROPIC_API_KEY", "env-value-7c1d0003"),
    ] {
        let mut lines = shown.lines();
        let line = lines.find(|line| line.starts_with(&format!("{field} ")));
        assert!(
            line.is_some_and(|line| line.contains(value)),
            "{field}: {shown}"
        );
    }
    assert!(!shown.contains("ssh.deploy"));
}

#[test]
fn test_bundle_is_checked_by_secret_check_and_validate() {
    let user = User::with_bundle();
    let checked = user.ok(&["secret", "check", "A=bundle:default#git.token"], "");
    assert_eq!(checked, "A ok source=bundle bytes=18\n");

    let report = user.ok(&["bundle", "validate", "default", "--json"], "");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["ok"], true);
    assert_eq!(report["readers"], 1);
    assert_eq!(report["fields"][1]["field"], "git.token");
    assert_eq!(report["fields"][1]["bytes"], 18);

    user.file("lacking.yaml", 0o600, b"env: {A: ''}\ngit: {user: x}\n");
    user.ok(&["bundle", "encrypt", "lacking", "@lacking.yaml"], "");
    let lacking = user.cachot(&["bundle", "validate", "lacking"], b"");
    assert_eq!(lacking.status.code(), Some(1));
    let said = text(&lacking.stdout);
    assert!(
        said.contains("error: env.A is empty") && said.contains("warning: git.user"),
        "{said}"
    );
    assert!(said.ends_with("lacking not usable (age)\n"), "{said}");
}

#[test]
fn test_bundle_of_the_age_command_and_of_sops_are_read() {
    let user = User::new();
    fs::create_dir(user.path("bundles")).expect("made");
    for (from, name) in [
        ("armored.age", "a"),
        ("default.sops.yaml", "b"),
        ("default.sops.json", "c"),
    ] {
        let (_, extension) = from.split_once('.').expect("an extension");
        let to = format!("bundles/{name}.{extension}");
        fs::copy(fixture(from), user.path(&to)).expect("copied");
        user.set_mode(&to, 0o600);
        let shown = user.ok(&["bundle", "show", name, "--reveal", "--yes"], "");
        assert!(shown.contains("env-value-7c1d0003"), "{from}: {shown}");
    }
}

#[test]
fn test_bundle_failures_exit_with_125_change_nothing_and_never_show_a_value() {
    let user = User::with_bundle();
    let before = user.stored();
    user.file("broken.yaml", 0o600, b"env:\n  A: v-7c1d\n B: v-7c1d\n");
    user.file("typed.yaml", 0o600, b"env: {A: [v-7c1d]}\n");
    user.file("later.yaml", 0o600, b"version: 2\nenv: {A: v-7c1d}\n");
    user.file(
        "alias.yaml",
        0o600,
        b"env: {A: &v-7c1d v-7c1d, B: *v-7c1d}\n",
    );
    user.file("twice.yaml", 0o600, b"env: {A-7c1d: v, A-7c1d: w}\n");
    user.file(
        "others.key",
        0o644,
        &fs::read(fixture("mine.key")).expect("a key"),
    );
    let cases: &[(&[&str], &str, &str)] = &[
        (&["bundle", "show", "none"], "", "bundle not found"),
        (
            &["bundle", "show", "../default"],
            "",
            "not the name of a bundle",
        ),
        (
            &["bundle", "show", "default", "--identity", "@none"],
            "",
            "no age identities",
        ),
        (
            &["bundle", "show", "default", "--identity", "@others.key"],
            "",
            "open to others",
        ),
        (
            &["bundle", "encrypt", "new", "@broken.yaml"],
            "",
            "line 3 is not YAML",
        ),
        (
            &["bundle", "encrypt", "new", "@typed.yaml"],
            "",
            "env.A is not a text",
        ),
        (
            &["bundle", "encrypt", "new", "@later.yaml"],
            "",
            "unsupported bundle version 2",
        ),
        (
            &["bundle", "encrypt", "new", "@alias.yaml"],
            "",
            "anchor or an alias",
        ),
        (
            &["bundle", "encrypt", "new", "@twice.yaml"],
            "",
            "line 1 repeats a key",
        ),
        (
            &["bundle", "encrypt", "default", "@plain.yaml"],
            "",
            "exists already",
        ),
        (
            &["bundle", "set-env", "default", "v-7c1d"],
            "x",
            "not allowed",
        ),
        (&["bundle", "set-env", "default", "A"], "", "value is empty"),
        (
            &["bundle", "set-env", "default", "A"],
            "\n",
            "value is empty",
        ),
        (
            &["bundle", "set-env", "default", "A", "--from", "v-7c1d"],
            "",
            "no scheme",
        ),
        (
            &["bundle", "set-env", "default", "A", "--from", "env:NONE"],
            "",
            "not set",
        ),
        (
            &["bundle", "set-git", "default", "ssh-private-key"],
            "v-7c1d",
            "not a private key",
        ),
        (
            &["bundle", "add-ssh-key", "default", "deploy"],
            KEY,
            "already",
        ),
        (
            &["bundle", "remove-ssh-key", "default", "none"],
            "",
            "no ssh key none",
        ),
        (
            &[
                "bundle",
                "reencrypt",
                "default",
                "-r",
                "AGE-SECRET-KEY-7c1d",
            ],
            "",
            "not a public key",
        ),
        (
            &["run", "--secrets-bundle", "none", "--", "true"],
            "",
            "bundle not found",
        ),
    ];
    for (words, input, expected) in cases {
        let output = user.cachot(words, input.as_bytes());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {errors}");
        assert!(errors.contains(expected), "{words:?}: {errors}");
        assert!(
            !errors.contains(MARK) && output.stdout.is_empty(),
            "{words:?}: {errors}"
        );
        assert!(user.stored() == before, "{words:?}");
    }
    // The control: the values are there to be shown.
    let revealed = user.ok(&["bundle", "show", "default", "--reveal", "--yes"], "");
    assert!(revealed.contains(MARK));
    let binary = user.cachot(&["bundle", "set-env", "default", "A"], b"\xff7c1d");
    assert!(text(&binary.stderr).contains("not text in UTF-8"));
    assert!(!user.path("bundles/new.age").exists());
}

#[test]
fn test_bundle_changed_by_many_at_once_loses_no_change() {
    let user = User::with_bundle();
    let keys: Vec<String> = (0..8).map(|n| format!("KEY_{n}")).collect();

    std::thread::scope(|scope| {
        for key in &keys {
            scope.spawn(|| user.ok(&["bundle", "set-env", "default", key], "v-7c1d"));
        }
    });

    let shown = user.ok(&["bundle", "show", "default"], "");
    for key in &keys {
        assert!(shown.contains(&format!("env.{key} ")), "{key}: {shown}");
    }
}

#[test]
fn test_bundle_is_whole_whenever_a_change_is_killed() {
    let user = User::with_bundle();
    for round in 0..30_u64 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cachot"))
            .args(["bundle", "set-env", "default", "KEY", "--from", "env:TOKEN"])
            .env_clear()
            .env("CACHOT_CONFIG", user.path("config.yaml"))
            .env("TOKEN", format!("token-{round}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(std::time::Duration::from_micros(round * 700));
        child.kill().expect("killed");
        child.wait().expect("it ends");

        let shown = user.ok(&["bundle", "show", "default", "--reveal", "--yes"], "");
        assert!(shown.contains("env-value-7c1d0003"), "{shown}");
    }
    user.ok(&["bundle", "set-env", "default", "KEY"], "last");
    let names = fs::read_dir(user.path("bundles")).expect("listed");
    let mut names: Vec<_> = names
        .map(|entry| entry.expect("a file").file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".bundles.lock", "default.age"]);
}

#[test]
fn test_settings_that_are_wrong_stop_every_command() {
    let user = User::new();
    user.file("config.yaml", 0o644, b"secrets_dri: /x\n");
    let output = user.cachot(&["ps"], b"");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("unknown field `secrets_dri`"));
}
