//! What is recorded of VMs that start.

use cachot_control::Start;
use cachot_custody::audit::{Read, Reader, verify};
use cachot_secrets::SecretValue;
use cachot_snapshot::image::{Digest, ImageId, RestorePolicy, Secret as Declared};

use super::keys::TrustedVerifier;
use super::*;
use crate::vm::record::Workload;

/// A secret of the store, in its version 4, or of the environment.
fn secret(name: &str, reference: &str) -> Secret {
    let value = SecretValue::copy_of(b"value").expect("a value");
    let origin = match reference.starts_with("store:") {
        true => Origin {
            scope: Some("workspace".into()),
            version: Some(4),
        },
        false => Origin::default(),
    };
    Secret {
        declared: Declared {
            name: name.parse().expect("a name"),
            reference: reference.into(),
            mode: 0o400,
            uid: 0,
            gid: 0,
            export_env: false,
            version: origin.version.unwrap_or(1),
            policy: RestorePolicy::Reissue,
        },
        value: value.seal().expect("sealed"),
        origin,
    }
}

/// Records that a VM starts with these secrets.
fn given(
    root: &Path,
    state: &StateDir,
    vm: &VmRecord,
    secrets: &[&str],
    parent: Option<&str>,
) -> Result<Option<Recorded>, RecordError> {
    let secrets: Vec<_> = (0..)
        .zip(secrets)
        .map(|(number, name)| secret(name, ["env:TOKEN", "store:TOKEN"][number % 2]))
        .collect();
    let given = Given {
        vm,
        secrets: &secrets,
        is_copy: parent.is_some(),
        parent,
        user: &"alice".parse().expect("a user"),
    };
    start(root, state, &given)
}

fn vm(name: &str, secrets_audit: bool) -> VmRecord {
    VmRecord {
        name: name.into(),
        created: 1,
        keeper: 2,
        cpus: 1,
        memory: 1 << 28,
        cmdline: Digest::of(b""),
        disk: None,
        secrets: Vec::new(),
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

#[test]
fn test_start_is_in_the_log_of_the_host_and_in_that_of_the_vm_if_it_has_one() {
    let root = tempfile::tempdir().expect("a folder");
    let state = StateDir::create(root.path(), None).expect("created");
    let start = |vm: &VmRecord, secrets: &[&str], parent| {
        given(root.path(), &state, vm, secrets, parent)
            .expect("recorded")
            .expect("it has secrets")
            .close();
    };

    start(&vm("web", true), &["A", "B"], Some("old"));

    let keys = TrustedVerifier::load(root.path()).expect("loaded");
    let (host, own) = (root.path().join(FOLDER), state.path().join(FOLDER));
    let report = verify(&host, &keys, None).expect("a log");
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    let report = verify(&own, &keys, Some(&report.anchors)).expect("a log");
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    assert_eq!(records(&host), records(&own));
    let [plain, stored] = &records(&own)[..] else {
        panic!("two secrets");
    };
    assert_eq!(
        (stored.access, stored.user.as_str()),
        (Access::Rehydrate, "alice")
    );
    assert_eq!(
        stored.lineage,
        ["vm:old".to_owned(), format!("image:{}", "07".repeat(16))]
    );
    let origin = |record: &Record| {
        let source = record.source.clone().expect("a scheme");
        (source, record.scope.clone(), record.version)
    };
    assert_eq!(origin(plain), ("env".into(), None, None));
    assert_eq!(
        origin(stored),
        ("store".into(), Some("workspace".into()), Some(4))
    );

    start(&vm("job", false), &["C"], None);
    assert_eq!(records(&host).len(), 3);
    assert_eq!(records(&own).len(), 2);
}

#[test]
fn test_start_without_secrets_needs_no_log() {
    let root = tempfile::tempdir().expect("a folder");
    let state = StateDir::create(root.path(), None).expect("created");
    std::fs::write(root.path().join(FOLDER), "x").expect("written");
    let none = given(root.path(), &state, &vm("web", true), &[], None);
    assert!(none.expect("nothing to record").is_none());
    // Control: with one it does.
    assert!(given(root.path(), &state, &vm("web", false), &["A"], None).is_err());
}

#[test]
fn test_start_that_one_of_the_two_logs_cannot_hold_is_an_error() {
    let root = tempfile::tempdir().expect("a folder");
    let state = StateDir::create(root.path(), None).expect("created");
    std::fs::write(state.path().join(FOLDER), "x").expect("written");
    assert!(given(root.path(), &state, &vm("web", true), &["A"], None).is_err());
    // It was not given its secret, and the host's log does not say that it was.
    assert!(!root.path().join(FOLDER).exists());
}
