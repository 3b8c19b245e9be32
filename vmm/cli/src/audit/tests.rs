//! What is recorded of VMs that start.

use cachot_control::Start;
use cachot_custody::audit::{Read, Reader, verify};
use cachot_snapshot::image::{Digest, ImageId, RestorePolicy, Secret};

use super::keys::TrustedVerifier;
use super::*;
use crate::vm::record::Workload;

fn vm(name: &str, secrets: &[&str], secrets_audit: bool) -> VmRecord {
    let secret = |name: &&str| Secret {
        name: name.parse().expect("a name"),
        reference: "env:TOKEN".into(),
        mode: 0o400,
        uid: 0,
        gid: 0,
        export_env: false,
        version: 1,
        policy: RestorePolicy::Reissue,
    };
    VmRecord {
        name: name.into(),
        created: 1,
        keeper: 2,
        cpus: 1,
        memory: 1 << 28,
        cmdline: Digest::of(b""),
        disk: None,
        secrets: secrets.iter().map(secret).collect(),
        lineage: vec![ImageId::from([7; 16])],
        workload: Workload {
            start: Start {
                session: 1,
                root: None,
                argv: vec!["sh".into()],
                env: Vec::new(),
                secrets: Vec::new(),
                secret_env: Vec::new(),
                user: None,
                workdir: None,
                terminal: None,
                stdin: false,
            },
            withheld: false,
            secrets_audit,
        },
        detached: true,
    }
}

fn records(folder: &Path) -> Vec<Record> {
    let mut reader = Reader::open(folder).expect("a log");
    let next = || reader.read().expect("read");
    std::iter::from_fn(next)
        .map(|read| match read {
            Read::Record { record, .. } => *record,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn user() -> UserId {
    "alice".parse().expect("a user")
}

#[test]
fn test_start_is_in_the_log_of_the_host_and_in_that_of_the_vm_if_it_has_one() {
    let root = tempfile::tempdir().expect("a folder");
    let state = StateDir::create(root.path(), None).expect("created");
    let parent = Some("old".to_owned());

    start(
        root.path(),
        &state,
        &vm("web", &["A", "B"], true),
        true,
        parent,
        &user(),
    )
    .expect("recorded")
    .expect("it has secrets")
    .close()
    .expect("closed");

    let keys = TrustedVerifier::load(root.path()).expect("loaded");
    let (host, own) = (root.path().join(FOLDER), state.path().join(FOLDER));
    let report = verify(&host, &keys, None).expect("a log");
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    let report = verify(&own, &keys, Some(&report.anchors)).expect("a log");
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    assert_eq!(records(&host), records(&own));
    let record = &records(&own)[1];
    assert_eq!(
        (record.access, record.user.as_str()),
        (Access::Rehydrate, "alice")
    );
    assert_eq!(
        record.lineage,
        ["vm:old".to_owned(), format!("image:{}", "07".repeat(16))]
    );

    start(
        root.path(),
        &state,
        &vm("job", &["C"], false),
        false,
        None,
        &user(),
    )
    .expect("recorded")
    .expect("it has secrets")
    .close()
    .expect("closed");
    assert_eq!(records(&host).len(), 3);
    assert_eq!(records(&own).len(), 2);
}

#[test]
fn test_start_without_secrets_needs_no_log() {
    let root = tempfile::tempdir().expect("a folder");
    let state = StateDir::create(root.path(), None).expect("created");
    std::fs::write(root.path().join(FOLDER), "x").expect("written");
    let none = start(
        root.path(),
        &state,
        &vm("web", &[], true),
        false,
        None,
        &user(),
    );
    assert!(none.expect("nothing to record").is_none());
    // Control: with one it does.
    assert!(
        start(
            root.path(),
            &state,
            &vm("web", &["A"], false),
            false,
            None,
            &user()
        )
        .is_err()
    );
}

#[test]
fn test_start_that_one_of_the_two_logs_cannot_hold_is_an_error() {
    let root = tempfile::tempdir().expect("a folder");
    let state = StateDir::create(root.path(), None).expect("created");
    std::fs::write(state.path().join(FOLDER), "x").expect("written");
    assert!(
        start(
            root.path(),
            &state,
            &vm("web", &["A"], true),
            false,
            None,
            &user()
        )
        .is_err()
    );
    // It was not given its secret, and the host's log does not say that it was.
    assert!(!root.path().join(FOLDER).exists());
}
