//! Guests that are copies: what is renewed, in which order, and what is said where that fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cachot_control::{ToGuest, ToHost};

use crate::keeper::{Keeper, MACHINE_ID, drain, expect, further, script};

const OLD_ID: &str = "0123456789abcdef0123456789abcdef\n";

impl Keeper {
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("read")
    }

    fn keys(&self) {
        fs::create_dir(self.path("ssh")).expect("created");
        for (name, mode) in [
            ("ssh_host_ed25519_key", 0o600),
            ("ssh_host_ed25519_key.pub", 0o644),
        ] {
            fs::write(self.path("ssh").join(name), "old").expect("written");
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(self.path("ssh").join(name), mode).expect("set");
        }
    }

    fn generator(&self, text: &str) {
        fs::create_dir(self.path("bin")).expect("created");
        self.file("bin/ssh-keygen", text, 0o755);
    }
}

#[test]
fn test_renew_everything_in_order_and_nothing_that_is_not_there() {
    let mut keeper = Keeper::boot();
    fs::write(keeper.path("machine-id"), OLD_ID).expect("written");
    let boot_id = keeper.read("boot_id");

    assert_eq!(keeper.renew(), Vec::<String>::new());

    assert_eq!(
        keeper.read("kernel"),
        "entropy 64 7\nclock 1790000000123456789\nhostname copy-1\nmount boot_id\n"
    );
    assert_eq!(keeper.read("machine-id"), format!("{MACHINE_ID}\n"));
    let new = keeper.read("boot_id");
    assert_ne!(new, boot_id);
    assert_eq!(new.len(), boot_id.len());
    assert_eq!(
        (new.as_bytes()[14], new.matches('-').count()),
        (b'4', 4),
        "{new}"
    );
    assert!(!keeper.path("ssh").exists());
}

#[test]
fn test_renew_again_gives_another_boot_id_under_the_same_mount() {
    let mut keeper = Keeper::boot();
    assert_eq!(keeper.renew(), Vec::<String>::new());
    let first = keeper.read("boot_id");

    assert_eq!(keeper.renew(), Vec::<String>::new());

    assert_ne!(keeper.read("boot_id"), first);
    assert_eq!(keeper.read("kernel").matches("mount boot_id").count(), 1);
}

#[test]
fn test_renew_is_answered_at_whatever_moment_of_the_loop_it_arrives() {
    let mut keeper = Keeper::boot();
    // A session that does not exist: the guest's loop turns once.
    let wake = ToGuest::Signal {
        session: 99,
        signal: libc::SIGHUP,
    };
    for attempt in 0..2000 {
        keeper.tell(&wake);
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(attempt % 100) {}
        assert_eq!(keeper.renew(), Vec::<String>::new(), "attempt {attempt}");
    }
}

#[test]
fn test_renew_machine_id_only_where_there_is_one() {
    let mut keeper = Keeper::boot();
    assert_eq!(keeper.renew(), Vec::<String>::new());
    assert!(!keeper.path("machine-id").exists());
    for unset in ["", "uninitialized\n"] {
        fs::write(keeper.path("machine-id"), unset).expect("written");
        assert_eq!(keeper.renew(), Vec::<String>::new());
        assert_eq!(keeper.read("machine-id"), unset);
    }
}

#[test]
fn test_renew_machine_id_that_cannot_be_replaced_is_mounted_over() {
    let mut keeper = Keeper::boot();
    fs::write(keeper.path("machine-id"), OLD_ID).expect("written");
    // In the way of the file that would replace it.
    fs::create_dir(keeper.path("machine-id.cachot-new")).expect("created");

    assert_eq!(keeper.renew(), Vec::<String>::new());

    assert_eq!(keeper.read("machine-id"), format!("{MACHINE_ID}\n"));
    assert!(keeper.read("kernel").contains("mount machine-id\n"));
}

#[test]
fn test_renew_kills_and_forgets_commands_but_not_the_workload() {
    let mut keeper = Keeper::boot();
    keeper.start(script("echo ready; read x; exit 2"));
    let [mut workload, _stderr] = keeper.streams();
    expect(&mut workload, "ready");
    keeper.start(further(
        4,
        "trap '' TERM HUP; echo ready; while :; do sleep 1; done",
    ));
    let [mut command, _err] = keeper.streams_of(4);
    expect(&mut command, "ready");

    assert_eq!(keeper.renew(), Vec::<String>::new());

    drain(command);
    keeper.hang_up();
    keeper.meet();
    assert_eq!(keeper.hear(), ToHost::Started { session: 1 });
    keeper.start(further(4, "true"));
}

#[test]
fn test_renew_host_keys_are_made_by_ssh_keygen() {
    let mut keeper = Keeper::boot();
    keeper.keys();
    fs::write(
        keeper.path("ssh/ssh_host_dsa_key"),
        "of a type no longer made",
    )
    .expect("written");
    fs::write(keeper.path("ssh/sshd_config"), "kept").expect("written");

    assert_eq!(keeper.renew(), Vec::<String>::new());

    let key = keeper.read("ssh/ssh_host_ed25519_key");
    assert!(key.contains("PRIVATE KEY"), "{key}");
    let public = keeper.read("ssh/ssh_host_ed25519_key.pub");
    assert!(public.starts_with("ssh-ed25519 "), "{public}");
    let mode = keeper
        .path("ssh/ssh_host_ed25519_key")
        .metadata()
        .expect("there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    assert!(!keeper.path("ssh/ssh_host_dsa_key").exists());
    assert!(!keeper.path("ssh/ssh_host_rsa_key").exists());
    assert_eq!(keeper.read("ssh/sshd_config"), "kept");
    assert!(!keeper.path("run/new-keys").exists());
}

#[test]
fn test_renew_host_keys_that_cannot_be_made_stay_and_are_reported() {
    let mut keeper = Keeper::boot();
    keeper.keys();
    keeper.generator("#!/bin/sh\necho first >&2; echo no luck >&2; exit 1\n");

    let failures = keeper.renew();

    assert_eq!(
        failures,
        ["cannot renew the ssh host keys: ssh-keygen: no luck"]
    );
    assert_eq!(keeper.read("ssh/ssh_host_ed25519_key"), "old");
    // What does not depend on it is done.
    assert!(keeper.read("kernel").contains("mount boot_id"));
}

#[test]
fn test_renew_slow_ssh_keygen_does_not_block_the_loop() {
    let mut keeper = Keeper::boot();
    keeper.keys();
    keeper.generator("#!/bin/sh\nwhile ! [ -e $3/../../go ]; do sleep 0.1; done; exit 1\n");
    keeper.tell(&ToGuest::Renew(Keeper::renewal()));

    keeper.start(script("exec sleep 1000"));
    fs::write(keeper.path("go"), "").expect("written");

    match keeper.hear() {
        ToHost::Renewed { failures, .. } => assert_eq!(failures.len(), 1, "{failures:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn test_renew_with_bad_input_names_each_and_does_the_rest() {
    let mut keeper = Keeper::boot();
    fs::write(keeper.path("machine-id"), OLD_ID).expect("written");
    let mut renewal = Keeper::renewal();
    renewal.entropy.pop();
    renewal.machine_id = "../../etc/passwd".into();
    keeper.tell(&ToGuest::Renew(renewal));

    let ToHost::Renewed { failures, .. } = keeper.hear() else {
        panic!("it is no answer");
    };

    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures[0].contains("63 random bytes instead of 64"));
    assert!(failures[1].contains("lower-case hexadecimal"));
    assert_eq!(keeper.read("machine-id"), OLD_ID);
    assert!(keeper.read("kernel").contains("hostname copy-1"));
}
