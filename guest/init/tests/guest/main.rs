//! PID 1's whole session logic on an ordinary host: real processes, Unix sockets for vsock.

mod commands;
mod copies;
mod freezing;
mod keeper;
mod life;
mod streams;

use keeper::{Keeper, command, script};

fn failure(start: cachot_control::Start) -> (u8, String) {
    Keeper::boot().fail(start)
}

#[test]
fn test_run_reports_the_exit_code() {
    assert_eq!(Keeper::boot().run(script("exit 7"), b"").code, 7);
    assert_eq!(Keeper::boot().run(command(&["true"]), b"").code, 0);
}

#[test]
fn test_run_death_by_signal_is_128_and_its_number() {
    assert_eq!(Keeper::boot().run(script("kill -9 $$"), b"").code, 137);
}

#[test]
fn test_start_missing_command_returns_127() {
    let (code, message) = failure(command(&["no-such-command"]));
    assert_eq!(code, 127);
    assert!(message.contains("`no-such-command`") && message.contains("not found in PATH=/"));
    assert_eq!(failure(command(&["/no/such/command"])).0, 127);
}

#[test]
fn test_start_unrunnable_command_returns_126() {
    let cases = [
        ("plain", "no program", 0o644, "chmod +x"),
        ("garbage", "\x01\x02\x03\x04", 0o755, "neither a program"),
        ("orphan", "#!/no/such/shell\n", 0o755, "interpreter"),
    ];
    for (name, content, mode, reason) in cases {
        let keeper = Keeper::boot();
        let path = keeper.file(name, content, mode);
        let (code, message) = keeper.fail(command(&[&path]));
        assert_eq!(code, 126, "{message}");
        assert!(message.contains(reason), "{message}");
    }
    let (code, message) = failure(command(&["/usr"]));
    assert_eq!((code, message.contains("directory")), (126, true));
}

#[test]
fn test_start_what_cannot_be_set_up_returns_125_and_says_what() {
    let start = || command(&["true"]);
    let mut user = start();
    user.user = Some("alice".into());
    let mut group = start();
    group.user = Some("app:wheel".into());
    let mut workdir = start();
    workdir.workdir = Some("/no/such/place".into());
    let mut secret = start();
    secret.secret_env = vec!["API_KEY".into()];
    let mut missing = start();
    missing.secrets = vec!["API_KEY".into()];
    let mut root = start();
    root.root = Some(cachot_control::Root::Overlay);
    let cases = [
        (command(&[]), "no command"),
        (user, "no user `alice`"),
        (group, "no group `wheel`"),
        (workdir, "`/no/such/place`"),
        (secret, "API_KEY cannot be exported"),
        (missing, "guest kernel has virtio_secrets"),
        (root, "Overlay is not for tests"),
        (command(&["true", "a\0b"]), "NUL"),
    ];
    for (start, what) in cases {
        let (code, message) = failure(start);
        assert_eq!(code, 125, "{message}");
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn test_start_user_database_that_is_no_text_is_refused_and_not_empty() {
    for (name, content) in [("passwd", &b"r\xffot:x:0:0::/:"[..]), ("group", b"\xff")] {
        let keeper = Keeper::boot();
        std::fs::write(keeper.path(name), content).expect("written");
        let (code, message) = keeper.fail(command(&["true"]));
        assert_eq!(code, 125);
        assert!(message.contains("UTF-8"), "{message}");
    }
    let keeper = Keeper::boot();
    std::fs::remove_file(keeper.path("passwd")).expect("removed");
    std::fs::create_dir(keeper.path("passwd")).expect("created");
    let (code, message) = keeper.fail(command(&["true"]));
    assert_eq!(
        (code, message.contains("not a regular file")),
        (125, true),
        "{message}"
    );
}

#[test]
fn test_start_message_of_any_length_is_cut() {
    let name = "x".repeat(1 << 20);
    let (code, message) = failure(command(&[&name]));
    assert_eq!((code, message.len()), (126, 4096));
}

#[test]
fn test_run_exports_secrets_below_explicit_variables() {
    let keeper = Keeper::boot();
    keeper.deliver("API_KEY", b"tk-\xff-value");
    keeper.deliver("MODE", b"secret");
    let mut start = command(&["env"]);
    start.secret_env = vec!["API_KEY".into(), "MODE".into()];
    start.env = vec![("MODE".into(), "explicit".into())];

    let ran = keeper.run(start, b"");

    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines.contains(&"API_KEY=tk-\u{fffd}-value"), "{lines:?}");
    assert!(lines.contains(&"MODE=explicit"), "{lines:?}");
    assert!(lines.contains(&"HOME=/"), "{lines:?}");
    assert!(lines.contains(&"USER=root"), "{lines:?}");
}

#[test]
fn test_run_user_gets_ids_groups_and_secrets_that_it_cannot_read() {
    let keeper = Keeper::boot();
    keeper.deliver("API_KEY", b"value");
    let mut start = script("id -u; id -g; id -G; echo $API_KEY; pwd; echo out >/dev/stdout");
    start.user = Some("app".into());
    start.secret_env = vec!["API_KEY".into()];

    let ran = keeper.run(start, b"");

    assert_eq!(ran.stdout, "4321\n4321\n4321 4400\nvalue\n/\nout\n");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn test_run_numeric_user_and_workdir_need_no_entries() {
    let mut start = script("id -u; id -G; pwd; echo ${USER-unset}");
    start.user = Some("777:888".into());
    start.workdir = Some("/usr".into());
    let ran = Keeper::boot().run(start, b"");
    assert_eq!(ran.stdout, "777\n888\n/usr\nunset\n");
}

#[test]
fn test_run_workload_inherits_neither_descriptors_nor_signal_state() {
    let ran = Keeper::boot().run(
        script("echo /proc/self/fd/*; grep -E 'Sig(Blk|Ign)' /proc/self/status"),
        b"",
    );
    let mut lines = ran.stdout.lines();
    let descriptors: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    // The shell opens one more, to list the directory.
    let expected = ["0", "1", "2", "3"].map(|fd| format!("/proc/self/fd/{fd}"));
    assert_eq!(descriptors, expected);
    for mask in lines {
        assert!(mask.ends_with("\t0000000000000000"), "{mask}");
    }
}
